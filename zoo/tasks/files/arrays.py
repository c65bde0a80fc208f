"""Reading and checking arrays that users bring: an .npz file or a Zarr group.

Legend: n examples.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

from zoo.tasks.files.examples import warn_of_large_inputs

_FEW_VALUES: Final = 20
_TWO_ARRAYS = ("x", "y")
_SIX_ARRAYS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")


def load_array_file(path: str | Path) -> dict[str, np.ndarray]:
    """Checked arrays by name: `x`, `y`, or the six of `x_train` ... `y_test`. Inputs are float32, classes int64.

    Nothing is ever unpickled.

    Raises:
        FileNotFoundError: if there is nothing at that path.
        ValueError: if an array is missing, empty, not finite, not numeric, or of the wrong shape.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}; give an .npz file or a Zarr group")
    found = _read_zarr(path) if path.is_dir() else read_npz(path)
    wanted = _SIX_ARRAYS if any(name in found for name in _SIX_ARRAYS) else _TWO_ARRAYS
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(
            f"{path} must hold arrays {', '.join(_TWO_ARRAYS)} or {', '.join(_SIX_ARRAYS)}; "
            f"missing {missing}, found {sorted(found)}"
        )
    named = {name: found[name] for name in wanted}
    for name in wanted[::2]:
        _check_pair(name, named[name], named[name.replace("x", "y", 1)])
    _check_same_kind(named)
    standard = {name: _standard_dtype(name, array) for name, array in named.items()}
    _say_what_is_unusual(standard, str(path))
    return standard


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name, as they are.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is another kind of file, or holds what would have to be unpickled.
    """
    try:
        if path.suffix in (".csv", ".tsv", ".parquet", ".pq"):
            raise ValueError("it is a table, for which there is the task 'table'")
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array; save inputs and targets with numpy.savez(path, x=..., y=...)")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"cannot read {path} as an .npz file of plain arrays: {error}") from error


def _read_zarr(path: Path) -> dict[str, np.ndarray]:
    import zarr

    try:
        group = zarr.open_group(path, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"cannot read {path} as a Zarr group: {error}") from error
    return {name: np.asarray(array[...]) for name, array in group.arrays()}


def _check_pair(name: str, inputs: np.ndarray, targets: np.ndarray) -> None:
    target_name = name.replace("x", "y", 1)
    for key, array in ((name, inputs), (target_name, targets)):
        if array.dtype.kind not in "fiub":
            raise ValueError(f"array {key!r} must be numeric, got dtype {array.dtype}")
        if array.ndim == 0 or array.size == 0:
            raise ValueError(f"array {key!r} must hold one example or more, got shape {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"array {key!r} holds {np.sum(~np.isfinite(array)):,} values that are not finite")
    if len(inputs) != len(targets):
        raise ValueError(
            f"arrays {name!r} and {target_name!r} must be of one length, got {len(inputs)}, {len(targets)}"
        )
    if inputs.ndim < 2:
        raise ValueError(f"array {name!r} must be (examples, ...features), got shape {inputs.shape}")
    if targets.dtype.kind in "iub" and targets.ndim > 2:
        raise ValueError(
            f"array {target_name!r} of integers must be one class per example, or per symbol of sequences (n, L), got "
            f"shape {targets.shape}; use real numbers for regression"
        )
    if targets.dtype.kind == "f" and targets.ndim > 2:
        raise ValueError(f"array {target_name!r} of real numbers must be (n,) or (n, K), got shape {targets.shape}")


def _check_same_kind(named: dict[str, np.ndarray]) -> None:
    for letter in "xy":
        shapes = {name: array.shape[1:] for name, array in named.items() if name.startswith(letter)}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"arrays of all splits must have one shape per example, got {shapes}")
    kinds = {name: array.dtype.kind == "f" for name, array in named.items() if name.startswith("y")}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"targets of all splits must be integers, or all real numbers; real: {kinds}")


def _standard_dtype(name: str, array: np.ndarray) -> np.ndarray:
    is_class = name.startswith("y") and array.dtype.kind in "iub"
    with np.errstate(over="ignore"):
        standard = array.astype(np.int64 if is_class else np.float32)
    if not is_class and not np.isfinite(standard).all():
        raise ValueError(f"array {name!r} holds numbers beyond the range of float32; scale them")
    return standard


def _say_what_is_unusual(named: dict[str, np.ndarray], what: str) -> None:
    """Warn of inputs and targets that are taken as they are, and often meant otherwise."""
    inputs, targets = (next(array for name, array in named.items() if name.startswith(letter)) for letter in "xy")
    warn_of_large_inputs(inputs, what)
    if targets.dtype.kind == "f" and len(values := np.unique(targets)) <= _FEW_VALUES and (values % 1 == 0).all():
        said = f"targets of only {len(values)} values, all whole, as real numbers, which is a regression"
        warnings.warn(f"{what} has {said}: save them as integers if they are classes", stacklevel=3)
    if targets.dtype.kind == "i" and targets.ndim == 1:
        num_classes = max(int(array.max()) for name, array in named.items() if name.startswith("y")) + 1
        if (num_found := len(np.unique(targets))) < num_classes:
            said = f"{num_found:,} classes to train on, numbered up to {num_classes - 1:,}"
            warnings.warn(
                f"{what} has {said}: networks get {num_classes:,} outputs; number the classes from 0 without gaps",
                stacklevel=3,
            )
