"""What a generator must beat: samplers that copy and average training runs.

Each is a `Sampler` that sees the training runs only. Without a start they raise a ValueError, except those that never
look at it.

Legend: B networks asked for, K neighbours, R training runs, P numbers of one network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from generator.evaluation.neighbours import nearest, permutations_to
from generator.evaluation.testbed import METRIC
from generator.trajectories import Trajectories, log_gap, nearest_snapshots
from zoo.networks.layout import ParamLayout
from zoo.networks.symmetry import apply

_ROWS_PER_PASS: Final = 256
_SMALLEST_VARIANCE: Final = 1e-5
_NEAR_SHARE: Final = 0.25  # of the runs, from which copies and averages are drawn


@dataclass(frozen=True)
class Retrieval:
    """The training run whose initial network is nearest to the start, at its snapshot nearest to the prompted loss."""

    train: Trajectories

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        starts, which = distinct(start)
        rows = nearest(self.train.layout, starts, initial_networks(self.train)).index[:, 0]
        return networks_at(self.train, rows[which], prompt[METRIC])


@dataclass(frozen=True)
class NearestNeighbours:
    """Mean of what the K nearest initial networks became at the prompted loss, each in the start's order of units."""

    train: Trajectories
    num_neighbours: int = 8

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        starts, which = distinct(start)
        layout, initial = self.train.layout, initial_networks(self.train)
        rows = nearest(layout, starts, initial, k=self.num_neighbours).index  # (N, K)
        references = starts.repeat_interleave(self.num_neighbours, dim=0)
        orders = permutations_to(layout, initial[rows.flatten()], references)
        results = []
        for chosen, asked in zip(which.split(_ROWS_PER_PASS), prompt[METRIC].split(_ROWS_PER_PASS), strict=True):
            networks = networks_at(
                self.train, rows[chosen].flatten(), asked.repeat_interleave(self.num_neighbours)
            )  # (B * K, P)
            order = {name: value.view(*rows.shape, -1)[chosen].flatten(0, 1) for name, value in orders.items()}
            results.append(apply(layout, networks, order).unflatten(0, (-1, self.num_neighbours)).mean(1))
        return torch.cat(results)


@dataclass(frozen=True)
class MeanDelta:
    """The start plus the training runs' mean update to the prompted loss, or whatever the metric is."""

    train: Trajectories
    metric: str = METRIC

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        starts = required(start)
        initial, rows = initial_networks(self.train), torch.arange(len(self.train))
        prompts, which = prompt[self.metric].unique(return_inverse=True)
        became = (networks_at(self.train, rows, asked.expand(len(rows)), self.metric) for asked in prompts)
        deltas = [(networks - initial).mean(0) for networks in became]
        return starts + torch.stack(deltas)[which]


@dataclass(frozen=True)
class MatchedAverage:
    """Mean of K random training networks of about the prompted loss, all in the first one's order of units."""

    train: Trajectories
    num_averaged: int = 4
    metric: str = METRIC

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        layout = self.train.layout
        results = []
        for asked in prompt[self.metric].split(_ROWS_PER_PASS):
            near = [runs_near(self.train, value, self.num_averaged, rng, self.metric) for value in asked]
            rows = torch.stack(near)  # (B, K)
            repeated = asked.repeat_interleave(self.num_averaged)
            networks = networks_at(self.train, rows.flatten(), repeated, self.metric)
            first = networks.view(*rows.shape, -1)[:, 0].repeat_interleave(self.num_averaged, dim=0)
            aligned = apply(layout, networks, permutations_to(layout, networks, first))
            results.append(aligned.view(*rows.shape, -1).mean(1))
        return torch.cat(results)


@dataclass(frozen=True)
class NoisyCopy:
    """A random training network of about the prompted loss plus Gaussian noise.

    Attributes:
        noise: standard deviation in units of the RMS of the copied network's numbers in the same slot; 0 copies.
    """

    train: Trajectories
    noise: float = 0.1
    metric: str = METRIC

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        asked = prompt[self.metric]
        rows = torch.cat([runs_near(self.train, value, 1, rng, self.metric) for value in asked])  # (B,)
        networks = networks_at(self.train, rows, asked, self.metric)
        scale = torch.zeros_like(networks)
        for slot in self.train.layout:
            if slot.kind == "param":
                scale[:, slot.span] = networks[:, slot.span].square().mean(1, keepdim=True).sqrt()
        return networks + self.noise * scale * torch.randn(networks.shape, generator=rng)


def initial_networks(train: Trajectories) -> Tensor:
    """First snapshots (R, P) of all runs."""
    rows = torch.arange(len(train))
    return train.read(rows, torch.zeros_like(rows))


def networks_at(train: Trajectories, rows: Tensor, asked: Tensor, metric: str = METRIC) -> Tensor:
    """Networks (B, P) of the runs in rows (B,), at their snapshots nearest to the losses asked for (B,)."""
    return train.read(rows, nearest_snapshots(train.metrics[metric][rows], asked))


def runs_near(train: Trajectories, asked: Tensor, num_runs: int, rng: torch.Generator, metric: str = METRIC) -> Tensor:
    """Random distinct runs (num_runs,) of the quarter that comes nearest to a loss ()."""
    if num_runs > len(train):
        raise ValueError(f"an average of {num_runs} networks needs as many training runs, got {len(train)}")
    gaps = log_gap(train.metrics[metric], asked).min(1).values
    num_near = min(len(train), max(num_runs, math.ceil(_NEAR_SHARE * len(train))))
    return gaps.argsort()[:num_near][torch.randperm(num_near, generator=rng)[:num_runs]]


def with_valid_buffers(layout: ParamLayout, params: Tensor) -> Tensor:
    """Networks (B, P), in place, whose running variances are positive, as extrapolation and regression forget."""
    for slot in layout:
        if slot.role == "running_var":
            params[:, slot.span].clamp_(min=_SMALLEST_VARIANCE)
    return params


def required(start: Tensor | None) -> Tensor:
    """The start; ValueError where there is none."""
    if start is None:
        raise ValueError("this baseline updates a start, got none; pass start=(B, P)")
    return start


def distinct(start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Distinct starts (N, P), and which of them belongs to each row (B,)."""
    return torch.unique(required(start), dim=0, return_inverse=True)
