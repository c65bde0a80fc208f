"""Binary tasks "is the digit in this subset of the classes?", all of them trainable as one population.

A subset is a mask whose bit c tells whether class c belongs to it. A mask and its complement are nearly the same task
(the sign of the logit), so no split may separate them.

Legend: N networks, B examples, M masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from zoo.tasks.datasets import Dataset
from zoo.tasks.objectives import Objective
from zoo.tasks.task import Task

NUM_CLASSES: Final = 10
ALL_MASKS: Final = tuple(range(1, 2**NUM_CLASSES - 1))  # neither the empty nor the whole set


class SubsetTask(Task):
    """Network j of a population trains on `masks[runs[j] % M]`; `runs` are 0, 1, 2 ... unless `for_runs` says else.

    Args:
        masks: M masks, all 1,022 by default.
        Others: as for Task.
    """

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        build: Callable[[], nn.Module],
        objective: Objective,
        *,
        parametrization: str = "sp",
        config: Mapping[str, object] | None = None,
        masks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(name, dataset, build, objective, parametrization=parametrization, config=config)
        self.masks = torch.tensor(masks or ALL_MASKS)
        self._runs: tuple[int, ...] | None = None

    def for_runs(self, runs: Sequence[int]) -> SubsetTask:
        bound = copy.copy(self)
        bound._runs = tuple(runs)
        return bound

    def run_attributes(self, runs: Sequence[int]) -> dict[str, Tensor]:
        """The mask of each run: {"mask": (N,)}."""
        return {"mask": self.masks[torch.as_tensor(runs) % len(self.masks)]}

    def targets_for(self, targets: Tensor, num_networks: int) -> Tensor:
        """Zeros and ones (N, B) from classes (B,) or (N, B)."""
        if self._runs is not None and len(self._runs) != num_networks:
            raise ValueError(f"the task is bound to {len(self._runs)} runs, got {num_networks} networks")
        masks = self.run_attributes(self._runs or range(num_networks))["mask"].to(targets.device)
        return (masks[:, None] >> targets) & 1


def split_masks(*, val: float, test: float, seed: int) -> dict[str, tuple[int, ...]]:
    """Masks of "train", "val" and "test", in increasing order, mask and complement always on the same side.

    Args:
        val, test: shares of the 511 pairs.
        seed: of the order in which pairs are dealt.

    Raises:
        ValueError: if the shares are negative or leave nothing to train on.
    """
    if min(val, test) < 0 or val + test >= 1:
        raise ValueError(f"val and test must be shares >= 0 of less than 1 together, got {val} and {test}")
    whole = 2**NUM_CLASSES - 1
    pairs = [(mask, whole - mask) for mask in ALL_MASKS if mask < whole - mask]
    order = np.random.RandomState(seed).permutation(len(pairs))
    num_val, num_test = round(val * len(pairs)), round(test * len(pairs))
    dealt = np.split(order, [num_val, num_val + num_test])
    named = zip(("val", "test", "train"), dealt, strict=True)
    return {name: tuple(sorted(mask for i in part for mask in pairs[i])) for name, part in named}
