"""Training pairs from zoos: a start, a later network of the same run, and the prompt that leads from one to the other.

Batch i follows from (seed, i) alone, so a resumed training sees what an uninterrupted one would have seen.

Legend: R runs, S snapshots, P numbers of one network, M metrics, T task bits, B pairs of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from generator.prompts.prompt import MetricRange, Prompt, is_lower_better, readable
from zoo.networks import symmetry
from zoo.networks.layout import ParamLayout
from zoo.storage.zoo import Zoo

_DEFAULT_MEMORY_BUDGET: Final = 4 * 2**30


@dataclass(frozen=True)
class PairConfig:
    """How pairs are drawn.

    Attributes:
        batch_size: B.
        start_share: share of pairs whose start is given to the model; the others ask for a network from noise.
        initial_share: of those, the share that start at the initial network; the others start at any earlier one.
        stay_share: of the others, the share whose target is the start itself: they teach that a network which meets its
            prompt need not move, for networks that are fed back.
        even_share: share of pairs whose target is the snapshot nearest to a value drawn evenly from the range of the
            metric (the first by name), on the scale on which prompts are read; for zoos whose snapshots crowd.
        prompt_dropout: share of null prompts, which guidance needs.
        metric_dropout: probability with which a metric is left out of a prompt, if there are several.
        start_metric_dropout: share of pairs whose start is given without its metrics.
        permute_units: permute the interchangeable units of start and target in the same way, at random. Chunk tokens
            need it; neuron tokens are equivariant and do not.
    """

    batch_size: int = 64
    start_share: float = 0.5
    initial_share: float = 0.6
    stay_share: float = 0.0
    even_share: float = 0.0
    prompt_dropout: float = 0.05
    metric_dropout: float = 0.3
    start_metric_dropout: float = 0.3
    permute_units: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        for name, value in vars(self).items():
            if name.endswith(("_share", "_dropout")) and not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")

    @property
    def modes(self) -> list[str]:
        """The modes that a model learns: networks from "noise", updates of a "start"."""
        return ["noise"] * (self.start_share < 1) + ["start"] * (self.start_share > 0)


@dataclass(frozen=True)
class PairBatch:
    """B pairs of one zoo.

    Attributes:
        start, target: (B, P) parameters.
        has_start: (B,) 0 or 1: whether the model may see the start.
        prompt: metrics of target and start, task bits.
        runs: (B,) numbers of the runs in their zoo.
        zoo: which of several zoos.
        index: number of the batch, from which its noise is drawn.
    """

    start: Tensor
    target: Tensor
    has_start: Tensor
    prompt: Prompt
    runs: Tensor
    zoo: int
    index: int

    def to(self, device: torch.device | str) -> PairBatch:
        start, target, has_start = (value.to(device) for value in (self.start, self.target, self.has_start))
        return replace(self, start=start, target=target, has_start=has_start, prompt=self.prompt.to(device))


class Trajectories:
    """Snapshots of some runs, with their metrics: one split of a zoo.

    Attributes:
        layout: of the networks.
        num_snapshots: S.
        runs: (R,) numbers of the runs in the zoo.
        metrics: (R, S) by name, NaN where unknown.
        counts: (R,) snapshots that each run has.
        task_bits: (R, T), T = 0 where all runs have the same task.
    """

    def __init__(
        self,
        layout: ParamLayout,
        params: Tensor | Zoo,
        metrics: dict[str, Tensor],
        *,
        runs: Tensor | None = None,
        counts: Tensor | None = None,
        task_bits: Tensor | None = None,
    ) -> None:
        self.layout = layout
        self.metrics = dict(sorted(metrics.items()))
        num_runs, self.num_snapshots = (
            params.shape[:2] if isinstance(params, Tensor) else (params.num_runs, params.num_snapshots)
        )
        self.runs = torch.arange(num_runs) if runs is None else runs
        self.counts = torch.full(self.runs.shape, self.num_snapshots) if counts is None else counts
        self.task_bits = torch.zeros(len(self.runs), 0) if task_bits is None else task_bits
        self._params = params

    @classmethod
    def from_zoo(
        cls,
        zoo: Zoo,
        split: str,
        metrics: Sequence[str],
        *,
        mask_column: str | None = None,
        num_task_bits: int = 0,
        max_runs: int | None = None,
        min_snapshots: int = 2,
        memory_budget: int = _DEFAULT_MEMORY_BUDGET,
    ) -> Trajectories:
        """The runs of a split that did not diverge.

        Args:
            zoo: open zoo.
            split: declared split.
            metrics: names of metrics.
            mask_column: column of runs/ whose bits are the task bits.
            num_task_bits: T.
            max_runs: at most this many, the first ones.
            min_snapshots: that a run must have; two for the update of a start.
            memory_budget: bytes; snapshots that fit are held in memory, others are read when they are drawn.

        Raises:
            ValueError: if no run is left, or the zoo does not record a metric.
        """
        missing = sorted(set(metrics) - set(zoo.spec.metric_names))
        if missing:
            raise ValueError(
                f"the zoo does not record {missing}, only {list(zoo.spec.metric_names)}; choose metrics among these, "
                "or metrics=() for an unconditional generator"
            )
        counts = (zoo.inner_step >= 0).sum(1)
        chosen = zoo.split(split)
        chosen = chosen[counts[chosen] >= min_snapshots][:max_runs]
        if not len(chosen):
            sizes = ", ".join(f"{len(zoo.split(name))} {name}" for name in zoo.spec.splits.fractions)
            raise ValueError(
                f"split {split!r} of the zoo has no run with {min_snapshots} snapshots; runs that are there: {sizes}, "
                f"of up to {int(counts.max(initial=0))} snapshots. A zoo of more runs has some in every split"
            )
        size = len(chosen) * zoo.num_snapshots * zoo.layout.num_params * 4
        params = _load(zoo, chosen) if size <= memory_budget else zoo
        bits = None
        if mask_column is not None:
            masks = torch.from_numpy(zoo.runs[mask_column][chosen].astype(np.int64))
            bits = ((masks[:, None] >> torch.arange(num_task_bits)) & 1).float()
        return cls(
            zoo.layout,
            params,
            {name: torch.from_numpy(zoo.metric(name)[chosen]) for name in metrics},
            runs=torch.from_numpy(chosen),
            counts=torch.from_numpy(counts[chosen]),
            task_bits=bits,
        )

    def __len__(self) -> int:
        return len(self.runs)

    def read(self, rows: Tensor, snapshots: Tensor) -> Tensor:
        """Networks (B, P) of the runs in rows (B,) at snapshots (B,)."""
        if isinstance(self._params, Zoo):
            return torch.from_numpy(self._params.read(torch.stack((self.runs[rows], snapshots), dim=1).numpy()))
        return self._params[rows, snapshots]

    def sample(self, num_networks: int, rng: torch.Generator) -> Tensor:
        """Networks (N, P) drawn uniformly over runs and their snapshots."""
        rows = torch.randint(len(self), (num_networks,), generator=rng)
        snapshots = (torch.rand(num_networks, generator=rng) * self.counts[rows]).long()
        return self.read(rows, snapshots)

    @property
    def has_updates(self) -> bool:
        """Whether a run has two snapshots, so that one can be the start of the other."""
        return bool((self.counts > 1).any())

    def range_of(self, metric: str) -> MetricRange:
        """Smallest and largest finite value of a metric."""
        values = self.metrics[metric]
        finite = values[values.isfinite()]
        if not len(finite):
            raise ValueError(f"metric {metric!r} has no finite value in the training runs")
        return MetricRange(finite.min().item(), finite.max().item())

    def best(self, metric: str) -> float:
        """Median over runs of the best value a run reaches; better prompts ask for what few runs have."""
        values = self.metrics[metric]
        sign = 1 if is_lower_better(metric) else -1
        return sign * (sign * values).where(values.isfinite(), torch.inf).min(1).values.quantile(0.5).item()

    def pairs(self, config: PairConfig, rng: torch.Generator, *, zoo: int = 0, index: int = 0) -> PairBatch:
        """A batch of pairs; the target is later than a start that is given (or is that), and any snapshot otherwise."""
        size = config.batch_size
        rows = torch.randint(len(self), (size,), generator=rng)
        counts = self.counts[rows]
        has_start = (torch.rand(size, generator=rng) < config.start_share) & (counts > 1)
        is_initial = torch.rand(size, generator=rng) < config.initial_share
        first = (torch.rand(size, generator=rng) * (counts - 1)).long().masked_fill(is_initial, 0)
        fraction = torch.rand(size, generator=rng)
        later = first + 1 + (fraction * (counts - 1 - first)).long()
        if config.stay_share:
            stays = (torch.rand(size, generator=rng) < config.stay_share) & ~is_initial
            later = torch.where(stays, first, later)
        target = torch.where(has_start, later, (fraction * counts).long())
        if config.even_share:
            is_even = torch.rand(size, generator=rng) < config.even_share
            earliest = torch.where(has_start, first, -1)
            target = torch.where(is_even, self._evenly(rows, earliest, rng), target)
        prompt = self._prompt(config, rng, rows=rows, first=first, last=target, has_start=has_start)
        networks = torch.stack((self.read(rows, first), self.read(rows, target)), dim=1)  # (B, 2, P)
        if config.permute_units:
            networks = symmetry.apply(self.layout, networks, symmetry.sample(self.layout, size, rng))
        return PairBatch(
            start=networks[:, 0],
            target=networks[:, 1],
            has_start=has_start.float(),
            prompt=prompt,
            runs=self.runs[rows],
            zoo=zoo,
            index=index,
        )

    def _evenly(self, rows: Tensor, earliest: Tensor, rng: torch.Generator) -> Tensor:
        """Snapshots (B,) later than `earliest` (B,), nearest to values drawn evenly from the first metric's range."""
        metric, values = next(iter(self.metrics.items()))
        known = self.range_of(metric)
        scaled = readable(metric, known, values[rows])  # (B, S)
        low, high = (readable(metric, known, torch.tensor(bound)) for bound in (known.low, known.high))
        wanted = low + (high - low) * torch.rand(len(rows), 1, generator=rng)
        gaps = (scaled - wanted).abs().nan_to_num(nan=torch.finfo(scaled.dtype).max)
        snapshots = torch.arange(values.shape[1])
        usable = (snapshots > earliest[:, None]) & (snapshots < self.counts[rows, None])
        return gaps.masked_fill(~usable, math.inf).argmin(1)

    def _prompt(
        self, config: PairConfig, rng: torch.Generator, *, rows: Tensor, first: Tensor, last: Tensor, has_start: Tensor
    ) -> Prompt:
        size, num_metrics = len(rows), len(self.metrics)
        target, start = torch.empty(2, size, num_metrics)
        for column, values in enumerate(self.metrics.values()):
            target[:, column], start[:, column] = values[rows, last], values[rows, first]
        dropped = torch.rand(size, 1, generator=rng) < config.prompt_dropout
        left_out = torch.rand(size, num_metrics, generator=rng) < config.metric_dropout * (num_metrics > 1)
        unknown = (torch.rand(size, 1, generator=rng) < config.start_metric_dropout) | ~has_start[:, None]
        return Prompt(
            target.masked_fill(dropped | left_out, math.nan),
            start.masked_fill(unknown, math.nan),
            self.task_bits[rows].masked_fill(dropped, math.nan),
        )


