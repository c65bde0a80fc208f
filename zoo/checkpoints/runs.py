"""Checkpoints as other tools save them: which files make up a run, and at which steps.

A *snapshot* is a file (.safetensors, .pt, .pth, .bin, .ckpt, .pth.tar) or a folder that a library saved one model into
(adapter_model.safetensors with adapter_config.json, model.safetensors, pytorch_model.bin, or one of these cut into
several files with an index). A *run* is one snapshot, or a folder of several: its trajectory. A folder may be both, as
the output of Hugging Face's Trainer is: then it is a run of its checkpoint folders and its own, final model.

Steps come from tables and JSON files (see `zoo.checkpoints.tables`), or from names: the number after `step`, `iter`,
`checkpoint` or `epoch`, the first of these words that all of a run have, else the last number; `init` is step 0, and so
is a run's only snapshot whose step is not known.

Hidden files, among them the `._` files of macOS, and what a training keeps beside its weights (optimizer.pt,
scheduler.pt, training_args.bin and the like) are no checkpoints. Whatever else looks like weights and is not taken is
reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

from zoo.checkpoints.tables import Known, Row, Table, json_object
from zoo.checkpoints.tensors import INDEX_SUFFIX, SUFFIXES, CheckpointError, natural_key

_FOLDER_FILES: Final = ("adapter_model.safetensors", "model.safetensors", "adapter_model.bin", "pytorch_model.bin")
_NO_WEIGHTS: Final = re.compile(r"(optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states).*", re.I)
_SHARD: Final = re.compile(r"-\d+-of-\d+\.")
_FOREIGN_SUFFIXES: Final = (".distcp", ".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".pickle", ".pkl")
_STEP_WORDS: Final = tuple(
    re.compile(rf"(?:{word})s?[-_=]?(\d+)", re.I) for word in ("step", "iter|iteration", "checkpoint|ckpt", "epoch")
)
_LAST_NUMBER: Final = re.compile(r"(\d+)(?!.*\d)")
_FINAL: Final = re.compile(r"(?:^|[-_.])(?:last|latest|final|best)(?:$|[-_.])", re.I)
_INITIAL: Final = re.compile(r"(?:^|[-_.])init(?:ial)?(?:$|[-_.])", re.I)


@dataclass(frozen=True)
class SnapshotFile:
    """One snapshot: the file of its tensors (or the index of several), and what is known about it.

    `sidecar` is the content of the JSON file beside it, `adapter_config` that of an adapter's adapter_config.json.
    """

    path: Path
    inner_step: int
    metrics: Mapping[str, float]
    seed: int | None = None
    sidecar: Mapping = field(default_factory=dict)
    adapter_config: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class RunFiles:
    """A run: its name, and its snapshots in the order of their steps."""

    name: str
    snapshots: tuple[SnapshotFile, ...]

    @property
    def seed(self) -> int | None:
        return next((snapshot.seed for snapshot in self.snapshots if snapshot.seed is not None), None)


class FoundRuns(NamedTuple):
    """Runs, and in words what was left out or guessed."""

    runs: list[RunFiles]
    remarks: list[str]


def find_runs(paths: str | Path | Iterable[str | Path], table: str | Path | Sequence[Row] | None = None) -> FoundRuns:
    """The runs that paths stand for.

    Args:
        paths: a folder, each child of which is a run; or a snapshot; or several paths, each of which is a run: a
            snapshot, or a folder of snapshots.
        table: a table to use instead of those beside the checkpoints: its file, or rows whose `file` is a path.

    Raises:
        CheckpointError: if there is no checkpoint; a table is unreadable or lacks a snapshot; or it cannot be told
            which of several files is the snapshot, or at which step one was taken.
    """
    search = _Search(None if table is None else Table.read(table))
    if not isinstance(paths, str | Path):
        entries = [Path(path) for path in paths]
    elif (root := Path(paths)).is_dir() and not search.weights_of(root):
        entries = [child for child in _visible(root) if search.snapshots_in(child)]
        if len(entries) > 1 and len({_without_steps(child.name) for child in entries}) == 1:
            search.remark(f"each child of {root} was taken for a run; if they are steps of one run, give [{root}]")
    else:
        entries = [root]
    if not entries:
        raise CheckpointError(f"no checkpoint in {paths}; expected files {SUFFIXES} or folders of them")
    path, count = Counter(entry.resolve() for entry in entries).most_common(1)[0]
    if count > 1:
        raise CheckpointError(f"paths name {path} {count} times; give each run once")
    runs = [search.run_of(entry) for entry in entries]
    if len({run.name for run in runs}) < len(runs):  # files of one name in several folders
        runs = [replace(run, name=str(entry)) for run, entry in zip(runs, entries, strict=True)]
    for used in search.tables.values():
        for row in used.unused:
            search.remark(row)
    return FoundRuns(runs, list(search.remarks))


@dataclass
class _Search:
    """The tables and remarks of one search; `given` is the table that goes before those beside the checkpoints."""

    given: Table | None
    tables: dict[Path, Table] = field(init=False)
    remarks: dict[str, None] = field(default_factory=dict)  # in order, each once

    def __post_init__(self) -> None:
        self.tables = {} if self.given is None else {Path(self.given.name): self.given}

    def remark(self, text: str) -> None:
        self.remarks[text] = None

    def run_of(self, entry: Path) -> RunFiles:
        """The run that a path stands for."""
        members = self.snapshots_in(entry)
        if not members:
            raise CheckpointError(f"no checkpoint at {entry}; expected a file {SUFFIXES} or a folder of them")
        folders = [entry.parent] if members == [entry] else [entry, entry.parent]
        table = self.given or Table.beside(folders, self.tables)
        files = {member: self.weights_of(member) or member for member in members}
        known = {member: Known.of(path, table.row_of(member, path) if table else {}) for member, path in files.items()}
        steps = {member: one.inner_step for member, one in known.items()}
        if all(step is None for step in steps.values()):
            steps = self.steps_from_names(entry, files)
        snapshots = []
        for member, step in steps.items():
            path, one = files[member], known[member]
            if step is None or step < 0:
                raise CheckpointError(f"{path} needs an inner_step of at least 0, got {step}")
            config = json_object(path.parent / "adapter_config.json") if path.name.startswith("adapter_model.") else {}
            snapshots.append(SnapshotFile(path, step, one.metrics, one.seed, one.sidecar, config))
        snapshots.sort(key=lambda snapshot: snapshot.inner_step)
        taken = [snapshot.inner_step for snapshot in snapshots]
        if len({snapshot.seed for snapshot in snapshots if snapshot.seed is not None}) > 1:
            raise CheckpointError(f"snapshots of {entry} are of different seeds, so of different runs")
        if len(set(taken)) < len(taken):
            raise CheckpointError(f"snapshots of {entry} must have different inner steps, got {taken}")
        return RunFiles(entry.name if entry.is_dir() else entry.stem, tuple(snapshots))

    def snapshots_in(self, entry: Path) -> list[Path]:
        """The snapshots of a run: the path itself, or the children of a folder, or both; none if it is no run."""
        own = self.weights_of(entry)
        if not entry.is_dir():
            if own is None and _looks_like_weights(entry):
                self.remark(f"{entry} was left out: it is of a kind that cannot be read")
            return [] if own is None else [entry]
        children = [child for child in _visible(entry) if child != own and self.weights_of(child)]
        shards = [child for child in children if _SHARD.search(child.name)]
        if own is None:
            if shards:
                raise CheckpointError(f"{shards[0]} is a part of a model whose index *{INDEX_SUFFIX} is missing")
            taken = members = children
        else:
            steps = [child for child in children if any(word.search(child.name) for word in _STEP_WORDS)]
            members = [*(child for child in steps if child not in shards), entry]
            taken = [own, *members, *shards, *(entry / name for name in _FOLDER_FILES)]
        for child in _visible(entry):
            below = [child, *child.rglob("*")] if child.is_dir() else [child]
            if child not in taken and any(_looks_like_weights(file) for file in below):
                self.remark(f"{child} was left out: by its name it is no snapshot")
        return members

    def weights_of(self, path: Path) -> Path | None:
        """The file with a snapshot's tensors, or None if the path is no snapshot.

        Raises:
            CheckpointError: if a folder holds two models.
        """
        if not path.is_dir():
            is_there = path.name.endswith(SUFFIXES) and (path.is_file() or path.is_symlink())  # perhaps a broken one
            return path if is_there and not _NO_WEIGHTS.fullmatch(path.name) else None
        names = [name for file in _FOLDER_FILES for name in (file, file + INDEX_SUFFIX)]
        found = [path / name for name in names if (path / name).is_file()]
        kinds = {file.name.partition(".")[0].replace("pytorch_model", "model") for file in found}
        formats = {file.name.removesuffix(INDEX_SUFFIX) for file in found}
        if len(kinds) > 1 or len(formats) < len(found):
            both = " and ".join(file.name for file in found)
            raise CheckpointError(f"{path} holds {both}; keep one, or give its path")
        for other in found[1:]:
            self.remark(f"{other} was left out: there is {found[0].name}")
        return found[0] if found else None

    def steps_from_names(self, entry: Path, files: Mapping[Path, Path]) -> dict[Path, int | None]:
        """Step of each snapshot, given its file; a final model of unknown step, or another's step, is left out."""
        final = [member for member in files if member == entry or _FINAL.search(member.name)]
        if len(final) == len(files) > 1:
            final = [member for member in final if member == entry]
        initial = [member for member in files if member not in final and _INITIAL.search(member.name)]
        steps: dict[Path, int | None] = dict.fromkeys(initial, 0)
        numbered = [member for member in files if member not in steps and member not in final]
        for pattern in (*_STEP_WORDS, _LAST_NUMBER):
            values = [int(found[-1]) for member in numbered if (found := pattern.findall(member.name))]
            if len(values) == len(numbered) == len({*values, *steps.values()}) - len(steps):
                steps |= dict(zip(numbered, values, strict=True))
                break
        else:
            self.remark(f"steps of {entry} are not in the names of its snapshots, which were numbered in their order")
            return {member: i for i, member in enumerate(files)}
        for member in final:
            step = _trainer_step(member)
            if step is None and (found := _STEP_WORDS[0].findall(member.name)):
                step = int(found[-1])
            if step is None and len(files) == 1:
                step = 0
            if step is None or step in steps.values():
                why = "its step is not known" if step is None else f"another snapshot is of step {step}"
                self.remark(f"{files[member]} was left out: {why}; a metrics.csv with inner steps takes it in")
            else:
                steps[member] = step
        return steps


def _trainer_step(member: Path) -> int | None:
    """Step of a model that Hugging Face's Trainer saved, if it is noted beside it."""
    step = json_object(member / "trainer_state.json").get("global_step") if member.is_dir() else None
    return step if isinstance(step, int) else None


def _without_steps(name: str) -> str:
    for word in _STEP_WORDS:
        name = word.sub("", name)
    return name


def _visible(folder: Path) -> list[Path]:
    children = (child for child in folder.iterdir() if not child.name.startswith("."))
    return sorted(children, key=lambda child: natural_key(child.name))


def _looks_like_weights(path: Path) -> bool:
    known = path.name.endswith((*SUFFIXES, *_FOREIGN_SUFFIXES)) and not path.name.startswith(".")
    return known and path.is_file() and not _NO_WEIGHTS.fullmatch(path.name)
