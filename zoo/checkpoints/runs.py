"""Checkpoints as other tools save them: which files make up a run, at which steps, and what is known about them.

A *snapshot* is a file (.safetensors, .pt, .pth, .bin, .ckpt) or a folder that a library saved one model into
(adapter_model.safetensors with adapter_config.json, model.safetensors, pytorch_model.bin). A *run* is one snapshot, or
a folder of several: its trajectory.

What is known about snapshots stands in a table `metrics.csv` or `metrics.json` in the run's folder or the folder above,
or beside a snapshot file in a JSON file of the same name, as `Zoo.export` writes it. A table has a row for each
snapshot: `file` (relative to the table), and if known `inner_step` (or `step`), `seed`, and any metrics. As JSON it is
a list of such rows, or a mapping from file to row.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias

from zoo.checkpoints.tensors import SUFFIXES, CheckpointError

Row: TypeAlias = Mapping[str, object]

_FOLDER_FILES: Final = ("adapter_model.safetensors", "model.safetensors", "adapter_model.bin", "pytorch_model.bin")
_TABLES: Final = ("metrics.csv", "metrics.json")
_STEP_NAMES: Final = ("inner_step", "step")


@dataclass(frozen=True)
class SnapshotFile:
    """One snapshot: the file of its tensors, and what is known about it.

    `sidecar` is the content of the JSON file beside it, `adapter_config` that of an adapter's adapter_config.json.
    """

    path: Path
    inner_step: int | None
    metrics: Mapping[str, float]
    seed: int | None = None
    sidecar: Mapping = field(default_factory=dict)
    adapter_config: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class RunFiles:
    """A run: its name, and its snapshots in the order of their steps, which are all known."""

    name: str
    snapshots: tuple[SnapshotFile, ...]

    @property
    def steps(self) -> list[int]:
        return [snapshot.inner_step for snapshot in self.snapshots if snapshot.inner_step is not None]


def find_runs(
    paths: str | Path | Iterable[str | Path], table: str | Path | Sequence[Row] | None = None
) -> list[RunFiles]:
    """The runs that paths stand for.

    Args:
        paths: a folder, each child of which is a run; or a snapshot; or several paths, each of which is a run: a
            snapshot, or a folder of snapshots.
        table: a table to use instead of those beside the checkpoints: its file, or rows whose `file` is a path.

    Raises:
        CheckpointError: if there is no checkpoint, or a table is unreadable or lacks a snapshot.
    """
    if not isinstance(paths, str | Path):
        entries = [Path(path) for path in paths]
    elif (root := Path(paths)).is_dir() and not _weights_file(root):
        entries = [child for child in sorted(root.iterdir(), key=_natural_key) if _members(child)]
    else:
        entries = [root]
    if not entries:
        raise CheckpointError(f"no checkpoint in {paths}; expected files {SUFFIXES} or folders of them")
    rows = None if table is None else _table_rows(table)
    return [_run_of(entry, rows) for entry in entries]


def _run_of(entry: Path, given: Mapping[Path, Row] | None) -> RunFiles:
    members = _members(entry)
    if not members:
        raise CheckpointError(f"no checkpoint at {entry}; expected a file {SUFFIXES} or a folder of them")
    if any(entry.glob("*.index.json")) and not _weights_file(entry):
        raise CheckpointError(f"{entry} holds one model cut into several files; merge them into one first")
    is_folder = members != [entry]
    rows = given if given is not None else _rows_beside([entry, entry.parent] if is_folder else [entry.parent])
    snapshots = [_snapshot(member, rows) for member in members]
    if all(snapshot.inner_step is None for snapshot in snapshots):
        steps = _steps_from_names(members) if is_folder else [0]
        snapshots = [replace(snapshot, inner_step=step) for snapshot, step in zip(snapshots, steps, strict=True)]
    for snapshot in snapshots:
        if snapshot.inner_step is None or snapshot.inner_step < 0:
            raise CheckpointError(f"{snapshot.path} needs an inner_step of at least 0, got {snapshot.inner_step}")
    snapshots.sort(key=lambda snapshot: snapshot.inner_step or 0)
    run = RunFiles(entry.name if is_folder else entry.stem, tuple(snapshots))
    if len(set(run.steps)) < len(members):
        raise CheckpointError(f"snapshots of {entry} must have different inner steps, got {run.steps}")
    return run


def _members(entry: Path) -> list[Path]:
    """The snapshots of a run: the path itself, or the children of a folder; none if it is no run."""
    if _weights_file(entry):
        return [entry]
    return sorted(filter(_weights_file, entry.iterdir()), key=_natural_key) if entry.is_dir() else []


def _weights_file(path: Path) -> Path | None:
    """The file with a snapshot's tensors, or None if the path is no snapshot."""
    if path.is_file():
        return path if path.suffix in SUFFIXES else None
    return next((path / name for name in _FOLDER_FILES if (path / name).is_file()), None)


