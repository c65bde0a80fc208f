"""Columns of tables: CSV, Parquet, and rows that are mappings.

Legend: n rows.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from zoo.lazy import needs

Columns: TypeAlias = "dict[str, np.ndarray]"  # (n,) float64 with NaN, or objects: words, None where one is missing

_MISSING: Final = {"", "na", "n/a", "nan", "null", "none", "?"}


def read_columns(path: str | Path) -> Columns:
    """Columns of a .csv, .tsv or .parquet file by name; numbers where all that is not missing are numbers, else words.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: for Parquet without pyarrow.
        ValueError: for a file that is no table.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no table at {file}; give a .csv, .tsv or .parquet file")
    raw = _read_parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _read_csv(file)
    if not raw or not len(next(iter(raw.values()))):
        raise ValueError(f"{file} has no rows; a table is a .csv, .tsv or .parquet file")
    return {name: column(values) for name, values in raw.items()}


def column(values: list) -> np.ndarray:
    """(n,) float64 if all that is not missing are numbers, else objects: words, and None."""
    cells = [None if value is None or str(value).strip().lower() in _MISSING else value for value in values]
    try:
        return np.array([np.nan if cell is None else float(cell) for cell in cells])
    except (TypeError, ValueError):
        return np.array([None if cell is None else str(cell).strip() for cell in cells], object)


def _read_csv(file: Path) -> Mapping[str, list]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            first = stream.readline()
            delimiter = max(",;\t", key=first.count)
            stream.seek(0)
            header, *rows = [row for row in csv.reader(stream, delimiter=delimiter, strict=True) if row] or [[]]
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {file} as text in UTF-8: {error}; save it in that encoding") from error
    except (csv.Error, ValueError) as error:
        raise ValueError(f"cannot read {file} as a table with a line of names: {error}") from error
    names = [name.strip() for name in header]
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: expected different names of columns in the first line, got {names}")
    for i, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(f"{file}: expected {len(names)} values in each row, got {len(row)} in row {i + 1}")
    return {name: [row[j] for row in rows] for j, name in enumerate(names)}


def _read_parquet(file: Path) -> Mapping[str, list]:
    with needs("Parquet is read by pyarrow", "pyarrow"):
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    try:
        return read_table(file).to_pydict()
    except (ArrowException, OSError) as error:
        raise ValueError(f"cannot read {file} as Parquet: {error}") from error
