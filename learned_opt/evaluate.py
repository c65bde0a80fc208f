"""Comparing optimizers: train, measure, and give ratios with their uncertainty.

All methods see the same initialisations and minibatches of a seed. A method with a learning rate to choose is reported
at the best of its settings *for each task and each measure separately*: the most that tuning can give it.

Legend: T inner steps, H settings, S seeds, N = H x S networks (settings outermost), K tasks.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from learned_opt.evaluation_tasks import EvaluationTask
from learned_opt.meta_objective import END_FLOOR, END_SHARE
from learned_opt.rivals import Method, TorchPopulation
from learned_opt.truncated_step import DEFAULT_LOSS_CAP, cap_loss

LOWER_IS_BETTER: Final = ("mean_loss", "final_loss", "val_loss", "val_error")
NUM_CURVE_POINTS: Final = 60
_RESULT_VERSION: Final = 1
_FIRST_SEED: Final = 10_000
_NUM_BOOTSTRAPS: Final = 4000


@dataclass(frozen=True)
class Result:
    """What one method did on one task.

    Args:
        learning_rates: (H,).
        mean_loss: (H, S) training loss averaged over all steps, nats.
        final_loss: (H, S) over the last 5% of the steps.
        val_loss, val_error: (H, S) after the last step, on the validation split.
        curve: (H, points) training loss averaged over seeds and pieces of the run.
        seconds: wall time of a step of one network.
    """

    learning_rates: list[float]
    mean_loss: list[list[float]]
    final_loss: list[list[float]]
    val_loss: list[list[float]]
    val_error: list[list[float]]
    curve: list[list[float]]
    seconds: float

    def measure(self, name: str) -> NDArray[np.float64]:
        """(H, S) values of one of LOWER_IS_BETTER."""
        return np.asarray(getattr(self, name), dtype=np.float64)

    def best(self, name: str) -> int:
        """Setting with the lowest mean over seeds of a measure."""
        return int(self.measure(name).mean(1).argmin())

    def tuned(self, name: str) -> NDArray[np.float64]:
        """(S,) a measure at the setting that is best for it."""
        return self.measure(name)[self.best(name)]


@torch.no_grad()
def train(task: EvaluationTask, method: Method, *, num_seeds: int = 3) -> Result:
    """Train H x S networks of a task by a method."""
    problem, num_settings = task.problem, len(method.learning_rates)
    seeds = torch.arange(_FIRST_SEED, _FIRST_SEED + num_seeds)
    params = problem.init(seeds).repeat(num_settings, 1)  # (N, P)
    lr = torch.tensor(method.learning_rates, dtype=torch.float64).repeat_interleave(num_seeds)
    optimizer = method.make(lr)
    datasets = torch.zeros(num_seeds, dtype=torch.long)
    rng = torch.Generator().manual_seed(_FIRST_SEED)
    state = optimizer.init_state(problem.layout, params)
    losses = torch.empty(task.num_steps, len(params))
    start = time.perf_counter()
    for inner_step in range(task.num_steps):
        examples = torch.rand(num_seeds, problem.batch_size, generator=rng)
        losses[inner_step], grads = problem.flat_loss_and_grad(params, datasets, examples)
        optimizer.update(problem.layout, params, grads, state, inner_step=inner_step, num_steps=task.num_steps)
    seconds = (time.perf_counter() - start) / (task.num_steps * len(params))
    if isinstance(optimizer, TorchPopulation):
        optimizer.finish()
    val_loss, val_error = problem.evaluate(params, datasets)
    curves = cap_loss(losses, DEFAULT_LOSS_CAP).view(task.num_steps, num_settings, num_seeds)
    pieces = torch.stack([piece.mean((0, 2)) for piece in curves.tensor_split(min(NUM_CURVE_POINTS, task.num_steps))])
    num_last = max(1, int(task.num_steps * END_SHARE))

    def by_setting(values: torch.Tensor) -> list[list[float]]:
        return values.reshape(num_settings, num_seeds).tolist()

    return Result(
        learning_rates=list(method.learning_rates),
        mean_loss=by_setting(curves.mean(0)),
        final_loss=by_setting(curves[-num_last:].mean(0)),
        val_loss=by_setting(cap_loss(val_loss, DEFAULT_LOSS_CAP)),
        val_error=by_setting(val_error.nan_to_num(1.0)),
        curve=pieces.T.tolist(),
        seconds=seconds,
    )


Results = dict[str, dict[str, Result]]  # method name -> task name -> result


def evaluate(
    methods: Sequence[Method],
    tasks: Sequence[EvaluationTask],
    *,
    num_seeds: int = 3,
    cache: Path | None = None,
    on_result: Callable[[str, str, Result], None] | None = None,
) -> Results:
    """Results of all methods on all tasks.

    Args:
        methods: with different names.
        tasks: with different names.
        num_seeds: S.
        cache: folder that keeps a file for each result; a rerun computes only what is missing there.
        on_result: called with method name, task name and result as each is known.
    """
    results: Results = {method.name: {} for method in methods}
    for task in tasks:
        for method in methods:
            path = cache and cache / f"{_key(task, method, num_seeds)}.json"
            if path and path.exists():
                result = Result(**json.loads(path.read_text()))
            else:
                result = train(task, method, num_seeds=num_seeds)
                if path:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(asdict(result)))
            results[method.name][task.name] = result
            if on_result:
                on_result(method.name, task.name, result)
    return results


@dataclass(frozen=True)
class Ratio:
    """Geometric mean over tasks of value / reference, with its 95% bootstrap interval over tasks and seeds."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def log_values(results: Mapping[str, Result], tasks: Sequence[str], measure: str) -> NDArray[np.float64]:
    """(K, S) logarithms of a loss, each task at its best setting; final losses count from .001 nats up."""
    floor = END_FLOOR if measure == "final_loss" else 1e-9
    return np.stack([np.log(results[task].tuned(measure) + floor) for task in tasks])


def geometric_ratio(values: NDArray[np.float64], reference: NDArray[np.float64], *, seed: int = 0) -> Ratio:
    """Ratio of losses given as logarithms (K, S).

    Seeds are paired: network i of both began alike and saw the same minibatches.
    """
    estimate, low, high = _bootstrap(values - reference, seed)
    return Ratio(float(np.exp(estimate)), float(np.exp(low)), float(np.exp(high)))


def mean_difference(values: NDArray[np.float64], reference: NDArray[np.float64], *, seed: int = 0) -> Ratio:
    """Mean of value - reference (K, S) with its interval, for accuracies."""
    return Ratio(*_bootstrap(values - reference, seed))


def _bootstrap(differences: NDArray[np.float64], seed: int) -> tuple[float, float, float]:
    """Mean over tasks and seeds, and its 2.5% and 97.5% quantiles under resampling of both."""
    rng = np.random.RandomState(seed)
    num_tasks, num_seeds = differences.shape
    tasks = rng.randint(num_tasks, size=(_NUM_BOOTSTRAPS, num_tasks, 1))
    seeds = rng.randint(num_seeds, size=(_NUM_BOOTSTRAPS, num_tasks, num_seeds))
    means = differences[tasks, seeds].mean((1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def _key(task: EvaluationTask, method: Method, num_seeds: int) -> str:
    data = task.problem.tasks[0].dataset.data_hash
    identity = method.identity or method.name
    parts = (_RESULT_VERSION, task.name, task.problem.name, data, identity, method.learning_rates, num_seeds)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
