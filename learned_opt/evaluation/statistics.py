"""Ratios of losses and differences of accuracy between two methods, with their uncertainty.

Legend: K tasks, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from learned_opt.evaluation.comparison import Result
from learned_opt.meta_training.objective import END_FLOOR
from zoo.networks.metrics import bootstrap_interval

Values = NDArray[np.float64]
ByTask = Mapping[str, Result]  # task name -> result of one method


@dataclass(frozen=True)
class Interval:
    """A measured `value` with its 95% bootstrap interval over tasks and seeds."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def map(self, function: Callable[[float], float]) -> Interval:
        """Value and interval through an increasing function."""
        return Interval(function(self.value), function(self.low), function(self.high))


def compare(results: ByTask, reference: ByTask, tasks: Sequence[str], measure: str) -> Interval:
    """Geometric mean over tasks of a loss relative to the reference's, both tuned for each task."""
    return geometric_ratio(log_values(results, tasks, measure), log_values(reference, tasks, measure))


def accuracy_points(
    results: ByTask, reference: ByTask, tasks: Sequence[str], split: str = "test", *, oracle: bool = False
) -> Interval:
    """Mean over tasks of the difference in accuracy, in percentage points.

    Args:
        results, reference: of two methods.
        tasks: names.
        split: "val" or "test".
        oracle: both at the setting that is best on this very split, instead of the one chosen on the validation split.
    """
    errors = []
    for by_task in (reference, results):
        picked = [by_task[task].oracle if oracle else by_task[task].tuned for task in tasks]
        errors.append(100 * np.stack([pick(f"{split}_error") for pick in picked]))
    return mean_difference(*errors)


def nats_apart(results: ByTask, reference: ByTask, tasks: Sequence[str], measure: str) -> Interval:
    """Mean over tasks of the difference of a loss, both tuned for each task."""
    return mean_difference(
        *(np.stack([by_task[task].tuned(measure) for task in tasks]) for by_task in (results, reference))
    )


def log_values(results: ByTask, tasks: Sequence[str], measure: str) -> Values:
    """(K, S) logarithms of a tuned loss; final losses count from .001 nats up."""
    floor = END_FLOOR if measure == "final_loss" else 1e-9
    return np.stack([np.log(results[task].tuned(measure) + floor) for task in tasks])


def geometric_ratio(values: Values, reference: Values) -> Interval:
    """Ratio of losses given as logarithms (K, S).

    Seeds are paired: network i of both began at the same point and saw the same minibatches.
    """
    return mean_difference(values, reference).map(lambda x: float(np.exp(x)))


def mean_difference(values: Values, reference: Values) -> Interval:
    """Mean of value - reference (K, S), its interval from resampling tasks and the seeds within each."""
    differences = torch.from_numpy(values - reference)
    low, high = bootstrap_interval(differences, torch.Generator().manual_seed(0), nested=True)
    return Interval(float(differences.mean()), low, high)


def diverged(results: ByTask, tasks: Sequence[str]) -> list[str]:
    """Tasks on which a network of the best setting ended above the loss it began with."""
    return [task for task in tasks if results[task].tuned("final_loss").max() > results[task].curve[0][0]]
