"""A zoo of which only some runs and snapshots are seen, without copying it.

What is left out cannot be read: the snapshots that are left follow one another, as if no others had been taken.

Legend: R runs, S snapshots, P numbers of one network, B pairs asked for.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from torch import Tensor

from zoo.storage.zoo import Zoo


class SelectedZoo(Zoo):
    """View of a zoo.

    Args:
        zoo: open zoo.
        runs: which runs are usable and belong to splits: their numbers, or a mask (R,); default all.
        keep: (R, S) which snapshots are seen; default all.

    Raises:
        ValueError: if `keep` is not of shape (R, S).
        IndexError: for runs that the zoo does not have.
    """

    def __init__(self, zoo: Zoo, *, runs: np.ndarray | None = None, keep: np.ndarray | None = None) -> None:
        super().__init__(zoo.group, zoo.spec, zoo.shards)
        shape = self.spec.shape[:2]
        keep = np.ones(shape, bool) if keep is None else np.asarray(keep, bool)
        if keep.shape != shape:
            raise ValueError(f"keep must be of shape {shape}, runs x snapshots, got {keep.shape}")
        keep = keep & (zoo.inner_step >= 0)
        self._zoo = zoo
        self._runs = np.arange(shape[0]) if runs is None else np.unique(np.arange(shape[0])[runs])
        self._order = np.argsort(~keep, axis=1, kind="stable")  # snapshots that are kept come first
        self._is_there = np.arange(shape[1]) < keep.sum(1, keepdims=True)

    @cached_property
    def inner_step(self) -> np.ndarray:
        return self._selected(self._zoo.inner_step, -1)

    def metric(self, name: str) -> np.ndarray:
        return self._selected(self._zoo.metric(name), np.nan)

    def usable_runs(self, *, include_diverged: bool = False) -> np.ndarray:
        return np.intersect1d(self._zoo.usable_runs(include_diverged=include_diverged), self._runs)

    def read(self, pairs: np.ndarray | Tensor | list) -> np.ndarray:
        pairs = self._checked_pairs(np.asarray(pairs))
        runs, snapshots = pairs.T
        params = self._zoo.read(np.stack([runs, self._order[runs, snapshots]], axis=1))
        params[~self._is_there[runs, snapshots]] = np.nan
        return params

    def _selected(self, values: np.ndarray, missing: float) -> np.ndarray:
        return np.where(self._is_there, np.take_along_axis(values, self._order, 1), missing).astype(values.dtype)


def evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """At most that many of the rows, evenly spaced, first and last among them."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)] if len(rows) else rows
