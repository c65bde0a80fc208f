"""Networks of one layout, read from checkpoints and from runs of zoos by their addresses.

    net.safetensors, run/checkpoint-500, run/     a checkpoint as `import_checkpoints` takes it; all of a folder of them
    ZOO@3, ZOO@3:0, ZOO@3:all, ZOO@all            a run's last snapshot, one of its snapshots, all of them; every run

Legend: N networks, P numbers of one network.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from zoo.checkpoints.adapters import different_settings
from zoo.checkpoints.importer import check_adapters
from zoo.checkpoints.inferred_layout import layout_of_state_dict
from zoo.checkpoints.readers import read_snapshot
from zoo.checkpoints.runs import find_runs
from zoo.checkpoints.tensors import CheckpointError
from zoo.networks.base import hash_of
from zoo.networks.layout import ParamLayout
from zoo.networks.wrappers import unwrapped
from zoo.operations.compression import is_compressed, load_compressed
from zoo.storage.durable import write_files
from zoo.storage.schema import Json
from zoo.storage.zoo import Zoo

_IN_ZOO: Final = re.compile(r"(?P<zoo>.+)@(?P<run>-?\d+|all)(?::(?P<snapshot>-?\d+|all))?")


@dataclass(frozen=True)
class Networks:
    """Networks of one layout and base: numbers (N, P), and of each its name and, if known, its inner step.

    `base_hash` is that of what they share and is not trained; empty if there is nothing, or it is unknown.
    """

    layout: ParamLayout
    params: Tensor
    names: tuple[str, ...]
    steps: tuple[int | None, ...]
    task_config: Mapping[str, Json]
    base_hash: str = ""

    def trained(self) -> Tensor:
        """The trainable numbers (N, P')."""
        return self.params[:, : self.layout.num_trainable]


def save_network(path: Path, params: Tensor, networks: Networks, about: Mapping[str, object]) -> None:
    """Write a network (P,) as safetensors, with its layout and task as JSON beside it, as an exported one has them.

    Args:
        path: ends in .safetensors.
        params: (P,).
        networks: that it was made of; layout, task and base are theirs.
        about: JSON-able, how it was made; in the file's metadata, as `combined`, and in the JSON.
    """
    tensors = {name: tensor.clone().contiguous().cpu() for name, tensor in networks.layout.unflatten(params).items()}
    metadata = {"format": "pt", "combined": json.dumps(about)}
    beside = {
        "layout": json.loads(networks.layout.to_json()),
        "task": dict(networks.task_config),
        "combined": about,
        **({"base_hash": networks.base_hash} if networks.base_hash else {}),
    }
    text = json.dumps(beside, indent=1).encode()
    write_files({path: [save(tensors, metadata)], path.with_suffix(".json"): [text]})


class _Read(NamedTuple):
    name: str
    tensors: Mapping[str, Tensor]
    layout: ParamLayout | None
    step: int | None = None
    task_config: Mapping[str, Json] = {}
    base_hash: str = ""
    adapter: Mapping[str, Json] = {}  # settings that give the tensors of an adapter their meaning


def read_networks(
    addresses: Sequence[str], *, base: Networks | None = None, layout: ParamLayout | None = None
) -> Networks:
    """The networks at addresses, in their order, as float32 (float64 if the layout has that) on the CPU.

    Args:
        addresses: as above.
        base: whose layout they must have; needed for compressed task vectors.
        layout: the layout they must have; by default that of the base, of the first address, or a guess from names.

    Raises:
        CheckpointError: if one cannot be read, or has another layout, base or kind of adapter.
        OSError, ValueError, IndexError: if there is no such zoo, run or snapshot.
    """
    known = base.layout if layout is None and base is not None else layout
    found, params = [], []
    for one in (one for address in addresses for one in _read(address, base, known)):
        try:
            named = unwrapped(one.tensors, known)
            known = known or one.layout or layout_of_state_dict(named)
            params.append(known.flatten(named))
            found.append(one if one.base_hash else one._replace(base_hash=_hash_in(named, known)))
        except ValueError as error:
            raise CheckpointError(f"{one.name}: {error}") from error
        if not bool(params[-1].isfinite().all()):
            raise CheckpointError(f"{one.name} has infinities or NaN, which would be in whatever is made of it")
    if known is None or not found:
        raise CheckpointError("no networks; give their files, or runs of zoos as ZOO@RUN")
    _check_alike([*([] if base is None else [_Read(base.names[0], {}, None, base_hash=base.base_hash)]), *found])
    same = all(one.task_config == found[0].task_config for one in found)
    return Networks(
        known,
        torch.stack(params),
        tuple(one.name for one in found),
        tuple(one.step for one in found),
        found[0].task_config if same else {},
        next((one.base_hash for one in found if one.base_hash), ""),
    )


def _hash_in(tensors: Mapping[str, Tensor], layout: ParamLayout) -> str:
    """Hash of the base that is among the tensors of a whole network; empty if it is not."""
    names = [slot.name for slot in layout.base or ()]
    return hash_of({name: tensors[name] for name in names}) if all(name in tensors for name in names) else ""


def _check_alike(networks: Sequence[_Read]) -> None:
    """Raise CheckpointError unless the tensors of all networks are added to one base, and with one scale."""
    first = next((one for one in networks if one.base_hash), networks[0])
    adapted = next((one for one in networks if one.adapter), networks[0])
    for one in networks:
        if one.base_hash not in ("", first.base_hash):
            bases = f"{first.base_hash[:19]}... and {one.base_hash[:19]}..."
            raise CheckpointError(
                f"{first.name} and {one.name} were trained on different bases, {bases}; give networks of one base"
            )
        comparable = one.adapter and ("peft_type" in one.adapter) == ("peft_type" in adapted.adapter)
        if comparable and (differing := different_settings(adapted.adapter, one.adapter)):
            raise CheckpointError(f"{adapted.name} and {one.name} are different kinds of adapters: {differing}")


def _read(address: str, base: Networks | None, layout: ParamLayout | None) -> Iterator[_Read]:
    if (place := _IN_ZOO.fullmatch(address)) and not Path(address).exists():
        yield from _read_zoo(address, place)
    elif is_compressed(Path(address)):
        if base is None:
            raise CheckpointError(f"{address} is compressed against its base; give base=...")
        vector = load_compressed(Path(address), base.layout, base.params[0])
        yield _Read(address, base.layout.views(vector), base.layout)
    else:
        yield from _read_checkpoints(address, layout)


def _read_zoo(address: str, place: re.Match) -> Iterator[_Read]:
    zoo = Zoo.open(place["zoo"])
    runs = zoo.usable_runs().tolist() if place["run"] == "all" else [int(place["run"])]
    for run in runs:
        if not -zoo.num_runs <= run < zoo.num_runs:
            raise IndexError(f"{address}: the zoo has runs 0 to {zoo.num_runs - 1}")
        there = [s for s in range(zoo.num_snapshots) if zoo.inner_step[run, s] >= 0]
        chosen = there if place["snapshot"] == "all" else [int(place["snapshot"])] if place["snapshot"] else there[-1:]
        for s in chosen:
            if s % zoo.num_snapshots not in there or not -zoo.num_snapshots <= s < zoo.num_snapshots:
                raise IndexError(f"{address}: run {run} has no snapshot {s}, but {there}")
            vector = torch.from_numpy(zoo.read([(run % zoo.num_runs, s % zoo.num_snapshots)])[0])
            name, step = f"{place['zoo']}@{run}:{s}", int(zoo.inner_step[run, s])
            adapter: Any = zoo.spec.extra.get("adapter_config") or zoo.task_config.get("adapter") or {}
            yield _Read(name, zoo.layout.views(vector), zoo.layout, step, zoo.task_config, zoo.spec.base_hash, adapter)


def _read_checkpoints(address: str, layout: ParamLayout | None) -> Iterator[_Read]:
    runs, remarks = find_runs([address])
    check_adapters(runs)
    for snapshot in (snapshot for run in runs for snapshot in run.snapshots):
        tensors, others = read_snapshot(snapshot, model=layout)
        if others:
            remarks.append(f"{list(others)} of {snapshot.path} was left out")
        noted = snapshot.sidecar.get("layout")
        own = None if noted is None else ParamLayout.from_json(json.dumps(noted))
        name = f"{snapshot.path}: {snapshot.key}" if snapshot.key else str(snapshot.path)
        task, base_hash = snapshot.sidecar.get("task", {}), snapshot.sidecar.get("base_hash", "")
        adapter = snapshot.adapter_config or task.get("adapter") or {}
        yield _Read(name, tensors, own, snapshot.inner_step, task, base_hash, adapter)
    if remarks:
        warnings.warn(f"read {address}, but {'; '.join(remarks)}", stacklevel=4)
