"""A zoo's parameters as an array that is read where it is indexed.

Legend: R runs, S snapshots, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from zoo.storage.zoo import Zoo


class ParamsView:
    """Array-like view (R, S, P) of a zoo's parameters in float32; only what is asked for is read."""

    ndim = 3
    dtype = np.dtype(np.float32)

    def __init__(self, zoo: Zoo) -> None:
        self._zoo = zoo
        self.shape = zoo.spec.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<params of a zoo: {self.shape} (run, snapshot, param) float32>"

    def __iter__(self) -> Iterator[np.ndarray]:
        """Parameters (S, P) of one run after the other."""
        return (self[run] for run in range(len(self)))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """All parameters in memory, as NumPy's functions ask for them."""
        if copy is False:
            raise ValueError("a zoo's parameters are read into new memory; copy=False is not possible")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: object) -> np.ndarray:
        """Parameters by run and snapshot, as in NumPy: integers, slices, arrays, masks; then entries of the vector.

        Raises:
            IndexError: outside the zoo, for new axes, or for arrays of entries beside arrays of runs or snapshots.
        """
        parts = _without_ellipsis([part for one in _as_tuple(key) for part in _parts(one)])
        picks_entries = len(parts) > 2 and not isinstance(parts[2], slice | Integral)
        if picks_entries and not all(isinstance(part, slice) for part in parts[:2]):
            raise IndexError("an array of entries stands beside slices of runs and snapshots alone; index in two steps")
        grid = self.shape[:2]
        runs = np.broadcast_to(np.arange(grid[0])[:, None], grid)[tuple(parts[:2])]
        snapshots = np.broadcast_to(np.arange(grid[1]), grid)[tuple(parts[:2])]
        rows = self._zoo.read(np.stack([runs, snapshots], axis=-1).reshape(-1, 2))
        return rows.reshape(*np.shape(runs), self.shape[2])[(..., *parts[2:])]


def _as_tuple(key: object) -> tuple:
    return key if isinstance(key, tuple) else (key,)


def _parts(part: object) -> list:
    """One part of an index, or the two arrays that a mask of runs and snapshots stands for."""
    if part is Ellipsis or (isinstance(part, slice | Integral) and not isinstance(part, bool)):
        return [part]
    array = np.asarray(part)
    if array.size == 0 and array.dtype == np.float64:  # an empty list
        array = array.astype(np.int64)
    if part is None or array.dtype.kind not in "iub" or (array.ndim == 0 and array.dtype == bool):
        raise IndexError(f"parameters are indexed by integers, slices, arrays of integers and masks, got {part!r}")
    if array.dtype == bool and array.ndim == 2:
        return list(array.nonzero())
    return [int(array) if array.ndim == 0 else array]


def _without_ellipsis(parts: list) -> list:
    """An index whose ellipsis, if there is one, is replaced by the slices that it stands for."""
    at = [i for i, part in enumerate(parts) if part is Ellipsis]
    if len(at) > 1 or len(parts) - len(at) > ParamsView.ndim:
        raise IndexError(f"an index has at most {ParamsView.ndim} parts and one ellipsis, got {len(parts)} parts")
    if not at:
        return parts
    missing = [slice(None)] * (ParamsView.ndim - len(parts) + 1)
    return [*parts[: at[0]], *missing, *parts[at[0] + 1 :]]
