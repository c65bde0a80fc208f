"""Checkpoints as other tools save them: which files make up a run, and at which steps.

A *snapshot* is a file (.safetensors, .pt, .pth, .bin, .ckpt, .pth.tar) or a folder that a library saved one model
into (adapter_model.safetensors with adapter_config.json, model.safetensors, pytorch_model.bin, or one of these cut
into several files with an index; a sharded checkpoint of torch's DCP or FSDP). A *run* is one snapshot, or a folder
of several: its trajectory. A folder may be both, as the output of Hugging Face's Trainer is: then it is a run of its
checkpoint folders and its own, final model. Runs of Lightning's loggers and trials of Ray Tune are found by what
these write (`zoo.checkpoints.records`), files of one adapter each, as W2T publishes them, by the NAME_config.json
beside them, and so are the databases of G.pt, each of which holds one run or several
(`zoo.checkpoints.flat_databases`).

Steps come from tables and JSON files (see `zoo.checkpoints.tables`), from what frameworks note, or from names: the
number after `step`, `iter`, `checkpoint` or `epoch`, the first of these words that all of a run have, else the last
number, if names are alike before it; `init` is step 0, and so is a run's only snapshot whose step is not known.

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

from zoo.checkpoints.flat_databases import DATABASE, is_flat_database, runs_of_database
from zoo.checkpoints.records import Record, checkpoints_of_lightning, is_trial, record_of
from zoo.checkpoints.tables import Known, Row, Table, json_object
from zoo.checkpoints.tensors import INDEX_SUFFIX, METADATA, SUFFIXES, CheckpointError, natural_key
from zoo.hub import SCHEME, local_copy, repository_of
from zoo.settings import Json

_FOLDER_FILES: Final = ("adapter_model.safetensors", "model.safetensors", "adapter_model.bin", "pytorch_model.bin")
_NO_WEIGHTS: Final = re.compile(
    r"(optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states).*|params\.pkl", re.I
)
_SHARD: Final = re.compile(r"-\d+-of-\d+\.")
_SHARDED: Final = ("", "pytorch_model_fsdp_0")  # where DCP's metadata stand: the latter is accelerate's
_FOREIGN_SUFFIXES: Final = (".distcp", ".gguf", ".h5", ".mdb", ".msgpack", ".npz", ".onnx", ".pickle", ".pkl")
_NUMBER: Final = r"(\d+(?:\.\d+)?[km](?![a-z\d])|\d+)"  # 1500 or 1.5k
_STEP_WORDS: Final = tuple(
    re.compile(rf"(?:{word})s?[-_=]?{_NUMBER}", re.I) for word in ("step", "iter|iteration", "checkpoint|ckpt", "epoch")
)
_TRIAL_CHECKPOINT: Final = re.compile(r"checkpoint_?\d+")
_LAST_NUMBER: Final = re.compile(rf"{_NUMBER}(?!.*\d)", re.I)
_FINAL: Final = re.compile(r"(?:^|[-_.])(?:last|latest|final|best)(?:$|[-_.])", re.I)
_INITIAL: Final = re.compile(r"(?:^|[-_.])init(?:ial)?(?:$|[-_.])", re.I)


@dataclass(frozen=True)
class SnapshotFile:
    """One snapshot: the file of its tensors (or the index of several), and what is known about it.

    `sidecar` is the content of the JSON file beside it, `adapter_config` that of an adapter's adapter_config.json,
    `key` the entry of a database.
    """

    path: Path
    inner_step: int
    metrics: Mapping[str, float]
    seed: int | None = None
    sidecar: Mapping = field(default_factory=dict)
    adapter_config: Mapping = field(default_factory=dict)
    key: str = ""


@dataclass(frozen=True)
class RunFiles:
    """A run: its name, its snapshots in the order of their steps, and its settings as a framework noted them."""

    name: str
    snapshots: tuple[SnapshotFile, ...]
    settings: Mapping[str, Json] = field(default_factory=dict)

    @property
    def seed(self) -> int | None:
        noted = self.settings.get("seed")
        default = noted if isinstance(noted, int) and not isinstance(noted, bool) else None
        return next((snapshot.seed for snapshot in self.snapshots if snapshot.seed is not None), default)


class FoundRuns(NamedTuple):
    """Runs, and in words what was left out or guessed."""

    runs: list[RunFiles]
    remarks: list[str]


def find_runs(paths: str | Path | Iterable[str | Path], table: str | Path | Sequence[Row] | None = None) -> FoundRuns:
    """The runs that paths stand for.

    Args:
        paths: a folder, each child of which is a run; or a snapshot; or several paths, each of which is a run: a
            snapshot, or a folder of snapshots. Any may be an address hf://USER/REPO/PATH.
        table: a table to use instead of those beside the checkpoints: its file, or rows whose `file` is a path.

    Raises:
        CheckpointError: if there is no checkpoint; a table is unreadable or lacks a snapshot; or it cannot be told
            which of several files is the snapshot, or at which step one was taken.
    """
    search = _Search(None if table is None else Table.read(table))
    if not isinstance(paths, str | Path):
        entries = [_fetched(path) for path in paths]
    elif (root := _fetched(paths)).is_dir() and search.holds_runs(root):
        root = root / "lightning_logs" if (root / "lightning_logs").is_dir() else root
        entries = search.runs_in(root)
        if len(entries) > 1 and len({_without_steps(child.name) for child in entries}) == 1:
            search.remark(f"each child of {root} was taken for a run; if they are steps of one run, give [{root}]")
    else:
        entries = [root]
    if not entries:
        raise CheckpointError(f"no checkpoint in {paths}; expected files {SUFFIXES} or folders of them")
    path, count = Counter(entry.resolve() for entry in entries).most_common(1)[0]
    if count > 1:
        raise CheckpointError(f"paths name {path} {count} times; give each run once")
    runs_of_entries = [search.runs_of(entry) for entry in entries]
    runs = [run for some in runs_of_entries for run in some]
    if len({run.name for run in runs}) < len(runs):  # files of one name in several folders
        runs = [
            replace(run, name=f"{entry}/{run.name}" if len(some) > 1 else str(entry))
            for entry, some in zip(entries, runs_of_entries, strict=True)
            for run in some
        ]
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

    def holds_runs(self, root: Path) -> bool:
        """Whether a folder's children are runs, and not itself one."""
        is_run = is_trial(root) or checkpoints_of_lightning(root) or is_flat_database(root)
        return not is_run and self.weights_of(root) is None

    def runs_in(self, root: Path) -> list[Path]:
        """The children of a folder that are runs; beside trials of Ray Tune nothing else is."""
        children = _visible(root)
        if any(is_trial(child) for child in children):
            for child in children:
                if not is_trial(child) and (child.is_dir() or _looks_like_weights(child)):
                    self.remark(f"{child} was left out: it is no trial, as others beside it are")
            children = [child for child in children if is_trial(child)]
        taken = [child for child in children if is_flat_database(child) or self.snapshots_in(child)]
        return [entry for child in taken for entry in _adapter_files(child) or [child]]

    def runs_of(self, entry: Path) -> list[RunFiles]:
        """The run that a path stands for, or the runs of a database."""
        if not is_flat_database(entry):
            return [self.run_of(entry)]
        runs = []
        for name, entries in runs_of_database(entry).items():
            if not entries:
                raise CheckpointError(f"{entry} names no checkpoint of run {name}")
            seed = int(name) if name.isdigit() else None  # G.pt numbers its runs by their seeds
            snapshots = [
                SnapshotFile(entry / DATABASE, one.inner_step, one.metrics, seed, key=one.key)
                for one in sorted(entries, key=lambda one: one.inner_step)
            ]
            _check_steps(f"run {name} of {entry}", snapshots)
            runs.append(RunFiles(name, tuple(snapshots)))
        return runs

    def run_of(self, entry: Path) -> RunFiles:
        """The run that a path stands for."""
        members = self.snapshots_in(entry)
        if not members:
            raise CheckpointError(f"no checkpoint at {entry}; expected a file {SUFFIXES} or a folder of them")
        folders = [entry.parent] if members == [entry] else [entry, entry.parent]
        table = self.given or Table.beside(folders, self.tables)
        files = {member: self.weights_of(member) or member for member in members}
        record = record_of(entry, members) if entry.is_dir() else Record({}, {})
        for remark in record.remarks if table is None else ():
            self.remark(remark)
        rows = {member: table.row_of(member, path) for member, path in files.items()} if table else record.rows
        known = {member: Known.of(path, rows.get(member, {})) for member, path in files.items()}
        steps = {member: one.inner_step for member, one in known.items()}
        if record.rows and not table:
            steps = self.recorded_steps(entry, files, steps)
        elif members == _adapter_files(entry):
            steps = {entry: 0}  # the number in its name is the run's
        elif all(step is None for step in steps.values()):
            steps = self.steps_from_names(entry, files)
        snapshots = []
        for member, step in steps.items():
            path, one = files[member], known[member]
            if step is None or step < 0:
                raise CheckpointError(f"{path} needs an inner_step of at least 0, got {step}")
            snapshots.append(SnapshotFile(path, step, one.metrics, one.seed, one.sidecar, _adapter_config(path)))
        snapshots.sort(key=lambda snapshot: snapshot.inner_step)
        if len({snapshot.seed for snapshot in snapshots if snapshot.seed is not None}) > 1:
            raise CheckpointError(f"snapshots of {entry} are of different seeds, so of different runs")
        _check_steps(str(entry), snapshots)
        name = repository_of(entry) or (entry.name if entry.is_dir() else entry.stem)
        return RunFiles(name, tuple(snapshots), record.settings)

    def snapshots_in(self, entry: Path) -> list[Path]:
        """The snapshots of a run: the path itself, or the children of a folder, or both; none if it is no run."""
        own = self.weights_of(entry)
        if not entry.is_dir():
            if own is None and _looks_like_weights(entry):
                self.remark(f"{entry} was left out: it is of a kind that cannot be read")
            return [] if own is None else [entry]
        if own is None and (inner := checkpoints_of_lightning(entry)):
            return self.snapshots_in(inner)
        if own is not None and own.name == METADATA and own.parent == entry:
            return [entry]
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
        if (path / "checkpoints").is_file() and _TRIAL_CHECKPOINT.fullmatch(path.name):  # of ModelZooDataset
            found.append(path / "checkpoints")
        found += [path / name / METADATA for name in _SHARDED if (path / name / METADATA).is_file()]
        for other in found[1:]:
            self.remark(f"{other} was left out: there is {found[0].name}")
        return found[0] if found else None

    def recorded_steps(
        self, entry: Path, files: Mapping[Path, Path], recorded: Mapping[Path, int | None]
    ) -> dict[Path, int | None]:
        """Steps that a framework noted; what it says nothing of, or a second model of one step, is left out."""
        steps: dict[Path, int | None] = {}
        for member in sorted(files, key=lambda member: (member == entry, bool(_FINAL.search(member.name)))):
            step = recorded[member]
            is_extra = member == entry or _FINAL.search(member.name)
            if step is None or (is_extra and step in steps.values()):
                why = "its step is not known" if step is None else f"another snapshot is of step {step}"
                self.remark(f"{files[member]} was left out: {why}; a metrics.csv with inner steps takes it in")
            else:
                steps[member] = step
        return steps

    def steps_from_names(self, entry: Path, files: Mapping[Path, Path]) -> dict[Path, int | None]:
        """Step of each snapshot, given its file; a final model of unknown step, or another's step, is left out."""
        final = [member for member in files if member == entry or _FINAL.search(member.name)]
        if len(final) == len(files) > 1:
            final = [member for member in final if member == entry]
        initial = [member for member in files if member not in final and _INITIAL.search(member.name)]
        steps: dict[Path, int | None] = dict.fromkeys(initial, 0)
        numbered = [member for member in files if member not in steps and member not in final]
        for pattern in (*_STEP_WORDS, _LAST_NUMBER):
            matches = [hits[-1] for member in numbered if (hits := [*pattern.finditer(member.name)])]
            values = [_number(match[1]) for match in matches]
            series = {_without_steps(match.string[: match.start()]) for match in matches}
            if pattern is _LAST_NUMBER and len(series) > 1:
                continue
            if len(values) == len(numbered) == len({*values, *steps.values()}) - len(steps):
                steps |= dict(zip(numbered, values, strict=True))
                if len(series) > 1:
                    self.remark(f"names in {entry} differ in more than their steps; give each run a folder of its own")
                break
        else:
            if len(files) > 1:
                self.remark(
                    f"steps of {entry} are not in the names of its snapshots, which were numbered in their order"
                )
            return {member: i for i, member in enumerate(files)}
        for member in final:
            step = _trainer_step(member)
            if step is None and (found := _STEP_WORDS[0].findall(member.name)):
                step = _number(found[-1])
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


