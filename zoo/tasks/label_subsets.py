"""Binary tasks "is the digit in this subset of the classes?", all of them trainable as one population.

A subset is a mask whose bit c tells whether class c belongs to it. A mask and its complement are nearly the same task
(the sign of the logit), so no split may separate them (see `zoo.storage.splits`).

Legend: N networks, B examples, M masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Final

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
        self.masks = torch.tensor(masks or ALL_MASKS)
        self._runs: tuple[int, ...] | None = None
        self._placed: dict[tuple[int, torch.device], Tensor] = {}
        super().__init__(name, dataset, build, objective, parametrization=parametrization, config=config)

    def for_runs(self, runs: Sequence[int]) -> SubsetTask:
        bound = copy.copy(self)
        bound._runs, bound._placed = tuple(runs), {}
        return bound

    def run_attributes(self, runs: Sequence[int]) -> dict[str, Tensor]:
        """The mask of each run: {"mask": (N,)}."""
        return {"mask": self.masks[torch.as_tensor(runs) % len(self.masks)]}

    def targets_for(self, targets: Tensor, num_networks: int) -> Tensor:
        """Zeros and ones (N, B) from classes (B,) or (N, B)."""
        if self._runs is not None and len(self._runs) != num_networks:
            raise ValueError(f"the task is bound to {len(self._runs)} runs, got {num_networks} networks")
        place = num_networks, targets.device
        if place not in self._placed:  # once, because a recorded step copies nothing from the host
            masks = self.run_attributes(self._runs or range(num_networks))["mask"]
            self._placed[place] = masks.to(targets.device, non_blocking=True)
        return (self._placed[place][:, None] >> targets) & 1
