"""All that decides the numbers of a zoo, before any is computed.

Legend: R runs, N runs of one block, S snapshots, P numbers of one network.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Required, TypedDict, cast

import numpy as np
import torch

from zoo.building.hyperparameters import OPTIMIZER_DEFAULTS, draw, make_optimizer
from zoo.building.starts import Starts
from zoo.networks.initialization import run_seed
from zoo.settings import Json
from zoo.storage.schema import ZooSpec
from zoo.storage.splits import SplitRule
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task
from zoo.training.batches import check_batch_size
from zoo.training.gradients import Gradients, check_accumulate
from zoo.training.inner_step import InnerStep, should_compile
from zoo.training.optimizers import InnerOptimizer
from zoo.training.population import (
    DEFAULT_MAX_LOSS,
    DEFAULT_NUM_SNAPSHOTS,
    Remaining,
    Snapshot,
    check_repeatable,
    check_snapshot_steps,
    last_epoch_steps,
    quadratic_steps,
    train_population,
)
from zoo.training.precision import check_precision

DEFAULT_OPTIMIZER: Final[Mapping[str, Json]] = {"name": "adam", "lr": 0.01}
EVALUATED_SPLITS: Final = ("train", "val", "test")
AUTO: Final = "auto"
DEFAULT_BATCH_SIZE: Final = 64
TOGETHER, LOOP, LOOP_CHANNELS_LAST = EXECUTIONS = ("together", "loop", "loop_channels_last")
BLOCK_MEMORY: Final = 256 * 2**20  # bytes that a block of default size holds
MAX_BLOCK_RUNS: Final = 256  # populations of this size train at full speed
TRAINING_COPIES: Final = 8  # parameters, gradient, optimizer state and temporaries, in units of N * P


class BuildSettings(TypedDict, total=False):
    """The fields of a `BuildPlan`, without its task: the keyword arguments of `build_zoo`."""

    optimizer: Mapping[str, Json] | InnerOptimizer
    optimizer_config: Mapping[str, Json] | None
    search: Mapping[str, Json] | None
    num_runs: Required[int]
    num_steps: Required[int]
    seed: int
    batch_size: int | None
    shared_batches: bool
    init_scale: float | Mapping[str, Sequence[float]]
    init_from: str | None
    num_snapshots: int
    snapshot_steps: Sequence[int] | str | None
    evaluated_splits: Sequence[str]
    max_loss: float
    precision: str
    accumulate: int
    block_size: int | str | None
    execution: str
    dtype: str
    split_fractions: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """All that decides the numbers of a zoo. Every field but `task` is JSON-able; all are recorded.

    Args:
        task: a named one from `get_task`, or one of your own.
        optimizer: options of `make_optimizer`, whose hyperparameters may be ranges, or an InnerOptimizer.
        optimizer_config: what is recorded of an InnerOptimizer.
        search: let Optuna propose what the optimizer's options leave to ranges, and stop runs early: the fields of
            `zoo.building.search.Search`; None for values that each run draws by its own seed.
        num_runs: R.
        num_steps: training steps of each run.
        seed: from which all runs derive theirs.
        batch_size: examples in a minibatch; None for DEFAULT_BATCH_SIZE, or for all of a smaller training split.
        shared_batches: all runs of the zoo see the same minibatches, which is much faster than own ones.
        init_scale: factor on initial matrices, a number or a range as in `zoo.building.hyperparameters`.
        init_from: a zoo or checkpoints that runs start from (`zoo.building.starts`); None for fresh networks.
        num_snapshots: S, quadratically spaced from the initial to the final network.
        snapshot_steps: after which snapshots are taken instead; "last_epoch(50)" for 50 within the last epoch; None for
            `num_snapshots`.
        evaluated_splits: whose loss and error are recorded at each snapshot.
        max_loss: beyond which a run has diverged.
        precision: of forward and backward passes, "32", "bf16-mixed", or "tf32" on CUDA (`zoo.training.precision`).
        accumulate: microbatches into which each minibatch is divided: the same gradient in less memory.
        block_size: runs trained and written together; "auto" for what fits the memory and fills the device; None for
            that on a GPU, and for what fits BLOCK_MEMORY, at most MAX_BLOCK_RUNS, elsewhere. The zoo records it.
        execution: how the runs of a block train: "together" as one batched program, or one after another by the plain
            module, "loop", to which "loop_channels_last" gives images with their channels last. "auto" is the fastest
            (`zoo.building.execution`); the zoo records it.
        dtype: of the stored parameters.
        split_fractions: shares of the runs declared as training and held-out runs.
    """

    task: Task
    optimizer: Mapping[str, Json] | InnerOptimizer = field(default_factory=lambda: dict(DEFAULT_OPTIMIZER))
    optimizer_config: Mapping[str, Json] | None = None
    search: Mapping[str, Json] | None = None
    num_runs: int
    num_steps: int
    seed: int = 0
    batch_size: int | None = None
    shared_batches: bool = True
    init_scale: float | Mapping[str, Sequence[float]] = 1.0
    init_from: str | None = None
    num_snapshots: int = DEFAULT_NUM_SNAPSHOTS
    snapshot_steps: Sequence[int] | str | None = None
    evaluated_splits: Sequence[str] = EVALUATED_SPLITS
    max_loss: float = DEFAULT_MAX_LOSS
    precision: str = "32"
    accumulate: int = 1
    block_size: int | str | None = None
    execution: str = AUTO
    dtype: str = "float32"
    split_fractions: Mapping[str, float] = field(default_factory=lambda: dict(SplitRule().fractions))

    def __post_init__(self) -> None:
        for name in ("num_runs", "num_steps"):
            _check_integer(name, getattr(self, name), at_least=1)
        if self.block_size not in (None, AUTO):
            _check_integer("block_size", self.block_size, at_least=1)
        if self.execution not in (AUTO, *EXECUTIONS):
            raise ValueError(f"execution must be {AUTO!r} or one of {EXECUTIONS}, got {self.execution!r}")
        _check_integer("seed", self.seed)
        check_repeatable(self.task)
        check_batch_size(self.minibatch_size, len(self.task.dataset.train))
        check_snapshot_steps(self.steps, self.num_steps)
        check_precision(self.precision, self.task.device)
        check_accumulate(self.accumulate, self.minibatch_size, self.task)
        if not isinstance(self.max_loss, int | float) or not 0 < self.max_loss < math.inf:
            raise ValueError(f"max_loss must be a finite number above 0, got {self.max_loss!r}")
        if not isinstance(self.shared_batches, bool):
            raise ValueError(f"shared_batches must be true or false, got {self.shared_batches!r}")
        if draw(self.init_scale, [0], "init_scale") < 0:
            raise ValueError(f"init_scale must not be negative, got {self.init_scale!r}")
        if self.init_from is not None and self.init_scale != 1:
            raise ValueError(
                f"init_scale is of fresh networks, got {self.init_scale!r} with init_from={self.init_from!r}"
            )
        unknown = sorted(set(self.evaluated_splits) - set(EVALUATED_SPLITS))
        if unknown or not self.evaluated_splits or len(set(self.evaluated_splits)) < len(self.evaluated_splits):
            raise ValueError(f"evaluated_splits must be some of {EVALUATED_SPLITS}, got {list(self.evaluated_splits)}")
        if isinstance(self.optimizer, Mapping) != (self.optimizer_config is None):
            raise ValueError(
                "optimizer must be a mapping of options such as {'name': 'adam', 'lr': 0.01}, or an InnerOptimizer "
                f"with optimizer_config, to be recorded; got {self.optimizer!r} and {self.optimizer_config!r}"
            )

    @property
    def steps(self) -> tuple[int, ...]:
        """(S,) training steps at which snapshots are taken."""
        if self.snapshot_steps is None:
            return quadratic_steps(self.num_steps, self.num_snapshots)
        if isinstance(self.snapshot_steps, Sequence) and not isinstance(self.snapshot_steps, str):
            return tuple(self.snapshot_steps)
        count = re.fullmatch(r"last_epoch\((\d+)\)", str(self.snapshot_steps))
        if not count:
            raise ValueError(f"snapshot_steps must be steps or such as 'last_epoch(50)', got {self.snapshot_steps!r}")
        return last_epoch_steps(self.num_steps, len(self.task.dataset.train) // self.minibatch_size, int(count[1]))

    def spec(self) -> ZooSpec:
        """The zoo that this plan fills.

        Raises:
            ValueError: for settings that are not possible.
        """
        columns = self.columns(range(1))
        metrics = tuple(f"{split}_{name}" for split in self.evaluated_splits for name in self.task.metric_names)
        training: dict[str, Json] = {
            "num_steps": self.num_steps,
            "batch_size": self.minibatch_size,
            "shared_batches": self.shared_batches,
            "init_scale": cast("Json", self.init_scale),
            "max_loss": self.max_loss,
            "precision": self.precision,
            "accumulate": self.accumulate,
        }
        if self.loops:
            training["execution"] = self.execution
        if self.search is not None:
            training["search"] = dict(self.search)
        if self.starts is not None:
            training["init_from"] = self.starts.digest
        recorded = self.optimizer if isinstance(self.optimizer, Mapping) else self.optimizer_config or {}
        return ZooSpec(
            layout=self.task.layout,
            num_runs=self.num_runs,
            snapshot_steps=self.steps,
            block_size=self.runs_per_block,
            dtype=self.dtype,
            metric_names=metrics,
            columns={name: values.dtype.name for name, values in columns.items()},
            task_config=cast("dict[str, Json]", self.task.description),
            optimizer_config=recorded,
            seed=self.seed,
            splits=SplitRule(self.split_fractions, self.task.split_key),
            data_hash=self.task.dataset.data_hash,
            base_hash=self.task.base_hash,
            extra={"training": training},
        )

    @property
    def defaults(self) -> dict[str, Json]:
        """What settings have that the plan, or the attributes of a zoo, leave out.

        A release that did not record what a task computes is believed to mean this one.
        """
        name = self.optimizer.get("name") if isinstance(self.optimizer, Mapping) else None
        behaviour = {key: value for key, value in self.task.description.items() if key == "behaviour"}
        return {
            "optimizer": OPTIMIZER_DEFAULTS.get(str(name), {}),
            "task": cast("dict[str, Json]", behaviour),
            "extra": {"training": {"precision": "32", "accumulate": 1, "execution": TOGETHER}},
        }

    def as_begun(self, spec: ZooSpec) -> BuildPlan:
        """The plan with what it leaves open as a zoo was begun; a larger number of runs may ask for other blocks."""
        begun = cast("Mapping[str, Json]", spec.extra.get("training", {})).get("execution", TOGETHER)
        return replace(
            self,
            block_size=spec.block_size if self.block_size in (None, AUTO) else self.block_size,
            execution=str(begun) if self.execution == AUTO else self.execution,
        )

    @property
    def runs_per_block(self) -> int:
        """`block_size` if it is a number, else runs that fit BLOCK_MEMORY with all their snapshots."""
        if isinstance(self.block_size, int):
            return self.block_size
        run_bytes = 4 * self.task.layout.num_params * (len(self.steps) + TRAINING_COPIES)
        return max(1, min(MAX_BLOCK_RUNS, BLOCK_MEMORY // run_bytes, self.num_runs))

    @property
    def minibatch_size(self) -> int:
        """`batch_size` if it is given, else DEFAULT_BATCH_SIZE, or as many examples as there are if that is fewer."""
        if self.batch_size is not None:
            return self.batch_size
        return min(DEFAULT_BATCH_SIZE, len(self.task.dataset.train))

    @property
    def loops(self) -> bool:
        """Whether the runs of a block train one after another."""
        return self.execution in (LOOP, LOOP_CHANNELS_LAST)

    def task_for(self, runs: Sequence[int]) -> Task:
        """The task of those runs, as they are executed."""
        task = self.task.for_runs(runs)
        return task.by_module(channels_last=self.execution == LOOP_CHANNELS_LAST) if self.loops else task

    def seeds(self, runs: Sequence[int]) -> list[int]:
        """Seed of each run, a function of the zoo's seed and the run's number alone."""
        return [run_seed(self.seed, run) for run in runs]

    @property
    def starts(self) -> Starts | None:
        """Networks that runs start from, if they are given."""
        return None if self.init_from is None else Starts(self.init_from, self.task)

    def initial_params(self, runs: Sequence[int]) -> torch.Tensor:
        """(N, P) where those runs start, on the task's device."""
        if self.starts is not None:
            return self.starts.params(runs).to(self.task.device)
        return self.task.init_runs(self.seeds(runs), self.init_scales(runs))

    def optimizer_for(self, runs: Sequence[int]) -> InnerOptimizer:
        """Optimizer with the hyperparameters of those runs."""
        if isinstance(self.optimizer, Mapping):
            return make_optimizer(self.optimizer, self.seeds(runs))[0]
        return self.optimizer

    def population(
        self, runs: Sequence[int], task: Task | None = None, **changes: Any
    ) -> Generator[Snapshot, Remaining | None, None]:
        """Those runs in training, on their own task unless another is given; see `train_population`."""
        settings: dict[str, Any] = {
            "num_steps": self.num_steps,
            "batch_size": self.minibatch_size,
            "snapshot_steps": self.steps,
            "shared_batches": self.shared_batches,
            "data_seed": self.seed,
            "max_loss": self.max_loss,
            "precision": self.precision,
            "accumulate": self.accumulate,
        }
        optimizer, seeds = self.optimizer_for(runs), self.seeds(runs)
        return train_population(task or self.task_for(runs), optimizer, seeds, **settings | changes)

    def step_for(self, runs: Sequence[int], task: Task) -> InnerStep:
        """An uncompiled step of those runs on their task."""
        size = self.minibatch_size
        gradients = Gradients(task, precision=self.precision, accumulate=self.accumulate, batch_size=size)
        return InnerStep(gradients, self.optimizer_for(runs))

    def init_scales(self, runs: Sequence[int]) -> torch.Tensor | float:
        """Factors on the initial matrices, one or (N,)."""
        if isinstance(self.init_scale, Mapping):
            return draw(self.init_scale, self.seeds(runs), "init_scale")
        return float(self.init_scale)

    def columns(self, runs: Sequence[int]) -> dict[str, np.ndarray]:
        """What differs between runs beside their seeds, by name, each (N,) float64 or int64."""
        values: dict[str, torch.Tensor] = {}
        if isinstance(self.optimizer, Mapping):
            values |= make_optimizer(self.optimizer, self.seeds(runs))[1]
        if isinstance(self.init_scale, Mapping):
            values["init_scale"] = draw(self.init_scale, self.seeds(runs), "init_scale")
        values |= self.task.run_attributes(runs)
        kinds = {name: np.float64 if value.is_floating_point() else np.int64 for name, value in values.items()}
        return {name: value.cpu().numpy().astype(kinds[name]) for name, value in values.items()}

    def compiles(self, runs: Sequence[int]) -> bool:
        """Whether a block's training is compiled: decided for the whole zoo, so that resuming changes no bit.

        A last block of another size is not worth a compilation of its own.
        """
        full = len(runs) == min(self.num_runs, self.runs_per_block)
        return full and should_compile(self.num_runs * self.num_steps, self.task.device)

    def __getstate__(self) -> dict:
        """A named task travels to other processes as its options."""
        state = dict(self.__dict__)
        task = self.task
        if task.config:
            if '"base": "sha256:' in (config := json.dumps(task.config)):
                raise ValueError(
                    "the base of the adapters is in memory; for other processes give a file or a zoo as base"
                )
            state["task"] = (config, str(task.device), task.dataset.data_hash, task.base_hash)
        return state

    def __setstate__(self, state: dict) -> None:
        if isinstance(state["task"], tuple):
            state["task"] = _named_task(*state["task"])
        self.__dict__.update(state)


def _check_integer(name: str, value: object, *, at_least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or (at_least is not None and value < at_least):
        kind = "an integer" if at_least is None else "a positive integer"
        raise ValueError(f"{name} must be {kind}, got {value!r}")


@lru_cache(2)
def _named_task(config: str, device: str, data_hash: str, base_hash: str) -> Task:
    """The same object for all blocks of a worker process, which keeps its data and compiled programs."""
    task = get_task(**json.loads(config))
    if (task.dataset.data_hash, task.base_hash) != (data_hash, base_hash):
        raise ValueError(
            f"the data or the base of task {task.name!r} have changed while the zoo was built; restore them"
        )
    return task.to(device)
