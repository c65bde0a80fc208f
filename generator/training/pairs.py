"""Training pairs: a start, a later network of the same run, and the prompt that leads from one to the other.

Batch i follows from (seed, i) alone, so a resumed training sees what an uninterrupted one would have seen. All is drawn
on the CPU, whatever the device.

Legend: S snapshots, P numbers of one network, M metrics, B pairs of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from generator.prompts.examples import FEWEST, MOST
from generator.prompts.prompt import Prompt, readable
from generator.trajectories import Trajectories
from zoo.networks import symmetry
from zoo.settings import check_options

MADE_UP_RUNS: Final = 2**31  # the first number of runs that no zoo has


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
        num_examples: fewest and most examples of a prompt, between which a number is drawn for each batch, evenly on
            a logarithmic scale; None for a training without. Examples without a metric ask for the end of a run.
        examples_dropout: share of prompts that are not given examples, in a training on examples, or not told the task
            in words, in one on descriptions.
        label_dropout: share of the sets of examples that are given without their labels.
        share_without_targets: share of pairs that are of no run: a task made up by a family without end, and the
            function-space loss alone.
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
    num_examples: Sequence[int] | None = None
    examples_dropout: float = 0.05
    label_dropout: float = 0.0
    share_without_targets: float = 0.0
    permute_units: bool = False

    def __post_init__(self) -> None:
        shares = [name for name in vars(self) if name.endswith(("_share", "_dropout", "_targets"))]
        check_options(vars(self), type(self), positive=("batch_size",), shares=shares)
        if self.num_examples is not None:
            limits = list(self.num_examples) if isinstance(self.num_examples, Sequence) else []
            are_whole = all(isinstance(number, Integral) and not isinstance(number, bool) for number in limits)
            if not (len(limits) == 2 and are_whole and FEWEST <= limits[0] <= limits[1] <= MOST):
                raise ValueError(
                    f"num_examples must be fewest and most, integers from {FEWEST} to {MOST}, got {self.num_examples!r}"
                )
        elif self.share_without_targets:
            raise ValueError("share_without_targets needs examples in prompts, which tell made-up tasks apart")

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
        has_target: (B,) 0 or 1: whether the target is a network of the pair's run, 0 for runs that are made up.
        has_examples: (B,) bool: whether the prompt is given examples of the run's task.
        has_labels: (B,) bool: whether with their labels.
        num_examples: of each prompt; 0 in a training without.
        prompt: metrics of target and start, task bits.
        runs: (B,) numbers of the runs in their zoo, always on the CPU.
        zoo: which of several zoos.
        index: number of the batch, from which its noise is drawn.
    """

    start: Tensor
    target: Tensor
    has_start: Tensor
    has_target: Tensor
    has_examples: Tensor
    has_labels: Tensor
    num_examples: int
    prompt: Prompt
    runs: Tensor
    zoo: int
    index: int

    def to(self, device: torch.device | str) -> PairBatch:
        """The batch on the device that the model is on, without waiting for it."""
        parts = {
            name: value for name, value in vars(self).items() if name not in ("runs", "zoo", "index", "num_examples")
        }
        return replace(self, **{name: part.to(device, non_blocking=True) for name, part in parts.items()})


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
    chosen = _draw_snapshots(runs, config, rng)
    prompt = _draw_prompt(runs, chosen, config, rng)
    # What is shown of the task. Examples or words without a metric ask for the best there is: the end of the run.
    has_examples, has_labels = torch.zeros(2, size, dtype=torch.bool)
    num_examples, last = 0, chosen.last
    if config.num_examples is not None:
        has_examples = ~_happens(config.examples_dropout, rng, size)
        has_labels = ~_happens(config.label_dropout, rng, size)
        fewest, most = (math.log(count) for count in config.num_examples)
        num_examples = round(math.exp(fewest + (most - fewest) * float(torch.rand((), generator=rng))))
    if runs.descriptions is not None:
        said = runs.descriptions.draw(chosen.rows, rng)
        is_said = ~_happens(config.examples_dropout, rng, size) & ~chosen.is_made_up
        prompt = replace(prompt, description=torch.where(is_said[:, None], said, math.nan))
    last = torch.where((has_examples | prompt.shows_task) & ~prompt.asks_metric, runs.counts[chosen.rows] - 1, last)
    networks = torch.stack((runs.read(chosen.rows, chosen.first), runs.read(chosen.rows, last)), dim=1)  # (B, 2, P)
    if config.permute_units:
        networks = symmetry.apply(runs.layout, networks, symmetry.sample(runs.layout, size, rng))
    return PairBatch(
        start=networks[:, 0],
        target=networks[:, 1],
        has_start=chosen.has_start.float(),
        has_target=(~chosen.is_made_up).float(),
        has_examples=has_examples,
        has_labels=has_labels,
        num_examples=num_examples,
        prompt=prompt,
        runs=chosen.runs,
        zoo=zoo,
        index=index,
    )


