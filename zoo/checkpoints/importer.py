"""Checkpoints of other tools become runs of a zoo, exact to the bit; `zoo.checkpoints.runs` says what may be imported.

Legend: R runs, S snapshots, P numbers of one network, G runs of one block.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from zoo.checkpoints.adapters import adapter_tensors, different_settings
from zoo.checkpoints.inferred_layout import layout_of_state_dict
from zoo.checkpoints.readers import read_snapshot
from zoo.checkpoints.runs import RunFiles, SnapshotFile, find_runs
from zoo.checkpoints.tables import Row
from zoo.checkpoints.tensors import CheckpointError
from zoo.networks.base import check_base, hash_of
from zoo.networks.layout import ParamLayout
from zoo.networks.wrappers import unwrapped
from zoo.storage.durable import is_free, staged_directory
from zoo.storage.precision import from_stored, to_stored
from zoo.storage.schema import METRICS, Json, RunStatus, ZooSpec
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import Zoo

_BLOCK_BYTES: Final = 2**28
_MAX_BLOCK_RUNS: Final = 64
_MAX_REMARKS: Final = 8


def import_checkpoints(
    paths: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    model: nn.Module | ParamLayout | None = None,
    metrics: str | Path | Sequence[Row] | None = None,
    state_key: str | None = None,
    dtype: str | None = None,
    keep_nonfinite: bool = False,
    task_config: Mapping[str, Json] | None = None,
) -> Zoo:
    """A new zoo of checkpoints that were trained elsewhere; all or nothing is written.

    What looks like weights and is left out is named in one warning. Names of tensors lose what wrappers put into them,
    see `zoo.networks.wrappers`.

    Args:
        paths: a folder, each child of which is a run, or one path for each run; see `zoo.checkpoints.runs`.
        out: folder of the zoo, which must not exist or be empty.
        model: module or layout that the checkpoints belong to; needed for databases of G.pt, whose vectors have no
            names. Dtypes are those of the checkpoints. By default the
            layout written beside an exported checkpoint, or a guess from names and shapes (`layout_of_state_dict`).
            What is frozen in a module is the base of the zoo. With a module that has adapters (from
            `zoo.networks.adapters.adapt`, or a PeftModel), folders that PEFT saved get its names.
        metrics: a table of steps and metrics instead of those beside the checkpoints.
        state_key: entry of torch files, or of sharded checkpoints, that is the state dict.
        dtype: of the stored parameters. By default one that keeps every bit; float64 is then refused unless its
            values are exact in float32.
        keep_nonfinite: keep runs with infinities or NaN, marked as diverged, instead of refusing them.
        task_config: settings of the task, recorded in the zoo; by default those beside an exported checkpoint.

    Returns:
        The zoo, open for reading. Statuses are 3 (imported), or 2 (diverged) for runs that were exported as diverged or
        have numbers that are not finite.

    Raises:
        CheckpointError: if a checkpoint cannot be read, does not fit, or would lose precision; nothing is written.
        FileExistsError: if there is something at `out`.
        ZooWriteError: if it cannot be written.
    """
    out = Path(out).absolute()
    if not is_free(out):
        raise FileExistsError(f"{out} is not empty; choose another path for the zoo")
    runs, remarks = find_runs(paths, metrics)
    first = runs[0].snapshots[0]
    layout = _layout_of(model, first, state_key)
    base = _base_of(layout, model, first, state_key)
    if layout.base is not None and not base:
        remarks.append("the base of these networks is not in the checkpoints, nor in the zoo; model=... brings it in")
        layout = replace(layout, base=None)
    source = _Source(layout, model, state_key, dtype, keep_nonfinite, base, hash_of(base))
    spec = _spec_of(runs, source, _noted(runs, "task", remarks) if task_config is None else task_config, remarks)
    check_adapters(runs)
    with staged_directory(out) as staged:
        writer = ZooWriter.create(staged, spec, base=base)
        for block in range(spec.num_blocks):
            _write_block(writer, block, runs, source)
    remarks += [
        f"{what} of {len(files)} files such as {files[0]} was left out" for what, files in source.left_out.items()
    ]
    if remarks:
        more = f"; and {len(remarks) - _MAX_REMARKS} more" if len(remarks) > _MAX_REMARKS else ""
        warnings.warn(f"imported into {out}, but {'; '.join(remarks[:_MAX_REMARKS])}{more}", stacklevel=2)
    return Zoo.open(out)


@dataclass(frozen=True)
class _Source:
    """How checkpoint files become vectors, and what of them was left out: files by what it was."""

    layout: ParamLayout
    model: nn.Module | ParamLayout | None
    state_key: str | None
    dtype: str | None
    keep_nonfinite: bool
    base: Mapping[str, Tensor]
    base_hash: str
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def stored_dtype(self) -> str:
        """The dtype asked for, or the narrowest of the store's that keeps every bit."""
        dtypes = {slot.dtype for slot in self.layout}
        return self.dtype or (dtypes.pop() if dtypes in ({"float16"}, {"bfloat16"}) else "float32")

    def vector(self, snapshot: SnapshotFile) -> np.ndarray:
        """(P,) float32 numbers of a checkpoint.

        Raises:
            CheckpointError: if it does not fit the layout, is not finite, or would lose precision.
        """
        path = snapshot.path
        saved, other_keys = read_snapshot(snapshot, self.state_key, self.model)
        try:
            if snapshot.adapter_config and isinstance(self.model, nn.Module):
                saved = adapter_tensors(saved, snapshot.adapter_config, self.model)
            tensors = unwrapped(saved, self.layout)
            check_base(tensors, str(snapshot.sidecar.get("base_hash", "")), self.base, self.base_hash)
            exact = self.layout.flatten(tensors)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        if exact.ndim > 1:
            raise CheckpointError(
                f"{path} holds {exact.shape[0]} networks stacked along a leading axis; save each to a file of its own: "
                "{name: value[i].clone() for name, value in stacked.items()}"
            )
        for slot in self.layout:
            got = next(tensors[name].dtype for name in (slot.name, *slot.aliases) if name in tensors)
            if slot.kind == "param" and not got.is_floating_point:
                raise CheckpointError(
                    f"{path}: the parameter {slot.name!r} is {got}, as of a quantised model; save what it stands for"
                )
            if got != slot.torch_dtype:
                raise CheckpointError(f"{path}: {slot.name!r} is {got}, in the zoo's layout it is {slot.dtype}")
        self._check_values(path, exact)
        for what in [*(f"entry {key!r}" for key in other_keys), *(["n_averaged"] if len(tensors) < len(saved) else [])]:
            self.left_out.setdefault(what, []).append(path)
        return exact.float().numpy()

    def _check_values(self, path: Path, exact: Tensor) -> None:
        finite = exact.isfinite()
        if not self.keep_nonfinite and not bool(finite.all()):
            bad = [name for name, view in self.layout.views(finite).items() if not bool(view.all())]
            raise CheckpointError(f"{path} has infinities or NaN in {bad[:5]}; keep_nonfinite=True would keep them")
        stored = torch.from_numpy(from_stored(to_stored(exact.float().numpy(), self.stored_dtype), self.stored_dtype))
        kept = (stored == exact) | (stored.isnan() & exact.isnan())
        for slot in self.layout:
            may_round = self.dtype is not None and slot.torch_dtype.is_floating_point
            if not may_round and not bool(kept[slot.span].all()):
                raise CheckpointError(
                    f"{path}: {slot.dtype} numbers of {slot.name!r} are not exact in {self.stored_dtype}; "
                    + ("choose dtype='float32'" if self.dtype else "pass dtype='float32' to have them rounded")
                )