def _adapter_config(path: Path) -> Mapping:
    """What says what an adapter's tensors mean: adapter_config.json, or of one of many files NAME_config.json."""
    if path.name.startswith("adapter_model."):
        return json_object(path.parent / "adapter_config.json")
    config = json_object(path.with_name(f"{path.stem}_config.json"))
    return config if "peft_type" in config else {}


def _adapter_files(entry: Path) -> list[Path]:
    """Files of one adapter each: the path itself, or those in a folder."""
    files = _visible(entry) if entry.is_dir() else [entry]
    return [
        file
        for file in files
        if file.name.endswith(SUFFIXES)
        and (file.with_name(f"{file.stem}_config.json")).is_file()
        and _adapter_config(file)
    ]


def _fetched(path: str | Path) -> Path:
    return local_copy(path) if isinstance(path, str) and path.startswith(SCHEME) else Path(path)


def _check_steps(run: str, snapshots: Sequence[SnapshotFile]) -> None:
    taken = [snapshot.inner_step for snapshot in snapshots]
    if len(set(taken)) < len(taken):
        raise CheckpointError(f"snapshots of {run} must have different inner steps, got {taken}")


def _number(text: str) -> int:
    """1500 of "1500" and of "1.5k"."""
    factor = {"k": 1_000, "m": 1_000_000}.get(text[-1].lower())
    return int(text) if factor is None else round(float(text[:-1]) * factor)


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