class PairBatches(Dataset[PairBatch]):
    """Batches number `first` to `first + count` of one or several zoos in turn; an item is a whole batch."""

    def __init__(
        self, trajectories: Sequence[Trajectories], config: PairConfig, *, seed: int, first: int, count: int
    ) -> None:
        self.trajectories = trajectories
        self.config = config
        self.seed = seed
        self.first = first
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> PairBatch:
        index = self.first + item
        zoo = index % len(self.trajectories)
        rng = batch_rng(self.seed, index)
        return self.trajectories[zoo].pairs(self.config, rng, zoo=zoo, index=index)


def batch_rng(seed: int, index: int, stream: int = 0) -> torch.Generator:
    """Generator of random numbers that belongs to batch `index`; streams differ for pairs, noise, and so on."""
    entropy = np.random.SeedSequence((seed, index, stream)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))


def _load(zoo: Zoo, chosen: np.ndarray) -> Tensor:
    """(R, S, P) parameters of the chosen runs, block by block."""
    params = torch.empty(len(chosen), zoo.num_snapshots, zoo.layout.num_params)
    for runs, block in zoo.blocks():
        wanted = np.flatnonzero((chosen >= runs.start) & (chosen < runs.stop))
        params[wanted] = torch.from_numpy(block[chosen[wanted] - runs.start])
    return params