class _Snapshots(NamedTuple):
    """Which runs, and which two snapshots of each, all (B,).

    Attributes:
        rows: of the runs among the trajectories.
        runs: their numbers in the zoo, or those of runs that are made up.
        first, last: start and target.
        has_start: whether the start is given.
        is_made_up: whether the run is.
    """

    rows: Tensor
    runs: Tensor
    first: Tensor
    last: Tensor
    has_start: Tensor
    is_made_up: Tensor


def _draw_snapshots(runs: Trajectories, config: PairConfig, rng: torch.Generator) -> _Snapshots:
    size = config.batch_size
    rows = torch.randint(len(runs), (size,), generator=rng)
    counts = runs.counts[rows]
    has_start = _happens(config.start_share, rng, size) & (counts > 1)
    numbers, is_made_up = runs.runs[rows], torch.zeros(size, dtype=torch.bool)
    if config.share_without_targets:
        is_made_up = _happens(config.share_without_targets, rng, size)
        numbers = torch.where(is_made_up, MADE_UP_RUNS + torch.randint(2**31, (size,), generator=rng), numbers)
        has_start &= ~is_made_up
    is_initial = _happens(config.initial_share, rng, size)
    first = (torch.rand(size, generator=rng) * (counts - 1)).long().masked_fill(is_initial, 0)
    fraction = torch.rand(size, generator=rng)
    later = first + 1 + (fraction * (counts - 1 - first)).long()
    if config.stay_share:
        later = torch.where(_happens(config.stay_share, rng, size) & ~is_initial, first, later)
    last = torch.where(has_start, later, (fraction * counts).long())
    if config.even_share:
        is_even = _happens(config.even_share, rng, size)
        last = torch.where(is_even, _evenly(runs, rows, torch.where(has_start, first, -1), rng), last)
    return _Snapshots(rows, numbers, first, last, has_start, is_made_up)


def _draw_prompt(runs: Trajectories, chosen: _Snapshots, config: PairConfig, rng: torch.Generator) -> Prompt:
    """What is asked of the targets and known of the starts, some of it left out."""
    size, num_metrics = config.batch_size, len(runs.metrics)
    known = torch.full((2, size, num_metrics), math.nan)
    for column, values in enumerate(runs.metrics.values()):
        known[:, :, column] = values[chosen.rows, torch.stack((chosen.last, chosen.first))]
    target, start = known  # (B, M)
    dropped = _happens(config.prompt_dropout, rng, size, 1)
    left_out = _happens(config.metric_dropout * (num_metrics > 1), rng, size, num_metrics)
    unknown = _happens(config.start_metric_dropout, rng, size, 1) | ~chosen.has_start[:, None]
    return Prompt(
        target.masked_fill(dropped | left_out | chosen.is_made_up[:, None], math.nan),
        start.masked_fill(unknown, math.nan),
        runs.task_bits[chosen.rows].masked_fill(dropped, math.nan),
    )


def _happens(share: float, rng: torch.Generator, *shape: int) -> Tensor:
    """Truth values of a shape, that share of them true."""
    return torch.rand(shape, generator=rng) < share


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
