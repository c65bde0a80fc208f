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

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from numbers import Integral
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from zoo.ambient import torch_defaults
from zoo.networks.counter_rng import at, streams_of
from zoo.settings import Json, require_same
from zoo.storage.durable import write_state
from zoo.tasks.task import Task
from zoo.training.batches import own_indices, shared_indices
from zoo.training.gradients import Gradients
from zoo.training.inner_step import InnerStep, should_compile
from zoo.training.optimizers import InnerOptimizer, RecordableOptimizer
from zoo.training.precision import products_in
from zoo.training.recorded_steps import MAX_ROWS, RecordedSteps, Row

DEFAULT_NUM_SNAPSHOTS: Final = 21
DEFAULT_MAX_LOSS: Final = 1e4
DEFAULT_CHECKPOINT_EVERY: Final = 500


@dataclass(frozen=True)
class Snapshot:
    """Parameters (N, P) of a population after `inner_step` steps, and which runs have not diverged (N,)."""

    inner_step: int
    params: Tensor
    alive: Tensor


@dataclass(frozen=True)
class Remaining:
    """The networks of a population that continue: their rows, their task and their step."""

    rows: Tensor
    task: Task
    step: InnerStep


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


def last_epoch_steps(num_steps: int, steps_per_epoch: int, num_snapshots: int) -> tuple[int, ...]:
    """Evenly spaced steps within the last epoch, the last of all included.

    Source: how Wang et al. 2025 (arXiv 2501.11587) collect the checkpoints of one network.
    """
    length = min(num_steps, steps_per_epoch)
    if not 1 <= num_snapshots <= length:
        raise ValueError(
            f"the last epoch has {length} steps, so there can be 1 to {length} snapshots; got {num_snapshots}"
        )
    return tuple(num_steps - length + round((k + 1) * length / num_snapshots) for k in range(num_snapshots))


