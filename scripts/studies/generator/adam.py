"""Adam as a baseline: how many of its steps one update is worth, and what extrapolating its first steps would reach.

The learning rate is constant in a run and chosen for each number of steps, on starts of training runs.

Legend: N starts, L learning rates, S numbers of steps, K prompts, B networks asked for, P numbers of one network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor

from generator.alignment import measured
from generator.evaluation.baselines import distinct, with_valid_buffers
from generator.evaluation.testbed import METRIC
from zoo.networks.metrics import LOG_RANGE
from zoo.operations.extrapolation import main_direction
from zoo.tasks.task import Task
from zoo.training.optimizers import Adam
from zoo.training.population import train_population

LEARNING_RATES: Final = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
_DATA_SEED: Final = 2**31 - 1  # an order of the data that no zoo has
_PROBE_STEPS: Final = (5, 10, 15, 20)
_NUM_FACTORS: Final = 40
_MAX_FACTOR: Final = 100.0


@dataclass(frozen=True)
class TunedAdam:
    """The best learning rate for each number of steps.

    Attributes:
        task: to train on.
        steps: (S,) ascending numbers of steps, the first 0.
        learning_rates: (S,) of the least mean log val loss after that many steps.
        log_loss: (S,) that mean.
        batch_size: examples of a step.
    """

    task: Task
    steps: tuple[int, ...]
    learning_rates: tuple[float, ...]
    log_loss: tuple[float, ...]
    batch_size: int = 64

    def train(self, starts: Tensor, wanted: Iterable[int]) -> dict[int, Tensor]:
        """Networks (N, P) by position in `steps`, each trained with its own learning rate for its number of steps."""
        found: dict[int, Tensor] = {}
        positions = sorted(wanted)
        for rate in sorted({self.learning_rates[i] for i in positions}):
            chosen = [i for i in positions if self.learning_rates[i] == rate]
            steps = [self.steps[i] for i in chosen]
            snapshots = _snapshots(self.task, starts, [rate], steps, batch_size=self.batch_size)
            found |= {i: networks[0].clone() for i, networks in zip(chosen, snapshots, strict=True)}
        return found


@dataclass(frozen=True)
class AdamCurve:
    """What tuned Adam reaches from unseen starts.

    Attributes:
        steps: (S,) numbers of steps.
        learning_rates: (S,) tuned.
        val_loss, test_error: (N, S).
        seconds_per_step: wall time of one step of one network, trained as one of a population.
    """

    steps: tuple[int, ...]
    learning_rates: tuple[float, ...]
    val_loss: Tensor
    test_error: Tensor
    seconds_per_step: float

    def equivalent_steps(self, losses: Tensor) -> Tensor:
        """Steps (...) after which mean log val loss is as low as `losses` (...); infinite if it never is."""
        return _steps_to(self.steps, _mean_log(self.val_loss), losses.log())

    def equivalent_steps_by_error(self, errors: Tensor) -> Tensor:
        """Steps (...) after which mean test error is as low as `errors` (...); infinite if it never is."""
        return _steps_to(self.steps, self.test_error.mean(0), errors)


@dataclass(frozen=True)
class AdamSteps:
    """As many steps of tuned Adam as on average reach the prompt."""

    tuned: TunedAdam

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        starts, which = distinct(start)
        gaps = torch.tensor(self.tuned.log_loss) - prompt[METRIC].log().unsqueeze(1)
        positions = gaps.abs().argmin(1)  # (B,)
        found = self.tuned.train(starts, sorted(set(positions.tolist())))
        return torch.stack([found[int(i)][row] for i, row in zip(positions, which, strict=True)])


@dataclass(frozen=True)
class RankOneExtrapolation:
    """Twenty steps of tuned Adam, then on along the main direction of the path, by a factor that depends on the prompt.

    Attributes:
        tuned: learning rates.
        calibration: (N, P) starts of training runs, on which the factor of each prompt is fitted.
    """

    tuned: TunedAdam
    calibration: Tensor

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        starts, which = distinct(start)
        gaps = self._log_loss - prompt[METRIC].log().unsqueeze(1)  # (B, factors)
        factors = self._factors[gaps.abs().argmin(1)]
        networks = starts[which] + factors.unsqueeze(1) * self._direction(starts)[which]
        return with_valid_buffers(self.tuned.task.layout, networks)

    @property
    def _factors(self) -> Tensor:
        return torch.cat((torch.zeros(1), torch.logspace(-1, math.log10(_MAX_FACTOR), _NUM_FACTORS)))

    @cached_property
    def _log_loss(self) -> Tensor:
        """Mean log val loss of the calibration starts by factor."""
        direction = self._direction(self.calibration)
        task = self.tuned.task
        losses = [
            measured(task, with_valid_buffers(task.layout, self.calibration + factor * direction), "val")["loss"]
            for factor in self._factors
        ]
        return torch.stack([_mean_log(loss) for loss in losses])

    def _direction(self, starts: Tensor) -> Tensor:
        """Main direction (N, P) of the paths, as long as what the paths cover along it."""
        position = int(np.searchsorted(self.tuned.steps, _PROBE_STEPS[-1]))
        rate = self.tuned.learning_rates[min(position, len(self.tuned.steps) - 1)]
        snapshots = _snapshots(self.tuned.task, starts, [rate], _PROBE_STEPS, batch_size=self.tuned.batch_size)
        path = torch.stack([networks[0] - starts for networks in snapshots], dim=1)  # (N, probes, P)
        main = main_direction(path)  # (N, P)
        return main * (path[:, -1] * main).sum(1, keepdim=True)


def tune_adam(
    task: Task,
    starts: Tensor,
    *,
    max_steps: int = 1000,
    num_counts: int = 25,
    learning_rates: Sequence[float] = LEARNING_RATES,
    batch_size: int = 64,
) -> TunedAdam:
    """Tune the learning rate for each of about `num_counts` numbers of steps, log-spaced up to `max_steps`.

    Args:
        task: to train on.
        starts: (N, P) of training runs.
        max_steps: most steps.
        num_counts: how many numbers of steps.
        learning_rates: L candidates.
        batch_size: examples of a step.
    """
    steps = (0, *sorted({round(step) for step in np.geomspace(1, max_steps, num_counts)}))
    snapshots = _snapshots(task, starts, learning_rates, steps, batch_size=batch_size)
    losses = [measured(task, networks.flatten(0, 1), "val")["loss"].view(networks.shape[:2]) for networks in snapshots]
    table = _mean_log(torch.stack(losses).movedim(2, 0))  # (S, L)
    best = table.min(1)
    rates = [learning_rates[i] for i in best.indices.tolist()]
    return TunedAdam(task, steps, tuple(rates), tuple(best.values.tolist()), batch_size)


def adam_curve(tuned: TunedAdam, starts: Tensor) -> AdamCurve:
    """Losses after each number of steps from starts (N, P), and the time of a step."""
    positions = range(len(tuned.steps))
    began = time.perf_counter()
    networks = tuned.train(starts, positions)
    seconds = time.perf_counter() - began
    longest = dict(zip(tuned.learning_rates, tuned.steps, strict=True))  # by rate
    val, test = ([measured(tuned.task, networks[i], split) for i in positions] for split in ("val", "test"))
    return AdamCurve(
        tuned.steps,
        tuned.learning_rates,
        torch.stack([values["loss"] for values in val], dim=1),
        torch.stack([values["error"] for values in test], dim=1),
        seconds / (sum(longest.values()) * len(starts)),
    )


def _snapshots(
    task: Task, starts: Tensor, learning_rates: Sequence[float], steps: Sequence[int], *, batch_size: int
) -> Iterator[Tensor]:
    """Networks (L, N, P) after each number of steps."""
    rates = torch.tensor(learning_rates, device=task.device).repeat_interleave(len(starts))
    snapshots = train_population(
        task,
        Adam(lr=rates),
        range(len(rates)),
        num_steps=steps[-1],
        batch_size=batch_size,
        snapshot_steps=steps,
        data_seed=_DATA_SEED,
        init_params=starts.repeat(len(learning_rates), 1),
    )
    for snapshot in snapshots:
        yield snapshot.params.unflatten(0, (len(learning_rates), len(starts))).to(starts.device)


def _mean_log(losses: Tensor) -> Tensor:
    """Mean over networks of the log losses: (N, ...) -> (...)."""
    return losses.nan_to_num(nan=torch.inf).log().clamp(*LOG_RANGE).mean(0)


def _steps_to(steps: Sequence[int], curve: Tensor, values: Tensor) -> Tensor:
    """Interpolated number of steps at which the running minimum of a curve (S,) comes down to values (...)."""
    lowest = curve.cummin(0).values.flip(0).cpu().double().numpy()
    positions = np.log1p(np.asarray(steps, dtype=np.float64))[::-1]
    found = np.expm1(np.interp(values.cpu().double().numpy(), lowest, positions, left=np.inf))
    return torch.from_numpy(np.atleast_1d(found)).view(values.shape)
