"""Which split each example of your own data belongs to, and where examples are kept that are too many for memory.

A split is declared by the data, or follows from a hash of the example's content. Then equal examples are on one side,
and adding examples moves none of the others.

Legend: n examples.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Splits: TypeAlias = "list[tuple[np.ndarray, np.ndarray]]"  # inputs and targets of train, val and test

SPLIT_NAMES: Final = ("train", "val", "test")
FOLDER_NAMES: Final = {"train": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2}
_SHARE: Final = 0.15  # of all examples for validation; the same again for test
_IN_MEMORY: Final = 512 * 2**20  # bytes; larger arrays are mapped files
_ROWS_AT_ONCE: Final = 4096
_LARGE_INPUTS: Final = 30.0


def places(contents: Iterable[bytes | memoryview]) -> NDArray[np.float64]:
    """Numbers (n,) in [0, 1), equal for equal contents."""
    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return (np.frombuffer(digests, ">u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


def row_places(inputs: Iterable[np.ndarray]) -> NDArray[np.float64]:
    """Numbers (n,) in [0, 1) for inputs (n, ...), equal for equal ones."""
    return places(np.ascontiguousarray(row).data.cast("B") for row in inputs)


def complete_splits(declared: Sequence[int] | np.ndarray, place: np.ndarray, what: str) -> NDArray[np.int64]:
    """The split (n,) of each example: 0 train, 1 val, 2 test.

    Of val and test, each that is not declared is taken from train, 15% of all places.

    Args:
        declared: (n,) the same numbers as the data say it; all 0 if they say nothing.
        place: (n,) from `places`.
        what: the data, for messages.

    Raises:
        ValueError: if a split would be empty.
    """
    split = np.array(declared, np.int64)
    taken = {name: not (split == name).any() for name in (1, 2)}
    for name, lower in ((1, 0.0), (2, _SHARE)):
        if taken[name]:
            split[(split == 0) & (place >= lower) & (place < lower + _SHARE)] = name
    for name, kind in enumerate(SPLIT_NAMES):
        if not (split == name).any():
            raise ValueError(
                f"{what}: expected examples for train, val and test, got none for {kind} of "
                f"{len(np.unique(place)):,} different ones; bring more, or declare the splits"
            )
    warn_of_leaks(place, split, what)
    return split


def warn_of_leaks(place: np.ndarray, split: np.ndarray, what: str) -> None:
    """Say how many examples (n,) of val and test are in train, too, as only splits that are declared can have it."""
    num_leaked = int(np.isin(place[split != 0], place[split == 0]).sum())
    if num_leaked:
        warnings.warn(f"{what}: {num_leaked:,} examples of val and test are in train, too", stacklevel=2)


def warn_of_large_inputs(inputs: np.ndarray, what: str) -> None:
    """Say that inputs (n, ...) are far larger than those that networks begin with."""
    size = float(np.sqrt(np.mean(np.square(inputs[:_ROWS_AT_ONCE], dtype=np.float64))))
    if size > _LARGE_INPUTS:
        said = f"inputs of {size:.3g} root mean square, where networks begin with inputs of about 1"
        warnings.warn(f"{what} has {said}: standardise them, and divide pixels of one byte by 255", stacklevel=3)


def split_examples(
    inputs: np.ndarray, targets: np.ndarray, split: np.ndarray, classes: Sequence[object] | None, what: str
) -> Splits:
    """Inputs (n, ...) and targets (n, ...) by split; pixels of one byte become numbers in [0, 1].

    Args:
        split: (n,) from `complete_splits`.
        classes: names of the classes, that targets count; None for real targets.
        what: the data, for messages.

    Raises:
        ValueError: if a class has no example to train on.
    """
    if classes is not None:
        unseen = sorted(set(range(len(classes))) - set(targets[split == 0].tolist()))
        if unseen:
            raise ValueError(
                f"{what}: class {str(classes[unseen[0]])!r} has no example in the train split"
                + (f", nor have {len(unseen) - 1} others" if len(unseen) > 1 else "")
                + "; bring more, declare the splits, or leave it out"
                + ("; if the target is a number, say regression=True" if isinstance(classes[0], float) else "")
            )
    return [(_taken(inputs, np.flatnonzero(split == side)), targets[split == side]) for side in range(3)]


def allocate(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """An array to fill: in memory, or beyond 512 MiB in a file that is mapped, has no name and ends with the array.

    Raises:
        OSError: if the disk of temporary files (TMPDIR) has no room.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size <= _IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):  # a mapped file that finds the disk full kills the process
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            folder = tempfile.gettempdir()
            raise OSError(
                error.errno, f"no room for {size / 1e9:.1f} GB of examples in {folder}; set TMPDIR"
            ) from error
        return np.memmap(file, np.dtype(dtype), "w+", shape=tuple(shape))


def subfolders(folder: Path) -> list[Path]:
    """Visible folders inside a folder, by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def resource_folder(path: str) -> Path:
    """A folder, or a folder inside an installed package whose name its path begins with; nothing is imported.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if (folder := Path(path)).is_dir():
        return folder
    package, *parts = folder.parts
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for location in (spec and spec.submodule_search_locations) or ():
        if (inside := Path(location, *parts)).is_dir():
            return inside
    raise FileNotFoundError(
        f"no folder at {path}, and none in an installed package; install what brings it, or give the folder"
    )


def split_folders(folder: Path) -> list[tuple[int, Path]]:
    """The folders that hold the splits, with their numbers: the folder itself, for train, if it declares none.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if folders of splits stand beside others.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    inside = {entry: FOLDER_NAMES.get(entry.name.lower()) for entry in subfolders(folder)}
    declared = [(split, entry) for entry, split in inside.items() if split is not None]
    if {0} < {split for split, _ in declared} and len(declared) < len(inside):
        others = [entry.name for entry, split in inside.items() if split is None]
        raise ValueError(
            f"{folder}: expected folders of splits (train, val, test) or none of them, got them beside {others}"
        )
    return declared if len(declared) == len(inside) and 0 in inside.values() else [(0, folder)]


def _taken(inputs: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    scales = inputs.dtype == np.uint8
    taken = allocate((len(chosen), *inputs.shape[1:]), np.float32 if scales else inputs.dtype)
    for start in range(0, len(chosen), _ROWS_AT_ONCE):
        rows = inputs[chosen[start : start + _ROWS_AT_ONCE]]
        taken[start : start + len(rows)] = rows / np.float32(255) if scales else rows
    return taken
