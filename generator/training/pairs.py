"""Training pairs: a start, a later network of the same run, and the prompt that leads from one to the other.

Batch i follows from (seed, i) alone, so a resumed training sees what an uninterrupted one would have seen. All is drawn
on the CPU, whatever the device.

Legend: S snapshots, P numbers of one network, M metrics, B pairs of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from generator.prompts.prompt import Prompt, readable
from generator.trajectories import Trajectories
from zoo.networks import symmetry


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
        runs: (B,) numbers of the runs in their zoo, always on the CPU.
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
        """The batch on the device that the model is on, without waiting for it."""
        parts = (self.start, self.target, self.has_start)
        start, target, has_start = (part.to(device, non_blocking=True) for part in parts)
        prompt = self.prompt.to(device, non_blocking=True)
        return replace(self, start=start, target=target, has_start=has_start, prompt=prompt)


def numbered_batch(runs: Sequence[Trajectories], config: PairConfig, seed: int, index: int) -> PairBatch:
    """Batch `index` of a training on one or several zoos, which take turns."""
    zoo = index % len(runs)
    return draw_pairs(runs[zoo], config, batch_rng(seed, index), zoo=zoo, index=index)


def batch_rng(seed: int, index: int, stream: int = 0) -> torch.Generator:
    """Generator of random numbers that belongs to batch `index`; streams differ for pairs and for noise."""
    entropy = np.random.SeedSequence((seed, index, stream)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))


def draw_pairs(
    runs: Trajectories, config: PairConfig, rng: torch.Generator, *, zoo: int = 0, index: int = 0
) -> PairBatch:
    """A batch of pairs; the target is later than a start that is given (or is that), and any snapshot otherwise."""
    size = config.batch_size

    def happens(share: float, *more: int) -> Tensor:
        return torch.rand(size, *more, generator=rng) < share

    # Which runs, and which two snapshots of each.
    rows = torch.randint(len(runs), (size,), generator=rng)
    counts = runs.counts[rows]
    has_start = happens(config.start_share) & (counts > 1)
    is_initial = happens(config.initial_share)
    first = (torch.rand(size, generator=rng) * (counts - 1)).long().masked_fill(is_initial, 0)
    fraction = torch.rand(size, generator=rng)
    later = first + 1 + (fraction * (counts - 1 - first)).long()
    if config.stay_share:
        later = torch.where(happens(config.stay_share) & ~is_initial, first, later)
    last = torch.where(has_start, later, (fraction * counts).long())
    if config.even_share:
        is_even = happens(config.even_share)
        last = torch.where(is_even, _evenly(runs, rows, torch.where(has_start, first, -1), rng), last)

    # What is asked of the target and known of the start, some of it left out.
    known = torch.full((2, size, len(runs.metrics)), math.nan)
    for column, values in enumerate(runs.metrics.values()):
        known[:, :, column] = values[rows, torch.stack((last, first))]
    target, start = known  # (B, M)
    dropped = happens(config.prompt_dropout, 1)
    left_out = happens(config.metric_dropout * (len(runs.metrics) > 1), len(runs.metrics))
    unknown = happens(config.start_metric_dropout, 1) | ~has_start[:, None]
    prompt = Prompt(
        target.masked_fill(dropped | left_out, math.nan),
        start.masked_fill(unknown, math.nan),
        runs.task_bits[rows].masked_fill(dropped, math.nan),
    )

    networks = torch.stack((runs.read(rows, first), runs.read(rows, last)), dim=1)  # (B, 2, P)
    if config.permute_units:
        networks = symmetry.apply(runs.layout, networks, symmetry.sample(runs.layout, size, rng))
    return PairBatch(networks[:, 0], networks[:, 1], has_start.float(), prompt, runs.runs[rows], zoo, index)


def _evenly(runs: Trajectories, rows: Tensor, earliest: Tensor, rng: torch.Generator) -> Tensor:
    """Snapshots (B,) later than `earliest` (B,), nearest to values drawn evenly from the first metric's range."""
    metric, values = next(iter(runs.metrics.items()))
    known = runs.range_of(metric)
    scaled = readable(metric, known, values[rows])  # (B, S)
    low, high = (readable(metric, known, torch.tensor(bound)) for bound in (known.low, known.high))
    wanted = low + (high - low) * torch.rand(len(rows), 1, generator=rng)
    gaps = (scaled - wanted).abs().nan_to_num(nan=torch.finfo(scaled.dtype).max)
    snapshots = torch.arange(values.shape[1])
    usable = (snapshots > earliest[:, None]) & (snapshots < runs.counts[rows, None])
    return gaps.masked_fill(~usable, math.inf).argmin(1)
