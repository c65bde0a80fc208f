"""A reader learns from the snapshots of zoos: weights as input, recorded metrics and hyperparameters as targets.

Legend: B networks, P numbers of one network, Q quantities, R runs, S snapshots.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from generator.prompts.prompt import log_floor
from generator.reading.reader import WeightReader, told_outputs
from generator.reading.statistics import weight_statistics
from generator.training.averaging import AveragedTraining, AveragedTrainingConfig
from generator.training.inputs import opened
from generator.training.pairs import batch_rng
from generator.training.tasks import task_of
from generator.trajectories import Trajectories
from zoo.ambient import torch_defaults
from zoo.devices import resolve_device
from zoo.networks.layout import ParamLayout
from zoo.storage.zoo import Zoo
from zoo.tasks.regression import Regression
from zoo.tasks.task import Task

TOLD: Final = "task_"  # and a number: one of the numbers by which a family describes what a run is to solve
_NETWORKS_FOR_STATISTICS: Final = 4096
_NETWORKS_PER_PASS: Final = 512
_MIN_STD: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class ReaderConfig(AveragedTrainingConfig):
    """How a reader is trained; see `AveragedTrainingConfig` for what is not named here.

    Attributes:
        quantities: metrics and columns of the runs to read, and "task_0", "task_1" ... for the numbers by which a
            family describes its tasks (`Task.describe`); None for all metrics and columns of real numbers that vary.
        num_inputs: that the reader learns, and runs networks on; 0 for a reader of statistics alone.
        width: of its hidden layers.
        coverage: share of intervals that hold the true value.
        batch_size: networks of a batch, each of a random run and snapshot.
    """

    quantities: Sequence[str] | None = None
    num_inputs: int = 128
    width: int = 256
    coverage: float = 0.9
    num_steps: int = 1500
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.coverage < 1:
            raise ValueError(f"coverage must be between 0 and 1, got {self.coverage}")


@torch_defaults()
def train_reader(
    zoos: Zoo | Sequence[Zoo],
    config: ReaderConfig | None = None,
    *,
    out: str | Path | None = None,
    tasks: Sequence[Task | None] | None = None,
    device: str | torch.device = "auto",
) -> WeightReader:
    """A reader of the networks of zoos, on the CPU; written into the folder `out` if there is one.

    Runs of the training split teach it, those of the validation split scale its intervals.

    Args:
        zoos: one or several, of one architecture but for its widths.
        config: all settings; None for the defaults.
        out: a folder for `WeightReader.from_pretrained`.
        tasks: of each zoo, to run networks; default those that the zoos record.
        device: "auto", "cpu", "cuda" ...

    Raises:
        TypeError: for zoos that are not open.
        ValueError: if a zoo has no runs to train or to validate on, or does not record a quantity, or has no task.
        LayoutMismatchError: if the zoos are of different architectures.
    """
    config, zoos = config or ReaderConfig(), opened(zoos)
    place = resolve_device(device)
    if not zoos:
        raise ValueError("a reader learns from at least one zoo, got none")
    quantities = config.quantities or known_quantities(zoos)
    train, val = ([Labelled.of(zoo, split, quantities) for zoo in zoos] for split in ("train", "val"))
    tasks = [None] * len(zoos) if not config.num_inputs else list(tasks or map(task_of, zoos))
    tasks = [None if task is None else task.to(place) for task in tasks]
    reader = _untrained(train, tasks, config)
    nn.Module.to(reader, place)
    training = AveragedTraining(reader, config)
    for step in range(config.num_steps):
        which = step % len(zoos)
        params, values = train[which].draw(config.batch_size, batch_rng(config.seed, step))
        loss = reading_loss(reader, params.to(place), values, train[which].layout, tasks[which])
        training.take_step(step, loss)
    average = training.average
    average.interval.copy_(interval_scales(average, val, tasks, config.coverage))
    nn.Module.to(average, "cpu").eval()
    if out is not None:
        average.save_pretrained(Path(out))
    return average


def reading_loss(
    reader: WeightReader, params: Tensor, values: Mapping[str, Tensor], layout: ParamLayout, task: Task | None
) -> Tensor:
    """Mean absolute error () of standardised quantities, and the likelihood of its size where that is foretold.

    The error's gradient does not pass through the foretold size, which would make little of what is hard to read.
    """
    expected, spread = reader(params, layout, task)
    wanted = reader.standardised(values)
    known = wanted.isfinite()
    error = (expected - wanted.where(known, expected.detach())).abs()
    unlikely = error.detach() / spread + spread.log()  # of a Laplace distribution
    return ((error + unlikely) * known).sum() / known.sum().clamp(min=1)


@dataclass(frozen=True)
class Labelled:
    """Snapshots of the runs of one split, with all that is to be read of each.

    Attributes:
        runs: their networks.
        values: (R, S) by quantity, NaN where unknown.
    """

    runs: Trajectories
    values: dict[str, Tensor]

    @classmethod
    def of(cls, zoo: Zoo, split: str, quantities: Sequence[str]) -> Labelled:
        metrics = [name for name in quantities if name in zoo.spec.metric_names]
        told = told_of_tasks(zoo, quantities)
        known = [*zoo.spec.metric_names, *zoo.spec.columns, *told]
        if unknown := sorted(set(quantities) - set(known)):
            raise ValueError(f"the zoo does not record {unknown}, only {known}")
        runs = Trajectories.from_zoo(zoo, split, metrics, min_snapshots=1)
        of_runs = {name: torch.from_numpy(zoo.runs[name]) for name in zoo.spec.columns} | told
        columns = {
            name: of_runs[name][runs.runs].float()[:, None].expand(-1, runs.num_snapshots)
            for name in quantities
            if name not in metrics
        }
        return cls(runs, {name: ({**runs.metrics, **columns})[name] for name in sorted(quantities)})

    @property
    def layout(self) -> ParamLayout:
        return self.runs.layout

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Random networks (B, P) and their values (B,) by quantity."""
        rows = torch.randint(len(self.runs), (count,), generator=rng)
        snapshots = (torch.rand(count, generator=rng) * self.runs.counts[rows]).long()
        return self.at(rows, snapshots)

    def at(self, rows: Tensor, snapshots: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Networks (B, P) of runs in rows (B,) at snapshots (B,), and their values (B,) by quantity."""
        return self.runs.read(rows, snapshots), {name: known[rows, snapshots] for name, known in self.values.items()}

    def everything(self) -> tuple[Tensor, Tensor]:
        """Rows and snapshots (B,) of all networks."""
        there = torch.arange(self.runs.num_snapshots) < self.runs.counts[:, None]  # (R, S)
        rows, snapshots = there.nonzero(as_tuple=True)
        return rows, snapshots


def told_of_tasks(zoo: Zoo, quantities: Sequence[str]) -> dict[str, Tensor]:
    """By name "task_0", "task_1" ...: the numbers (R,) by which a family describes runs' tasks, if one is asked for."""
    if not any(name.startswith(TOLD) for name in quantities):
        return {}
    return {
        f"{TOLD}{place}": values for place, values in enumerate(task_of(zoo).describe(range(zoo.num_runs)).unbind(1))
    }


def known_quantities(zoos: Sequence[Zoo]) -> list[str]:
    """Metrics and hyperparameters that all zoos record and that vary."""
    names = set.intersection(*({*zoo.spec.metric_names, *_hyperparameters(zoo)} for zoo in zoos))
    found = []
    for name in sorted(names):
        values = np.concatenate(
            [
                np.ravel(zoo.metric(name) if name in zoo.spec.metric_names else zoo.runs[name]).astype(np.float64)
                for zoo in zoos
            ]
        )
        values = values[np.isfinite(values)]
        if len(values) and values.min() < values.max():
            found.append(name)
    return found


def _hyperparameters(zoo: Zoo) -> list[str]:
    """Columns of the runs that hold real numbers; others are names, such as those of tasks."""
    return [name for name, dtype in zoo.spec.columns.items() if dtype.startswith("float")]


def interval_scales(
    reader: WeightReader, runs: Sequence[Labelled], tasks: Sequence[Task | None], coverage: float
) -> Tensor:
    """Factors (Q,) on foretold errors, within which that share of the networks of these runs lies, by quantity."""
    ratios = []
    with torch.no_grad():
        for some, task in zip(runs, tasks, strict=True):
            for rows, snapshots in zip(*(part.split(_NETWORKS_PER_PASS) for part in some.everything()), strict=True):
                params, values = some.at(rows, snapshots)
                expected, spread = reader(params.to(reader.device), some.layout, task)
                ratios.append((expected - reader.standardised(values)).abs() / spread)
    scores = torch.cat(ratios)  # (B, Q)
    rank = min(1.0, math.ceil((len(scores) + 1) * coverage) / len(scores))
    return torch.nanquantile(scores, rank, dim=0)


def _untrained(train: Sequence[Labelled], tasks: Sequence[Task | None], config: ReaderConfig) -> WeightReader:
    """A reader with random weights, standardised on the training runs; its inputs are distributed as the task's."""
    rng = torch.Generator().manual_seed(config.seed)
    drawn = [some.draw(_NETWORKS_FOR_STATISTICS, rng) for some in train]
    task_by_layout = {some.layout: task for some, task in reversed([*zip(train, tasks, strict=True)])}
    examples = tasks[0].dataset.train.inputs if tasks[0] is not None else torch.zeros(1)
    if not examples.is_floating_point():
        raise ValueError("the inputs of the task are symbols, which cannot be learned as numbers are; set num_inputs=0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        reader = WeightReader(
            [layout.to_json() for layout in task_by_layout],
            {name: _floor(name, [some.values[name] for some in train]) for name in train[0].values},
            [_recorded(task) for task in task_by_layout.values()],
            input_shape=None if tasks[0] is None else list(examples.shape[1:]),
            num_outputs=0
            if tasks[0] is None
            else told_outputs(tasks[0], drawn[0][0][:1].to(examples.device), examples[:1]).numel(),
            num_inputs=config.num_inputs,
            width=config.width,
            coverage=config.coverage,
            shares=[name for name in train[0].values if _is_share(name, [some.values[name] for some in train], tasks)],
        )
        if reader.inputs is not None:
            reader.inputs.data.normal_().mul_(examples.std(0).cpu()).add_(examples.mean(0).cpu())
    of_weights = [weight_statistics(some.layout, params) for some, (params, _) in zip(train, drawn, strict=True)]
    of_values = [reader.standardised(values) for _, values in drawn]
    for name, parts in (("statistics", of_weights), ("quantity", of_values)):
        values = torch.cat(parts)
        mean = values.nanmean(0)
        getattr(reader, f"{name}_mean").copy_(mean)
        getattr(reader, f"{name}_std").copy_((values - mean).square().nanmean(0).sqrt() + _MIN_STD)
    return reader


def _recorded(task: Task | None) -> dict[str, Any] | None:
    """What `get_task` makes a task from; None for tasks of adapters, whose base is not part of the reader."""
    return None if task is None or "adapter" in task.config else json.loads(json.dumps(task.config)) or None


def _is_share(name: str, values: Sequence[Tensor], tasks: Sequence[Task | None]) -> bool:
    """Whether a quantity lies between 0 and 1 by its nature: errors of classes and of episodes do."""
    is_distance = any(task is not None and isinstance(task.objective, Regression) for task in tasks)
    return name.endswith("_error") and not is_distance and not any(bool((some > 1).any()) for some in values)


def _floor(name: str, values: Sequence[Tensor]) -> float | None:
    """What is added to a quantity before its logarithm is taken; None for those that are read as they are.

    Losses, and hyperparameters that are positive in all runs, are told apart by ratios, errors and returns by
    differences.
    """
    if name.endswith("loss"):
        return log_floor(name)
    is_metric = name.startswith(("train_", "val_", "test_"))
    return None if is_metric or any(bool((some <= 0).any()) for some in values) else 0.0
