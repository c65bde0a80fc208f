"""What a generator of a family of tasks must beat: answers to task bits that copy or regress the training runs.

Legend: B networks asked for, R training runs, T task bits, F features, P numbers of one network.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import torch
from torch import Tensor

from generator.evaluation.baselines import networks_at
from generator.evaluation.neighbours import permutations_to
from generator.trajectories import Trajectories
from zoo.networks.symmetry import apply

_PENALTIES: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # in units of the features' mean squared norm
_NUM_MATCHINGS: Final = 6


class TaskSampler(Protocol):
    """Makes networks for tasks."""

    def __call__(self, task_bits: Tensor, asked: Tensor, rng: torch.Generator) -> Tensor:
        """Networks (B, P) for task bits (B, T) and val losses (B,)."""
        ...


@dataclass(frozen=True)
class NearestTask:
    """A random training run among those whose task differs in the fewest bits, at its snapshot nearest to the loss."""

    train: Trajectories

    def __call__(self, task_bits: Tensor, asked: Tensor, rng: torch.Generator) -> Tensor:
        distances = torch.cdist(task_bits, self.train.task_bits, p=1)  # (B, R)
        ties = torch.rand(distances.shape, generator=rng)
        return networks_at(self.train, (distances + ties).argmin(1), asked)


@dataclass(frozen=True)
class TaskRidge:
    """Ridge regression from task bits to parameters, the units of all networks matched.

    Units are matched to a training network first, then five times more to what the regression says of each run's task.
    The penalty has the least leave-one-out error. (Products of bits as further features raise the mean by under a
    point where few tasks are held out, lower the worst task, and fail where most are.)

    Attributes:
        train: training runs.
        asked: val loss of their networks.

    Source: leave-one-out residuals: Hastie, Tibshirani and Friedman 2009, "The elements of statistical learning",
    equation 7.64.
    """

    train: Trajectories
    asked: float

    def __call__(self, task_bits: Tensor, asked: Tensor, rng: torch.Generator) -> Tensor:
        return (bit_features(task_bits) @ self._coefficients).float()

    @cached_property
    def _coefficients(self) -> Tensor:
        """(F, P)."""
        layout, rows = self.train.layout, torch.arange(len(self.train))
        networks = networks_at(self.train, rows, torch.full((len(rows),), self.asked))
        features = bit_features(self.train.task_bits)
        templates = networks[0]
        for _ in range(_NUM_MATCHINGS):
            networks = apply(layout, networks, permutations_to(layout, networks, templates))
            coefficients = _ridge(features, networks.double())
            templates = (features @ coefficients).float()
        return coefficients


def bit_features(task_bits: Tensor) -> Tensor:
    """One, and the signs of the bits: (B, F) float64 from (B, T)."""
    signs = 2 * task_bits.double() - 1
    return torch.cat((torch.ones_like(signs[:, :1]), signs), dim=1)


def _ridge(features: Tensor, targets: Tensor) -> Tensor:
    """Coefficients (F, P) of targets (R, P) on features (R, F), the first of which, a constant, is not shrunk."""
    shrunk = torch.ones(features.shape[1], dtype=features.dtype)
    shrunk[0] = 0
    answers, errors = [], []
    for penalty in _PENALTIES:
        gram = features.T @ features + penalty * len(features) * torch.diag(shrunk)
        answers.append(torch.linalg.solve(gram, features.T @ targets))
        leverage = (torch.linalg.solve(gram, features.T) * features.T).sum(0)  # (R,)
        errors.append(((targets - features @ answers[-1]) / (1 - leverage)[:, None]).square().mean())
    return answers[int(torch.stack(errors).argmin())]
