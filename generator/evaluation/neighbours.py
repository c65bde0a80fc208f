"""Nearest networks up to the order of units, in a large set, without matching every pair.

Sorting the numbers that a permutation could bring into any order gives a lower bound of the matched distance that
needs no matching. Only the networks with the lowest bounds are matched; an exact copy has bound zero and cannot
be missed.

Legend: N networks, M others, K neighbours, C candidates, P numbers of one network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from zoo.networks import low_rank
from zoo.networks.alignment import align, groups_are_independent
from zoo.networks.layout import ParamLayout
from zoo.networks.metrics import euclidean_distances, matched_distances
from zoo.networks.symmetry import Permutations, grouped_axes
from zoo.storage.zoo import Zoo

DEFAULT_NUM_CANDIDATES: Final = 128
_NUMBERS_PER_MATCHING: Final = 2**20  # of networks whose units are matched at once: what indexes them fits caches


@dataclass(frozen=True)
class Neighbours:
    """Nearest others: matched distances (N, K), ascending, and indices (N, K)."""

    distances: Tensor
    index: Tensor


def nearest(
    layout: ParamLayout, params: Tensor, others: Tensor, *, k: int = 1, num_candidates: int | None = None
) -> Neighbours:
    """The k others that are nearest to each network by matched distance over trainable parameters, adapters by B A.

    Args:
        layout: of all networks.
        params: (N, P).
        others: (M, P).
        k: how many neighbours.
        num_candidates: others that are matched with each network, those of the lowest bounds. Default: all where
            matching is cheap (no slot belongs to two groups), else DEFAULT_NUM_CANDIDATES. With fewer than M the
            distances are upper bounds of the smallest. Products B A need no matching.

    Raises:
        ValueError: if there are fewer than k others.
    """
    if not 1 <= k <= len(others):
        raise ValueError(f"k must be from 1 to {len(others)}, the number of other networks, got {k}")
    if low_rank.has_adapters(layout):
        return Neighbours(*low_rank.distances(layout, params, others).topk(k, largest=False))
    if num_candidates is None:
        num_candidates = len(others) if groups_are_independent(layout) else DEFAULT_NUM_CANDIDATES
    num_candidates = min(max(num_candidates, k), len(others))
    if num_candidates == len(others) and groups_are_independent(layout):
        distances, index = matched_distances(layout, params, others).topk(k, largest=False)
        return Neighbours(distances, index)
    candidates = distance_bounds(layout, params, others).topk(num_candidates, largest=False).indices  # (N, C)
    mine = params.repeat_interleave(num_candidates, dim=0)
    distances = paired_distances(layout, mine, others[candidates.flatten()]).view(candidates.shape)
    distances, chosen = distances.topk(k, largest=False)
    return Neighbours(distances, candidates.gather(1, chosen))


def nearest_runs(zoo: Zoo, params: Tensor, *, k: int = 3) -> Neighbours:
    """The runs of a zoo whose last networks are nearest to networks (N, P); `index` holds the numbers of the runs.

    Raises:
        ValueError: if there are fewer than k runs.
    """
    runs = zoo.usable_runs()
    last = (zoo.inner_step[runs] >= 0).sum(1) - 1
    found = nearest(zoo.layout, params, torch.from_numpy(zoo.read(np.stack((runs, last), axis=1))), k=k)
    return Neighbours(found.distances, torch.from_numpy(runs)[found.index])


def paired_distances(layout: ParamLayout, params: Tensor, others: Tensor) -> Tensor:
    """Matched distance (N,) of network i to other i, over trainable parameters."""
    used = slice(0, layout.num_trainable)
    parts = zip(*_portions(params, others), strict=True)
    return torch.cat([(align(layout, other, one).params - one)[:, used].norm(dim=1) for one, other in parts])


def permutations_to(layout: ParamLayout, params: Tensor, references: Tensor) -> Permutations:
    """Permutations that bring network i (N, P) to the order of units of reference i (N, P) or of one (P,)."""
    references = references.expand_as(params)
    parts = [
        align(layout, one, reference).permutations
        for one, reference in zip(*_portions(params, references), strict=True)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _portions(*networks: Tensor) -> list[tuple[Tensor, ...]]:
    """Each of some sets of networks (N, P) in portions of the same sizes."""
    return [some.split(max(1, _NUMBERS_PER_MATCHING // some.shape[1])) for some in networks]


def distance_bounds(layout: ParamLayout, params: Tensor, others: Tensor) -> Tensor:
    """Lower bounds (N, M) of the matched distances.

    The best order of several numbers for a Euclidean distance sorts both sides; where units carry more than one
    number, each of these may take an order of its own, which only lowers the distance.
    """
    return euclidean_distances(sorted_params(layout, params), sorted_params(layout, others))


def sorted_params(layout: ParamLayout, params: Tensor) -> Tensor:
    """Trainable numbers (N, T), sorted wherever permutations of units could reorder them: equal for equal networks."""
    grouped = {slot.name: axes for slot, axes in grouped_axes(layout)}
    parts = []
    for slot in layout:
        if slot.kind == "buffer":
            continue
        block = params[:, slot.span].unflatten(1, slot.shape) if slot.shape else params[:, slot.span]
        axes = sorted(grouped.get(slot.name, []), key=lambda pair: -pair[1].axis)
        for group, axis in axes:
            block = block.unflatten(1 + axis.axis, (group.size, axis.unit_size)).movedim(1 + axis.axis, -1)
        if axes:
            block = block.flatten(-len(axes)).sort(-1).values
        parts.append(block.flatten(1))
    return torch.cat(parts, dim=1)
