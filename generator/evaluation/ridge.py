"""Linear regression from a start to its update: the strongest baseline that knows nothing of networks.

Legend: B networks asked for, N distinct starts, R training runs, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from generator.evaluation.baselines import distinct, initial_networks, networks_at, with_valid_buffers
from generator.evaluation.neighbours import permutations_to
from generator.evaluation.testbed import METRIC
from generator.trajectories import Trajectories
from zoo.networks.symmetry import Permutations, apply, invert

_PENALTIES: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # in units of a start's mean squared norm
_NUM_PROJECTIONS: Final = 64  # of the updates, on which the penalty is chosen
_MAX_RUNS: Final = 4096


@dataclass(frozen=True)
class Ridge:
    """Ridge regression from the start's parameters to the update that reaches the prompted loss, one for each prompt.

    The penalty has the least leave-one-out error. At most 4,096 training runs are used.

    Attributes:
        train: training runs.
        matched: bring all networks to the order of units of one training network first, and the result back.

    Source: leave-one-out residuals: Hastie, Tibshirani and Friedman 2009, "The elements of statistical learning",
    equation 7.64.
    """

    train: Trajectories
    matched: bool = False

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        layout = self.train.layout
        starts, which = distinct(start)
        order = permutations_to(layout, starts, initial_networks(self.train)[0]) if self.matched else {}
        ordered = apply(layout, starts, order) if order else starts
        values, vectors = self._eigen
        kernel = (ordered.double() - self._mean) @ (self._initial - self._mean).T @ vectors  # (N, R)
        results = torch.empty_like(starts[which])
        for asked in prompt[METRIC].unique():
            chosen = prompt[METRIC] == asked
            updates = self._updates_to(asked)
            mean = updates.mean(0)
            shrink = 1 / (values + self._penalty(updates - mean))
            predicted = mean + (kernel * shrink) @ vectors.T @ (updates - mean)  # (N, P)
            networks = ordered + predicted.to(starts)
            networks = apply(layout, networks, invert(order)) if order else networks
            results[chosen] = networks[which[chosen]]
        return with_valid_buffers(layout, results)

    def _updates_to(self, asked: Tensor) -> Tensor:
        """Updates (R, P) of the training runs to a loss ()."""
        rows = torch.arange(len(self._initial))
        targets = networks_at(self.train, rows, asked.expand(len(rows)))
        return (apply(self.train.layout, targets, self._orders) if self._orders else targets).double() - self._initial

    def _penalty(self, updates: Tensor) -> Tensor:
        """Penalty () of the least leave-one-out error on random projections of centred updates (R, P)."""
        values, vectors = self._eigen
        rng = torch.Generator().manual_seed(0)
        projections = torch.randn(updates.shape[1], _NUM_PROJECTIONS, generator=rng, dtype=updates.dtype)
        rotated = vectors.T @ (updates @ projections)
        penalties = values.mean() * torch.tensor(_PENALTIES, dtype=values.dtype)
        errors = []
        for penalty in penalties:
            shrink = 1 / (values + penalty)
            dual = vectors @ (shrink[:, None] * rotated)
            errors.append((dual / (vectors.square() @ shrink)[:, None]).square().mean())
        return penalties[torch.stack(errors).argmin()]

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (R,) and eigenvectors (R, R) of the centred starts' inner products."""
        centred = self._initial - self._mean
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        return values.clamp(min=0), vectors

    @cached_property
    def _orders(self) -> Permutations:
        initial = initial_networks(self.train)[:_MAX_RUNS]
        return permutations_to(self.train.layout, initial, initial[0]) if self.matched else {}

    @cached_property
    def _initial(self) -> Tensor:
        initial = initial_networks(self.train)[:_MAX_RUNS]
        return (apply(self.train.layout, initial, self._orders) if self._orders else initial).double()

    @cached_property
    def _mean(self) -> Tensor:
        return self._initial.mean(0)
