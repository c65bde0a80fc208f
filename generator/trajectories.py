"""Snapshots of the runs of one split of a zoo, with their metrics: what a generator learns from and is compared with.

Legend: R runs, S snapshots, P numbers of one network, T task bits, B pairs of a run and a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from generator.networks import in_one_form
from generator.prompts.descriptions import RunDescriptions
from generator.prompts.prompt import MetricRange, is_lower_better
from zoo.networks.layout import ParamLayout
from zoo.networks.low_rank import has_adapters
from zoo.storage.schema import RunStatus
from zoo.storage.zoo import Zoo

_DEFAULT_MEMORY_BUDGET: Final = 2**30
_NUMBERS_PER_PART: Final = 2**26


class Trajectories:
    """Snapshots of some runs, with their metrics: one split of a zoo.

    Attributes:
        layout: of the networks.
        num_snapshots: S.
        runs: (R,) numbers of the runs in the zoo.
        metrics: (R, S) by name, NaN where unknown.
        counts: (R,) snapshots that each run has.
        task_bits: (R, T), T = 0 where all runs have the same task.
        descriptions: of the tasks in words; None for a training without.
        as_trained: whether the factors of adapters are read as they were trained, not in canonical form. Where all runs
            begin at one adapter they stay comparable, and their mean is near that start; canonical forms order
            components by size, in each network anew.

    Raises:
        ValueError: if factors are to be read as trained and are of no adapters that begin at one.
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
        descriptions: RunDescriptions | None = None,
        as_trained: bool = False,
    ) -> None:
        self.layout = layout
        self.metrics = dict(sorted(metrics.items()))
        num_runs, self.num_snapshots = (
            params.shape[:2] if isinstance(params, Tensor) else (params.num_runs, params.num_snapshots)
        )
        self.runs = torch.arange(num_runs) if runs is None else runs
        self.counts = torch.full(self.runs.shape, self.num_snapshots) if counts is None else counts
        self.task_bits = torch.zeros(len(self.runs), 0) if task_bits is None else task_bits
        self.descriptions = descriptions
        if isinstance(params, Tensor) and has_adapters(layout) and not as_trained:
            is_there = params.isfinite().all(2)  # a run that was stopped lacks its last snapshots
            params = params.clone()
            params[is_there] = in_one_form(layout, params[is_there])
        self._params, self.as_trained = params, as_trained
        if as_trained:
            first = self.read(torch.arange(len(self.runs)), torch.zeros_like(self.runs))
            if not has_adapters(layout) or not bool((first == first[0]).all()):
                raise ValueError(
                    "factors can be read as trained where all runs begin at one adapter (init_from=... of the build); "
                    "set statistics_per_number=False"
                )

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
        as_trained: bool = False,
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
            as_trained: as for the class.

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
            num_diverged = int((zoo.status == RunStatus.DIVERGED).sum())
            raise ValueError(
                f"split {split!r} of the zoo has no run with {min_snapshots} snapshots; runs that are there: {sizes}, "
                f"of up to {int(counts.max(initial=0))} snapshots"
                + (f", beside {num_diverged} that diverged" if num_diverged else "")
                + ". A zoo of more sound runs has some in every split"
            )
        size = len(chosen) * zoo.num_snapshots * zoo.layout.num_params * 4
        params = torch.from_numpy(zoo.params[chosen]) if size <= memory_budget else zoo
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
            as_trained=as_trained,
        )

    def __len__(self) -> int:
        return len(self.runs)

    def read(self, rows: Tensor, snapshots: Tensor) -> Tensor:
        """Networks (B, P) of the runs in rows (B,) at snapshots (B,), adapters in canonical form or as trained."""
        if isinstance(self._params, Zoo):
            read = self._params.read(torch.stack((self.runs[rows], snapshots), dim=1).numpy())
            networks = torch.from_numpy(read)
            return networks if self.as_trained else in_one_form(self.layout, networks)
        return self._params[rows, snapshots]

    def sample(self, num_networks: int, rng: torch.Generator) -> Tensor:
        """Networks (N, P) drawn uniformly over runs and their snapshots."""
        return self.read(*self._drawn(num_networks, rng))

    def sample_in_parts(self, num_networks: int, rng: torch.Generator) -> Iterator[Tensor]:
        """The networks of `sample`, some at a time, so that memory does not hold many large ones; drawn at once."""
        size = max(1, _NUMBERS_PER_PART // self.layout.num_params)
        parts = (drawn.split(size) for drawn in self._drawn(num_networks, rng))
        return (self.read(*part) for part in zip(*parts, strict=True))

    def _drawn(self, num_networks: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of runs (N,), and a snapshot (N,) of each."""
        rows = torch.randint(len(self), (num_networks,), generator=rng)
        return rows, (torch.rand(num_networks, generator=rng) * self.counts[rows]).long()

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


def nearest_snapshots(values: Tensor, asked: Tensor) -> Tensor:
    """Snapshot (R,) at which each run is nearest to the value asked of it, on a logarithmic scale.

    Args:
        values: (R, S) metric of the runs, NaN where a run has no snapshot.
        asked: (R,) or ().
    """
    return log_gap(values, asked.reshape(-1, 1)).argmin(1)


def log_gap(values: Tensor, asked: Tensor) -> Tensor:
    """|log values - log asked|, infinite where a value is not a positive number."""
    usable = values.isfinite() & (values > 0)
    return torch.where(usable, (values.clamp(min=1e-30).log() - asked.log()).abs(), torch.inf)