def _layout_of(model: nn.Module | ParamLayout | None, first: SnapshotFile, state_key: str | None) -> ParamLayout:
    """The layout of the networks, with the dtypes of the first checkpoint."""
    saved = read_snapshot(first, state_key, model).tensors
    try:
        if isinstance(model, ParamLayout):
            layout = model
        elif isinstance(model, nn.Module):
            layout = ParamLayout.of(model, shared=_frozen_in(model, with_buffers=bool(first.adapter_config)))
        elif model is not None:
            raise TypeError(f"model must be a module or a ParamLayout, got {type(model).__name__}")
        elif "layout" in first.sidecar:
            layout = ParamLayout.from_json(json.dumps(first.sidecar["layout"]))
        else:
            return layout_of_state_dict(unwrapped(saved))
        if isinstance(model, nn.Module) and first.adapter_config:
            saved = adapter_tensors(saved, first.adapter_config, model)
        tensors = unwrapped(saved, layout)
    except ValueError as error:
        raise CheckpointError(f"no layout for {first.path}: {error}") from error
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    slots = []
    for slot in layout:
        name = next((name for name in (slot.name, *slot.aliases) if name in dtypes), None)
        slots.append(slot if name is None else replace(slot, dtype=dtypes[name]))
    return replace(layout, slots=tuple(slots))


def _frozen_in(model: nn.Module, *, with_buffers: bool) -> set[str]:
    """Names of what is not trained, if anything is; checkpoints of whole networks may have buffers of their own."""
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    if len(frozen) == len(dict(model.named_parameters())):
        return set()
    return frozen | ({name for name, _ in model.named_buffers()} if with_buffers else set())


def _base_of(
    layout: ParamLayout, model: nn.Module | ParamLayout | None, first: SnapshotFile, state_key: str | None
) -> dict[str, Tensor]:
    """Tensors of the base, from the module or else the first checkpoint; empty if there is none, or it is nowhere."""
    if layout.base is None:
        return {}
    tensors = model.state_dict() if isinstance(model, nn.Module) else read_snapshot(first, state_key).tensors
    found = {slot.name: tensors[slot.name].detach().cpu() for slot in layout.base if slot.name in tensors}
    return found if len(found) == len(layout.base.slots) else {}


