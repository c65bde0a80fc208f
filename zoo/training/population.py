"""Training N networks as one batched program, with snapshots on the way.

Run i is a function of the zoo's seed and of i: its own seed gives its initial parameters, its hyperparameters and, with
own batches, its order of the data, masks of dropout and augmentations; with shared batches these are functions of the
zoo's seed and the step. Divergence of one run does not touch the others.

On one machine, with one number of threads and the same choice of compiling, a population repeats bit for bit. What its
size or the threads may change is the order in which matrix products are summed, so across those runs agree to rounding
(MLPs were bitwise equal for all sizes tried on x86; compiled programs change their last bits with the threads).

Legend: N networks, P numbers of one network, S snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Final

import torch
from torch import Tensor

from zoo.networks.counter_rng import at, streams_of
from zoo.tasks.task import Task
from zoo.training.batches import own_indices, shared_indices
from zoo.training.inner_step import InnerStep, should_compile
from zoo.training.optimizers import InnerOptimizer

DEFAULT_NUM_SNAPSHOTS: Final = 21
DEFAULT_MAX_LOSS: Final = 1e4


@dataclass(frozen=True)
class Snapshot:
    """Parameters (N, P) of a population after `inner_step` steps, and which runs have not diverged (N,)."""

    inner_step: int
    params: Tensor
    alive: Tensor


def quadratic_steps(num_steps: int, num_snapshots: int = DEFAULT_NUM_SNAPSHOTS) -> tuple[int, ...]:
    """Increasing steps from 0 to `num_steps`, quadratically spaced: dense where training is fast.

    There are fewer than `num_snapshots` where early ones would coincide.
    """
    are_integers = isinstance(num_steps, Integral) and isinstance(num_snapshots, Integral)
    if not are_integers or num_steps < 1 or num_snapshots < 2:
        raise ValueError(
            f"num_steps must be an integer >= 1 and num_snapshots one >= 2, got {num_steps} and {num_snapshots}"
        )
    last = num_snapshots - 1
    return tuple(sorted({round(num_steps * (k / last) ** 2) for k in range(num_snapshots)}))


def train_population(
    task: Task,
    optimizer: InnerOptimizer,
    seeds: Sequence[int],
    *,
    num_steps: int,
    batch_size: int = 64,
    snapshot_steps: Sequence[int] | None = None,
    shared_batches: bool = True,
    data_seed: int = 0,
    init_scales: Tensor | float = 1.0,
    init_params: Tensor | None = None,
    max_loss: float = DEFAULT_MAX_LOSS,
    compile: bool | str = "auto",
) -> Iterator[Snapshot]:
    """Snapshots of N networks in training, as training reaches them.

    Args:
        task: what to train on, bound to its runs where that matters (`task.for_runs`).
        optimizer: how; hyperparameters may differ between networks.
        seeds: N seeds, one a run (`run_seed(zoo_seed, i)`).
        num_steps: number of steps.
        batch_size: examples in a minibatch.
        snapshot_steps: increasing steps from 0 to `num_steps`; by default 21, quadratically spaced.
        shared_batches: all networks see one minibatch, drawn from `data_seed`: several times faster than own ones,
            which each run draws from its own seed.
        data_seed: of all that runs with shared batches share, the zoo's seed.
        init_scales: factor on the initial matrices and embeddings, one or (N,).
        init_params: (N, P) to start from instead of fresh networks.
        max_loss: a run whose minibatch loss exceeds it, or is not finite, has diverged: from then on its snapshots
            repeat the last one before.
        compile: True, False, or "auto": when N * num_steps is worth the ten seconds that it takes.

    Raises:
        ValueError: for arguments out of range, before any training.
    """
    check_repeatable(task)
    steps = tuple(quadratic_steps(num_steps) if snapshot_steps is None else snapshot_steps)
    check_snapshot_steps(steps, num_steps)
    if len(seeds) == 0 or not all(isinstance(seed, Integral) and -(2**63) <= seed < 2**63 for seed in seeds):
        raise ValueError(f"seeds must be one or more integers of 64 bits, got {list(seeds)[:4]}")
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")
    num_train = len(task.dataset.train)
    if shared_batches:
        indices = shared_indices(data_seed, num_train, batch_size, task.device)
        streams = streams_of([data_seed], task.device)[0]  # (4,)
    else:
        indices = own_indices(seeds, num_train, batch_size, task.device)
        streams = streams_of(seeds, task.device)  # (N, 4)
    params = task.init_runs(seeds, init_scales) if init_params is None else _checked(task, init_params, len(seeds))
    if compile == "auto":
        compile = should_compile(len(seeds) * num_steps, task.device)
    step = InnerStep(task, optimizer, compile=bool(compile))

    def snapshots() -> Iterator[Snapshot]:
        state = optimizer.init_state(task.layout, params)
        alive = torch.ones(len(params), dtype=torch.bool, device=params.device)
        last, inner_step = params.clone(), 0
        for snapshot_step in steps:
            while inner_step < snapshot_step:
                stream = at(streams, step=inner_step) if task.is_random else None
                batch = task.batch(next(indices), len(params), stream=stream)
                loss = step(params, state, batch, inner_step=inner_step, num_steps=num_steps)
                alive = alive & (loss <= max_loss)  # also False for NaN
                inner_step += 1
            alive = alive & params.isfinite().all(1)
            last = torch.where(alive[:, None], params, last)
            yield Snapshot(inner_step, last, alive)

    return snapshots()


def check_repeatable(task: Task) -> None:
    """Raise ValueError unless runs of the task follow from their seeds and parameters alone."""
    if task.flaw is not None:
        raise ValueError(f"the module of task {task.name!r} cannot be a population: {task.flaw}")


def check_snapshot_steps(steps: Sequence[int], num_steps: int) -> None:
    """Raise ValueError unless there are steps, and they increase from 0 or later to `num_steps` or earlier."""
    increases = all(earlier < later for earlier, later in pairwise(steps))
    are_integers = all(isinstance(step, Integral) for step in steps)
    if not steps or not are_integers or not increases or steps[0] < 0 or steps[-1] > num_steps:
        raise ValueError(f"snapshot_steps must be integers that increase within 0 ... {num_steps}, got {tuple(steps)}")


def _checked(task: Task, init_params: Tensor, num_networks: int) -> Tensor:
    task.layout.check_vector(init_params)
    if init_params.shape != (num_networks, task.layout.num_params):
        raise ValueError(f"init_params must be of shape ({num_networks}, P), got {tuple(init_params.shape)}")
    return init_params.detach().clone().to(task.device)
