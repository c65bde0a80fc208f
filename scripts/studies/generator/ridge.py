"""Linear regression, the strongest baseline that knows nothing of networks: from starts, and from bits of a task.

Legend: B networks asked for, N distinct starts, R training runs, T task bits, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from sklearn.linear_model import Ridge, RidgeCV
from torch import Tensor

from generator.evaluation.baselines import distinct, initial_networks, networks_at, with_valid_buffers
from generator.evaluation.neighbours import permutations_to
from generator.evaluation.testbed import METRIC
from generator.evaluation.unseen_tasks import TaskSampler
from generator.trajectories import Trajectories
from zoo.networks.symmetry import Permutations, apply, invert

_START_PENALTIES: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # in units of a start's mean squared norm
_TASK_PENALTIES: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # for each run
_NUM_PROJECTIONS: Final = 64  # of the updates, on which the penalty is chosen
_MAX_RUNS: Final = 4096
_NUM_MATCHINGS: Final = 6


@dataclass(frozen=True)
class StartRidge:
    """Ridge regression from the start's parameters to the update that reaches the prompted loss, one for each prompt.

    The penalty has the least leave-one-out error. At most 4,096 training runs are used.

    Attributes:
        train: training runs.
        matched: bring all networks to the order of units of one training network first, and the result back.
    """

    train: Trajectories
    matched: bool = False

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        layout = self.train.layout
        starts, which = distinct(start)
        order = permutations_to(layout, starts, initial_networks(self.train)[0]) if self.matched else {}
        ordered = apply(layout, starts, order) if order else starts
        results = torch.empty_like(starts[which])
        for asked in prompt[METRIC].unique():
            chosen = prompt[METRIC] == asked
            updates = self._updates_to(asked)
            model = Ridge(self._penalty(updates), solver="cholesky").fit(self._initial, updates)
            networks = ordered + torch.from_numpy(model.predict(ordered.double().numpy())).to(starts)
            networks = apply(layout, networks, invert(order)) if order else networks
            results[chosen] = networks[which[chosen]]
        return with_valid_buffers(layout, results)

    def _updates_to(self, asked: Tensor) -> np.ndarray:
        """Updates (R, P) of the training runs to a loss ()."""
        rows = torch.arange(len(self._initial))
        targets = networks_at(self.train, rows, asked.expand(len(rows)))
        targets = apply(self.train.layout, targets, self._orders) if self._orders else targets
        return targets.double().numpy() - self._initial

    def _penalty(self, updates: np.ndarray) -> float:
        """Penalty of the least leave-one-out error on random projections of the updates (R, P)."""
        projections = np.random.default_rng(0).normal(size=(updates.shape[1], _NUM_PROJECTIONS))
        scale = np.square(self._initial - self._initial.mean(0)).sum(1).mean()
        return float(RidgeCV(scale * np.array(_START_PENALTIES)).fit(self._initial, updates @ projections).alpha_)

    @cached_property
    def _orders(self) -> Permutations:
        initial = initial_networks(self.train)[:_MAX_RUNS]
        return permutations_to(self.train.layout, initial, initial[0]) if self.matched else {}

    @cached_property
    def _initial(self) -> np.ndarray:
        """(R, P) float64 starts of the training runs."""
        initial = initial_networks(self.train)[:_MAX_RUNS]
        return (apply(self.train.layout, initial, self._orders) if self._orders else initial).double().numpy()


@dataclass(frozen=True)
class TaskRidge:
    """Ridge regression from task bits to parameters, the units of all networks matched.

    Units are matched to a training network first, then five times more to what the regression says of each run's task.
    The penalty has the least leave-one-out error. (Products of bits as further features raise the mean by under a
    point where few tasks are held out, lower the worst task, and fail where most are.)

    Attributes:
        train: training runs.
        asked: val loss of their networks.
    """

    train: Trajectories
    asked: float

    def __call__(self, task_bits: Tensor, asked: Tensor, rng: torch.Generator) -> Tensor:
        return _predicted(self._model, task_bits)

    @cached_property
    def _model(self) -> RidgeCV:
        layout, rows, bits = self.train.layout, torch.arange(len(self.train)), self.train.task_bits
        networks = networks_at(self.train, rows, torch.full((len(rows),), self.asked))
        templates = networks[0]
        for _ in range(_NUM_MATCHINGS):
            networks = apply(layout, networks, permutations_to(layout, networks, templates))
            model = RidgeCV(len(rows) * np.array(_TASK_PENALTIES)).fit(2 * bits.numpy() - 1, networks.numpy())
            templates = _predicted(model, bits)
        return model


@dataclass(frozen=True)
class NearestTask:
    """A random training run among those whose task differs in the fewest bits, at its snapshot nearest to the loss."""

    train: Trajectories

    def __call__(self, task_bits: Tensor, asked: Tensor, rng: torch.Generator) -> Tensor:
        distances = torch.cdist(task_bits, self.train.task_bits, p=1)  # (B, R)
        ties = torch.rand(distances.shape, generator=rng)
        return networks_at(self.train, (distances + ties).argmin(1), asked)


def task_rivals(train: Trajectories) -> dict[str, TaskSampler]:
    """Rivals of a generator of a family of tasks, by the names that they have in tables."""
    return {"matched ridge": TaskRidge(train, train.best(METRIC)), "retrieval": NearestTask(train)}


def _predicted(model: RidgeCV, task_bits: Tensor) -> Tensor:
    return torch.from_numpy(model.predict(2 * task_bits.numpy() - 1)).float()
