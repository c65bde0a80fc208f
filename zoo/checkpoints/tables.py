"""What is known about checkpoints: tables of steps and metrics, and JSON files beside them.

A table `metrics.csv` or `metrics.json` stands in a run's folder or the folder above. It has a row for each snapshot:
`file` (relative to the table), and if known `inner_step` (or `step`), `seed`, and any metrics. As JSON it is a list of
such rows, or a mapping from file to row. The JSON file beside a snapshot has its name, as `Zoo.export` writes it.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from zoo.checkpoints.tensors import CheckpointError

Row: TypeAlias = Mapping[str, object]

_TABLES: Final = ("metrics.csv", "metrics.json")
_STEP_NAMES: Final = ("inner_step", "step")


@dataclass
class Table:
    """Rows by the resolved path of their file."""

    name: str
    rows: dict[Path, Row]
    used: set[Path] = field(default_factory=set)

    @classmethod
    def read(cls, source: str | Path | Sequence[Row]) -> Table:
        """A table from its file, or from rows whose `file` is a path.

        Raises:
            CheckpointError: if it is unreadable, or a row names no file or one that another row has named.
        """
        if isinstance(source, str | Path):
            name, base, rows = str(source), Path(source).parent, _read_rows(Path(source))
        else:
            name, base, rows = "metrics", Path(), list(source)
        if not all(isinstance(row, Mapping) and row.get("file") for row in rows):
            raise CheckpointError(f"each row of the table {name} must name its `file`")
        by_path: dict[Path, Row] = {}
        for row in rows:
            path = (base / str(row["file"])).resolve()
            if path in by_path:
                raise CheckpointError(f"the table {name} has two rows for {row['file']}")
            by_path[path] = row
        return cls(name, by_path)

    @classmethod
    def beside(cls, folders: Iterable[Path], read: dict[Path, Table]) -> Table | None:
        """The table in the first of some folders that has one; `read` keeps those that were read."""
        for folder in folders:
            there = [folder / name for name in _TABLES if (folder / name).is_file()]
            found = [table for table in there if table.suffix != ".csv" or not is_of_lightning(table)]
            if len(found) > 1:
                raise CheckpointError(f"{folder} holds both {' and '.join(_TABLES)}; keep one of them")
            if found:
                read[found[0]] = read.get(found[0]) or cls.read(found[0])
                return read[found[0]]
        return None

    def row_of(self, *paths: Path) -> Row:
        """The row of a snapshot that has these paths.

        Raises:
            CheckpointError: if there is none.
        """
        for path in paths:
            if path.resolve() in self.rows:
                self.used.add(path.resolve())
                return self.rows[path.resolve()]
        raise CheckpointError(f"the table {self.name} has no row for {paths[0]}; add one, if need be without metrics")

    @property
    def unused(self) -> list[str]:
        return [
            f"row {row['file']!r} of {self.name} was not used"
            for path, row in self.rows.items()
            if path not in self.used
        ]


@dataclass(frozen=True)
class Known:
    """What is known about one snapshot; `sidecar` is the JSON file beside it."""

    inner_step: int | None
    seed: int | None
    metrics: Mapping[str, float]
    sidecar: Mapping

    @classmethod
    def of(cls, path: Path, row: Row) -> Known:
        """From a snapshot's file and its row, which goes before the file beside it.

        Raises:
            CheckpointError: if that cannot be read, or a number is none.
        """
        sidecar = {} if path.suffix == ".json" else json_object(path.with_suffix(".json"))
        run, metrics = (sidecar.get(name) for name in ("run", "metrics"))
        given = {name: value for name, value in row.items() if value != ""}
        known = {**(run if isinstance(run, Mapping) else {}), **sidecar, **given}
        numbers = {**(metrics if isinstance(metrics, Mapping) else {}), **row}
        step = next((known[name] for name in _STEP_NAMES if name in known), None)
        return cls(
            None if step is None else _integer(step, path, "inner_step"),
            None if known.get("seed") is None else _integer(known["seed"], path, "seed"),
            {k: _number(v, path, k) for k, v in numbers.items() if k not in ("file", "seed", *_STEP_NAMES)},
            sidecar,
        )


def is_of_lightning(table: Path) -> bool:
    """Whether a CSV file is that of Lightning's CSVLogger: it has steps, and names no files."""
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        columns = next(csv.reader(file), [])
    return "file" not in columns and {"epoch", "step"} <= set(columns)


def json_object(path: Path) -> dict:
    """Content of a JSON file; empty if there is none, or it holds something else than an object."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return content if isinstance(content, dict) else {}


def _read_rows(path: Path) -> list[Row]:
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                return list(csv.DictReader(file))
        content = json.loads(path.read_text())
        return [{"file": name, **row} for name, row in content.items()] if isinstance(content, dict) else list(content)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise CheckpointError(f"cannot read the table {path}: {error}") from error


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
