"""`datasets` objects, known by what they do: rows that are mappings, by split or all together.

Legend: n rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from zoo.lazy import needs
from zoo.tasks.files.columns import column
from zoo.tasks.files.examples import (
    FOLDER_NAMES,
    Splits,
    complete_splits,
    row_places,
    split_examples,
    warn_of_large_inputs,
)
from zoo.tasks.files.images import decode
from zoo.tasks.files.tables import TableColumns, encode_table, encode_targets, standardised
from zoo.tasks.files.text import BYTES, document_windows


class Rows(Protocol):
    """What is asked of a `datasets.Dataset`: its length, and row i as a mapping from columns to values."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def read_saved_rows(path: str | Path) -> Rows | Mapping[str, Rows]:
    """What `save_to_disk` of `datasets` has written.

    Raises:
        FileNotFoundError: if there is no such folder.
        ImportError: without `datasets`.
    """
    with needs("this folder is read by datasets", "datasets"):
        from datasets import load_from_disk
    return load_from_disk(str(path))


def encode_rows(
    data: Rows | Mapping[str, Rows],
    inputs: str | Sequence[str],
    target: str | None,
    *,
    size: int | None,
    grayscale: bool,
    context: int,
    what: str,
) -> tuple[Splits, int]:
    """Examples by split and the number of classes, of what the column `inputs` holds.

    Images of pillow become pixels in [0, 1], text without a target windows of bytes, arrays stay; several columns, or
    one of plain numbers or words, are a table.

    Args:
        data: rows by split (train, validation, test), or rows of which splits are made by a hash of their inputs.
        inputs: a column, or several of a table.
        target: column of classes or numbers; None for the next byte of a text.
        size, grayscale: of images, see `read_image_folder`.
        context: of text, L.
        what: the data, for messages.

    Raises:
        ValueError: for columns and splits that there are not, and values that are none of these.
    """
    parts = data if isinstance(data, Mapping) else {"train": data}
    parts = {name: _records(part) for name, part in parts.items()}
    if streamed := [part for part in parts.values() if not hasattr(part, "__len__")]:
        raise ValueError(f"{what}: expected rows with a length, got {type(streamed[0]).__name__}; list(...) makes them")
    unknown = sorted(set(parts) - FOLDER_NAMES.keys())
    if unknown or "train" not in parts:
        raise ValueError(f"{what}: expected splits train, validation and test, got {list(parts)}")
    rows = [part[i] for part in parts.values() for i in range(len(part))]
    declared = [FOLDER_NAMES[name] for name, part in parts.items() for _ in range(len(part))]
    names = [inputs] if isinstance(inputs, str) else list(inputs)
    for name in [*names, *([] if target is None else [target])]:
        if not rows or name not in rows[0]:
            raise ValueError(f"{what}: expected a column {name!r}, got {sorted(rows[0]) if rows else 'no rows'}")
    first = rows[0][names[0]]
    if target is None:
        if not isinstance(first, str) or len(names) > 1:
            raise ValueError(f"{what}: without a target, inputs must be one column of text, got {type(first).__name__}")
        return document_windows([row[names[0]].encode() for row in rows], declared, context, what), BYTES
    labels = column([row[target] for row in rows])
    if len(names) > 1 or isinstance(first, str | int | float):
        columns = {name: column([row[name] for row in rows]) for name in names}
        return encode_table(columns | {target: labels}, TableColumns(target=target, features=names), what, declared)
    if hasattr(first, "convert"):  # an image of pillow
        values = decode([row[names[0]] for row in rows], size, grayscale, [f"row {i}" for i in range(len(rows))])
    else:
        arrays = [np.asarray(row[names[0]]) for row in rows]
        if len(shapes := {array.shape for array in arrays}) > 1:
            raise ValueError(f"{what}: expected arrays of one shape in {names[0]!r}, got {sorted(shapes)[:4]}")
        values = np.stack(arrays)
        values = values if values.dtype == np.uint8 else values.astype(np.float32)
        if values.dtype != np.uint8:
            warn_of_large_inputs(values, what)
    targets, classes = encode_targets({target: labels}, [target], None, what)
    split = complete_splits(declared, row_places(values), what)
    targets = standardised(targets, split == 0) if classes is None else targets
    return split_examples(values, targets, split, classes, what), len(classes or ())


def _records(rows: Any) -> Rows:
    """Rows of a frame of pandas, and others as they are."""
    return rows.to_dict("records") if hasattr(rows, "iloc") else rows