@torch_defaults()
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
    precision: str = "32",
    accumulate: int = 1,
    checkpoint: Path | None = None,
    checkpoint_every: int = DEFAULT_CHECKPOINT_EVERY,
) -> Generator[Snapshot, Remaining | None, None]:
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
        precision: "32", "tf32" or "bf16-mixed", see `zoo.training.precision`.
        accumulate: microbatches into which each minibatch is divided: the same gradient in less memory.
        checkpoint: a file that is written after each snapshot that was taken over, and every `checkpoint_every` steps.
            Where it is there, training continues from it, to the bit, with the first snapshot that was not.
        checkpoint_every: steps.

    Where there is no checkpoint, the networks that continue may be sent at a snapshot.

    Raises:
        ValueError: for arguments out of range, before any training; for a checkpoint of a training that was begun with
            other arguments (task and optimizer are not compared), as it begins.
    """
    check_repeatable(task)
    steps = tuple(quadratic_steps(num_steps) if snapshot_steps is None else snapshot_steps)
    check_snapshot_steps(steps, num_steps)
    if len(seeds) == 0 or not all(isinstance(seed, Integral) and -(2**63) <= seed < 2**63 for seed in seeds):
        raise ValueError(f"seeds must be one or more integers of 64 bits, got {list(seeds)[:4]}")
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")
    if shared_batches:
        indices = shared_indices(data_seed, len(task.dataset.train), batch_size, task.device)
        streams = streams_of([data_seed], task.device)[0]  # (4,)
    else:
        indices = own_indices(seeds, len(task.dataset.train), batch_size, task.device)
        streams = streams_of(seeds, task.device)  # (N, 4)
    params = task.init_runs(seeds, init_scales) if init_params is None else _checked(task, init_params, len(seeds))
    if compile == "auto":
        compile = should_compile(len(seeds) * num_steps, task.device)
    gradients = Gradients(task, precision=precision, accumulate=accumulate, batch_size=batch_size)
    step = InnerStep(gradients, optimizer, compile=bool(compile))
    training = _Training(
        task, step, params, indices, streams, num_steps=num_steps, max_loss=max_loss, precision=precision
    )
    if checkpoint is None:
        return training.snapshots(steps)
    settings: Json = {
        "num_params": task.layout.num_params,
        "seeds": list(map(int, seeds)),
        "num_steps": num_steps,
        "batch_size": batch_size,
        "snapshot_steps": list(steps),
        "shared_batches": shared_batches,
        "data_seed": data_seed,
        "precision": precision,
        "accumulate": accumulate,
    }
    return training.snapshots(steps, _Checkpoint(checkpoint, checkpoint_every, settings))


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


class _Checkpoint(NamedTuple):
    """A file, after how many steps it is written again, and the settings of the training that it is of."""

    path: Path
    every: int
    settings: Json


class _Training:
    """Networks in training, changed in place.

    Attributes:
        alive: (N,) whose losses were never too high.
        inner_step: steps done.

    Args:
        task: what they train on.
        step: how.
        params: (N, P).
        batches: indices of their minibatches.
        streams: (4,) that they share, or (N, 4): what the task's random numbers are drawn from.
        num_steps: of the whole run.
        max_loss: of networks that are alive.
        precision: of products.
    """

    def __init__(
        self,
        task: Task,
        step: InnerStep,
        params: Tensor,
        batches: Iterator[Tensor],
        streams: Tensor,
        *,
        num_steps: int,
        max_loss: float,
        precision: str,
    ) -> None:
        self._task, self._step, self._params, self._batches, self._streams = task, step, params, batches, streams
        self._state = step.optimizer.init_state(task.layout, params)
        self._num_steps, self._max_loss, self._precision = num_steps, max_loss, precision
        self.inner_step = 0
        self._names: list[str] = []
        self.alive = torch.ones(len(params), dtype=torch.bool, device=params.device)
        self._steps = self._recorded()

    @property
    def _has_clock(self) -> bool:
        """Whether the optimizer reads the number of a step from a table on the device."""
        optimizer = self._step.optimizer
        return isinstance(optimizer, RecordableOptimizer) and optimizer.is_recordable

    @property
    def _reads_tables(self) -> bool:
        """Whether all that differs between steps is in tables."""
        return self._step.coefficients is not None or self._has_clock

    def _recorded(self) -> RecordedSteps:
        return RecordedSteps(self._params.device, can_record=self._reads_tables and self._task.is_compilable)

    def snapshots(
        self, steps: Sequence[int], checkpoint: _Checkpoint | None = None
    ) -> Generator[Snapshot, Remaining | None, None]:
        """Train to each of those steps, from the last that was stored."""
        last, num_taken = self._params.clone(), 0
        if checkpoint is not None and checkpoint.path.exists():
            last, num_taken = self._load(checkpoint)
        for wanted in steps[num_taken:]:
            while self.inner_step < wanted:
                every = wanted if checkpoint is None else checkpoint.every
                self._run(until=min(wanted, (self.inner_step // every + 1) * every))
                if checkpoint is not None and self.inner_step < wanted:
                    self._save(checkpoint, last, num_taken)
            alive = self.alive & self._params.isfinite().all(1)
            last = torch.where(alive[:, None], self._params, last)
            remaining = yield Snapshot(wanted, last, alive)
            num_taken += 1
            if remaining is not None:
                self._keep(remaining)
                last = last[remaining.rows]
            if checkpoint is not None:
                self._save(checkpoint, last, num_taken)

    def _keep(self, remaining: Remaining) -> None:
        rows = remaining.rows
        self._task, self._step = remaining.task, remaining.step
        self._params, self.alive = self._params[rows], self.alive[rows]
        self._state = {name: tensor[rows] for name, tensor in self._state.items()}
        if self._streams.ndim > 1:
            self._streams, batches = self._streams[rows], self._batches
            self._batches = (indices[rows] for indices in batches)
        self._steps = self._recorded()

    @torch_defaults()
    def _run(self, until: int) -> None:
        with products_in(self._precision):
            while self.inner_step < until:
                count = min(MAX_ROWS, until - self.inner_step) if self._reads_tables else 1
                self._steps.run(self._take, self._tables(count))
                self.inner_step += count

    def _save(self, checkpoint: _Checkpoint, last: Tensor, num_taken: int) -> None:
        """Write all that is needed to continue, whole or not at all; `last` and `num_taken` come back from `_load`."""
        state = {
            "settings": checkpoint.settings,
            "inner_step": self.inner_step,
            "num_taken": num_taken,
            "params": self._params,
            "last": last,
            "alive": self.alive,
            "optimizer": self._state,
        }
        write_state(checkpoint.path, state)

    def _load(self, checkpoint: _Checkpoint) -> tuple[Tensor, int]:
        """Continue from there: the last sound networks (N, P), and how many snapshots were taken."""
        state = torch.load(checkpoint.path, map_location=self._params.device, weights_only=True)
        require_same(state["settings"], checkpoint.settings, f"the training in {checkpoint.path}")
        self._params.copy_(state["params"])
        self.alive.copy_(state["alive"])
        for name, tensor in self._state.items():
            tensor.copy_(state["optimizer"][name])
        self.inner_step = state["inner_step"]
        next(islice(self._batches, self.inner_step, self.inner_step), None)  # minibatches that have been seen
        return state["last"], state["num_taken"]

    def _tables(self, count: int) -> Row:
        """What the next steps are given.

        Indices (count, B) or (count, N, B), streams (count, 4) or (count, N, 4), coefficients (count, V) or (count, V,
        N, 1), numbers of the steps (count,).
        """
        tables = {"indices": torch.stack([next(self._batches) for _ in range(count)])}
        steps = self.inner_step + torch.arange(count, device=self._params.device)
        if self._task.is_random:
            tables["stream"] = at(self._streams, step=steps.view(-1, *[1] * self._streams.ndim))
        if self._has_clock:
            tables["inner_step"] = steps
        if self._step.coefficients is not None:
            on_host = torch.empty(len(self._params), 0, dtype=self._params.dtype)
            counts = range(self.inner_step, self.inner_step + count)
            made = [self._step.coefficients(step, self._num_steps, on_host) for step in counts]
            self._names = list(made[0])
            table = torch.stack([torch.stack(list(one.values())) for one in made])
            tables["coefficients"] = table.to(self._params.device, non_blocking=True)
        return tables

    def _take(self, row: Row) -> None:
        params = self._params
        batch = self._task.batch(row["indices"].long(), len(params), stream=row.get("stream"))
        if self._step.coefficients is None:
            inner_step = row.get("inner_step", self.inner_step)
            loss = self._step(params, self._state, batch, inner_step=inner_step, num_steps=self._num_steps)
        else:
            coefficients = dict(zip(self._names, row["coefficients"].unbind(), strict=True))
            loss = self._step.with_coefficients(params, self._state, batch, coefficients)
        self.alive.logical_and_(loss <= self._max_loss)  # also False for NaN


def _checked(task: Task, init_params: Tensor, num_networks: int) -> Tensor:
    task.layout.check_vector(init_params)
    if init_params.shape != (num_networks, task.layout.num_params):
        raise ValueError(f"init_params must be of shape ({num_networks}, P), got {tuple(init_params.shape)}")
    return init_params.detach().clone().to(task.device)