def _spec_of(runs: Sequence[RunFiles], source: _Source, task_config: Mapping[str, Json], remarks: list[str]) -> ZooSpec:
    steps = [tuple(snapshot.inner_step for snapshot in run.snapshots) for run in runs]
    names = {name for run in runs for snapshot in run.snapshots for name in snapshot.metrics}
    first = runs[0].snapshots[0]
    num_snapshots = max(map(len, steps))
    run_bytes = 4 * num_snapshots * max(1, source.layout.num_params)
    extra: dict[str, Json] = {"source": "import", "run_names": [run.name for run in runs]}
    if settings := _settings(runs):
        extra["settings"] = settings
    if first.adapter_config:
        extra["adapter_config"] = dict(first.adapter_config)
    try:
        return ZooSpec(
            layout=source.layout,
            num_runs=len(runs),
            snapshot_steps=steps[0] if len(set(steps)) == 1 else None,
            num_snapshots=num_snapshots,
            block_size=min(max(1, _BLOCK_BYTES // run_bytes), _MAX_BLOCK_RUNS, len(runs)),
            dtype=source.stored_dtype,
            metric_names=(*(name for name in METRICS if name in names), *sorted(names - set(METRICS))),
            columns=dict.fromkeys(sorted({name for run in runs for name in _hyperparameters(run)}), "float64"),
            task_config=task_config,
            optimizer_config=_noted(runs, "optimizer", remarks),
            base_hash=source.base_hash,
            extra=extra,
        )
    except ValueError as error:
        raise CheckpointError(f"these checkpoints do not make a zoo: {error}") from error


def _hyperparameters(run: RunFiles) -> dict[str, float]:
    """Numbers of a run that the JSON beside its first snapshot gives, or its framework."""
    noted = {**run.settings, **run.snapshots[0].sidecar.get("run", {})}
    return {k: v for k, v in noted.items() if isinstance(v, int | float) and k not in ("seed", "status", "checksum")}


def _settings(runs: Sequence[RunFiles]) -> dict[str, Json]:
    """Settings that are no numbers, as frameworks noted them: one value for all runs, or the list of each run's."""
    names = {n: None for run in runs for n, value in run.settings.items() if not isinstance(value, int | float)}
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: some[0] if all(one == some[0] for one in some) else some for name, some in values.items()}


def _noted(runs: Sequence[RunFiles], name: str, remarks: list[str]) -> Mapping[str, Json]:
    """Settings that the JSON beside the checkpoints gives, if it is the same everywhere."""
    settings = [snapshot.sidecar.get(name, {}) for run in runs for snapshot in run.snapshots]
    if all(one == settings[0] for one in settings):
        return settings[0]
    remarks.append(f"the {name} noted beside the checkpoints differs between them, and was not recorded")
    return {}


def check_adapters(runs: Sequence[RunFiles]) -> None:
    """All adapters must mean the same by their tensors."""
    first = runs[0].snapshots[0]
    for snapshot in (snapshot for run in runs for snapshot in run.snapshots):
        mine, theirs = snapshot.adapter_config, first.adapter_config
        differing = different_settings(mine, theirs)
        if bool(mine) != bool(theirs) or differing:
            raise CheckpointError(f"{snapshot.path} and {first.path} are different kinds of adapters: {differing}")


def _write_block(writer: ZooWriter, block: int, runs: Sequence[RunFiles], source: _Source) -> None:
    spec = writer.spec
    numbers = list(writer.block_runs(block))
    params = np.zeros((len(numbers), *spec.shape[1:]), np.float32)  # (G, S, P)
    inner_step = np.full(params.shape[:2], -1, np.int64)
    metrics = {name: np.full(params.shape[:2], np.nan, np.float32) for name in spec.metric_names}
    columns = {name: np.full(len(numbers), np.nan) for name in spec.columns}
    seeds = np.array(numbers, np.int64)
    diverged = np.zeros(len(numbers), bool)
    for g, number in enumerate(numbers):
        run = runs[number]
        for s, snapshot in enumerate(run.snapshots):
            params[g, s] = source.vector(snapshot)
            inner_step[g, s] = snapshot.inner_step
            for name, value in snapshot.metrics.items():
                metrics[name][g, s] = value
        if run.seed is not None:
            seeds[g] = run.seed
        for name, value in _hyperparameters(run).items():
            columns[name][g] = value
        noted = run.snapshots[0].sidecar.get("run", {})
        diverged[g] = noted.get("status") == RunStatus.DIVERGED or not np.isfinite(params[g]).all()
    status = np.where(diverged, RunStatus.DIVERGED, RunStatus.IMPORTED)
    writer.write_block(block, params, inner_step, metrics, {"seed": seeds, **columns}, status)
