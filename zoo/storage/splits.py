"""Run-level splits that a zoo declares: each run's side follows from a hash, whatever the number of runs or blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SplitRule:
    """Shares of the runs by split name, and the column of runs/ whose hash decides.

    Runs with equal values in that column fall on the same side, so a task that must not leak from one split into
    another is kept together by its own number.
    """

    fractions: Mapping[str, float] = field(default_factory=lambda: {"train": 0.9, "val": 0.05, "test": 0.05})
    key: str = "seed"

    def __post_init__(self) -> None:
        values = list(self.fractions.values())
        if not values or min(values) < 0 or not math.isclose(sum(values), 1):
            raise ValueError(f"fractions of splits must be non-negative and sum to 1, got {dict(self.fractions)}")

    def members(self, name: str, keys: np.ndarray) -> np.ndarray:
        """Whether each run belongs to a split.

        Args:
            name: of the split.
            keys: (R,) int64, the column `self.key`.

        Raises:
            KeyError: for a split that is not declared.
        """
        if name not in self.fractions:
            raise KeyError(f"no split {name!r}; the zoo declares {list(self.fractions)}")
        names = sorted(self.fractions)  # tools may reorder JSON keys: their order must not matter
        bounds = np.cumsum([0.0, *(self.fractions[name] for name in names)])
        bounds[-1] = np.inf
        place = uniform_hash(keys)
        position = names.index(name)
        return (place >= bounds[position]) & (place < bounds[position + 1])  # (R,)

    def to_dict(self) -> dict:
        return {"fractions": dict(self.fractions), "key": self.key, "hash": "splitmix64"}

    @classmethod
    def from_dict(cls, data: Mapping) -> SplitRule:
        if data["hash"] != "splitmix64":
            raise ValueError(f"hash of splits must be 'splitmix64', got {data['hash']!r}")
        return cls(dict(data["fractions"]), data["key"])


def uniform_hash(keys: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), one for each integer, that look independent and uniform.

    The finalizer of SplitMix64 on key + the golden gamma; its upper 53 bits make the fraction.

    Args:
        keys: integers of any shape.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 14 (variant 13).
    """
    with np.errstate(over="ignore"):
        z = keys.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