def _snapshot(member: Path, rows: Mapping[Path, Row] | None) -> SnapshotFile:
    path = _weights_file(member) or member
    sidecar = _json_object(path.with_suffix(".json"))
    row: Row = {}
    if rows is not None:
        found = [rows[key] for key in (member.resolve(), path.resolve()) if key in rows]
        if not found:
            raise CheckpointError(f"the table of metrics has no row for {member}; add one, if need be without metrics")
        row = found[0]
    known = {**_section(sidecar, "run"), **sidecar, **{name: value for name, value in row.items() if value != ""}}
    step = next((known[name] for name in _STEP_NAMES if name in known), None)
    columns = {name: value for name, value in row.items() if name not in ("file", "seed", *_STEP_NAMES)}
    metrics = {**_section(sidecar, "metrics"), **columns}
    return SnapshotFile(
        path=path,
        inner_step=None if step is None else _integer(step, path, "inner_step"),
        metrics={name: _number(value, path, name) for name, value in metrics.items()},
        seed=None if known.get("seed") is None else _integer(known["seed"], path, "seed"),
        sidecar=sidecar,
        adapter_config=_json_object(path.parent / "adapter_config.json") if path.stem == "adapter_model" else {},
    )


def _steps_from_names(members: Sequence[Path]) -> list[int]:
    """The last number of each name, if all have one and all are different; else the position."""
    numbers = [re.findall(r"\d+", member.name if member.is_dir() else member.stem) for member in members]
    steps = [int(found[-1]) for found in numbers if found]
    return steps if len(set(steps)) == len(members) else list(range(len(members)))


def _rows_beside(folders: Iterable[Path]) -> dict[Path, Row] | None:
    tables = [folder / name for folder in folders for name in _TABLES if (folder / name).is_file()]
    return _table_rows(tables[0]) if tables else None


def _table_rows(table: str | Path | Sequence[Row]) -> dict[Path, Row]:
    """Rows of a table by the resolved path of their file."""
    if isinstance(table, str | Path):
        base = Path(table).parent
        rows = _read_table(Path(table))
    else:
        base, rows = Path(), list(table)
    if not all(isinstance(row, Mapping) and row.get("file") for row in rows):
        raise CheckpointError(f"each row of the table {table} must name its `file`")
    return {(base / str(row["file"])).resolve(): row for row in rows}


def _read_table(path: Path) -> list[Row]:
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                return list(csv.DictReader(file))
        content = json.loads(path.read_text())
        return [{"file": name, **row} for name, row in content.items()] if isinstance(content, dict) else list(content)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise CheckpointError(f"cannot read the table {path}: {error}") from error


def _json_object(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return content if isinstance(content, dict) else {}


def _section(sidecar: Mapping, name: str) -> Mapping:
    section = sidecar.get(name)
    return section if isinstance(section, Mapping) else {}


def _number(value: object, path: Path, name: str) -> float:
    if value is None or value == "":
        return math.nan
    try:
        return float(str(value))
    except ValueError:
        raise CheckpointError(f"{name} of {path} must be a number, got {value!r}") from None


def _integer(value: object, path: Path, name: str) -> int:
    number = _number(value, path, name)
    if not number.is_integer():
        raise CheckpointError(f"{name} of {path} must be an integer, got {value!r}")
    return int(str(value)) if str(value).lstrip("-").isdigit() else int(number)


def _natural_key(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts step_9 before step_10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", path.name)]
