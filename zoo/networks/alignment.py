"""Networks brought to the order of units that a reference has.

Legend: N networks, P numbers of one network, U units of a group, K numbers that one unit owns in a slot.

Only trainable slots decide; buffers, such as BatchNorm's statistics, follow.

Source: Ainsworth et al. 2022 (arXiv 2209.04836), section 3.2, "Matching weights", and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zoo.devices import widened, widest_float
from zoo.networks.layout import GroupAxis, ParamLayout, ParamSlot, SymmetryGroup
from zoo.networks.symmetry import Permutations, apply, compose, grouped_axes, identity

_MAX_SWEEPS: Final = 100
_GAIN_TOLERANCE: Final = 1e-12  # relative to the similarity, so that rounding cannot keep the descent going


class Aligned(NamedTuple):
    """How units were permuted, and the networks (N, P) with their units so."""

    permutations: Permutations
    params: Tensor


def align(layout: ParamLayout, params: Tensor, reference: Tensor) -> Aligned:
    """Networks with their units permuted so that they are as close to a reference as can be found.

    Minimises the Euclidean distance over trainable parameters by coordinate descent over the groups; each step is a
    linear assignment, solved exactly. Where no slot belongs to two groups (one hidden layer, a transformer's heads
    and units) the result is optimal. Otherwise it is a local optimum, the better of two: that reached from the units'
    present order, and that reached by matching the groups one after another, each first by the weights whose other
    ends are matched already.

    Args:
        layout: layout of the networks.
        params: (N, P) networks to permute.
        reference: (P,) one network for all, or (N, P).

    Returns:
        The permutations, for `symmetry.apply`, and the aligned networks (N, P).

    Raises:
        LayoutMismatchError: if vectors do not fit the layout.
        ValueError: if shapes are not as above, or numbers are not finite.
    """
    layout.check_vector(params)
    layout.check_vector(reference)
    if params.ndim != 2 or (reference.ndim != 1 and reference.shape != params.shape):
        shapes = f"{tuple(params.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"params must be (N, P) and reference (P,) or (N, P), got {shapes}")
    for name, value in (("params", params), ("reference", reference)):
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} must be finite to be matched; leave diverged networks out")
    target = reference.expand_as(params)
    permutations = _descend(layout, params, target, identity(layout, len(params), params.device))
    if not groups_are_independent(layout):
        other = _descend(layout, params, target, _match_in_order(layout, params, target))
        permutations = _nearer(layout, params, target, permutations, other)
    return Aligned(permutations, apply(layout, params, permutations))


def groups_are_independent(layout: ParamLayout) -> bool:
    """Whether no trainable slot belongs to two groups, so that each group can be matched by itself."""
    return not any(others for group in layout.groups for _, _, others in _trainable_axes(layout, group))


def unit_blocks(
    layout: ParamLayout, group: SymmetryGroup, params: Tensor, settled: Collection[str] | None = None
) -> Iterator[Tensor]:
    """Numbers by unit (N, U, K) of each trainable slot that the group indexes.

    Slots that also belong to a group outside `settled`, a collection of names, are left out; None leaves none out.
    """
    for slot, axis, others in _trainable_axes(layout, group):
        if settled is None or others <= set(settled):
            block = params[:, slot.span].view(len(params), *slot.shape).movedim(1 + axis.axis, 1)
            yield block.reshape(len(params), group.size, -1)


def assign(similarity: Tensor) -> Tensor:
    """The permutations (N, U) that bring the most similar units together, given similarities (N, U, U).

    Entry j of a row is the unit (row of the similarity) that is put where the reference has unit j.
    """
    matrices = similarity.transpose(1, 2).cpu().double().numpy()
    columns = [linear_sum_assignment(matrix, maximize=True)[1] for matrix in matrices]
    return torch.from_numpy(np.array(columns, dtype=np.int64).reshape(similarity.shape[:2])).to(similarity.device)


def _descend(layout: ParamLayout, params: Tensor, target: Tensor, start: Permutations) -> Permutations:
    """Coordinate descent from `start`; networks that no group improves any more drop out."""
    permutations = {name: permutation.clone() for name, permutation in start.items()}
    active = torch.arange(len(params), device=params.device)
    for _ in range(_MAX_SWEEPS):
        improved = torch.zeros(len(active), dtype=torch.bool, device=params.device)
        for group in layout.groups:
            current = {name: permutation[active] for name, permutation in permutations.items()}
            moved = apply(layout, params[active], current)
            similarity = _similarity(layout, group, moved, target[active])
            best = assign(similarity)
            before = similarity.diagonal(dim1=1, dim2=2).sum(1)
            gain = similarity.gather(1, best.unsqueeze(1)).sum((1, 2)) - before
            better = gain > _GAIN_TOLERANCE * similarity.abs().amax((1, 2)) * group.size
            chosen = active[better]
            permutations[group.name][chosen] = permutations[group.name][chosen].gather(1, best[better])
            improved |= better
        active = active[improved]
        if groups_are_independent(layout) or not len(active):
            break
    return permutations


def _match_in_order(layout: ParamLayout, params: Tensor, target: Tensor) -> Permutations:
    """Each group matched once, by the weights whose other ends are fixed or were matched before."""
    permutations = identity(layout, len(params), params.device)
    settled: set[str] = set()
    for group in layout.groups:
        moved = apply(layout, params, permutations)
        permutations = compose(permutations, {group.name: assign(_similarity(layout, group, moved, target, settled))})
        settled.add(group.name)
    return permutations


def _nearer(
    layout: ParamLayout, params: Tensor, target: Tensor, first: Permutations, second: Permutations
) -> Permutations:
    def squared_distance(permutations: Permutations) -> Tensor:
        difference = (apply(layout, params, permutations) - target)[:, : layout.num_trainable]
        return widened(difference).square().sum(1)

    take_second = (squared_distance(second) < squared_distance(first)).unsqueeze(1)
    return {name: torch.where(take_second, second[name], first[name]) for name in first}


def _similarity(
    layout: ParamLayout,
    group: SymmetryGroup,
    params: Tensor,
    reference: Tensor,
    settled: Collection[str] | None = None,
) -> Tensor:
    """Inner products (N, U, U) of the group's units in `params` (rows) with those in `reference` (columns)."""
    total = torch.zeros(len(params), group.size, group.size, dtype=widest_float(params.device), device=params.device)
    pairs = zip(
        unit_blocks(layout, group, params, settled), unit_blocks(layout, group, reference, settled), strict=True
    )
    for mine, theirs in pairs:
        total += torch.bmm(widened(mine), widened(theirs).transpose(1, 2))
    return total  # (N, U, U)


def _trainable_axes(layout: ParamLayout, group: SymmetryGroup) -> Iterator[tuple[ParamSlot, GroupAxis, set[str]]]:
    """The group's axes in trainable slots, each with the names of the other groups that index the slot."""
    for slot, axes in grouped_axes(layout):
        mine = [axis for owner, axis in axes if owner.name == group.name]
        if slot.kind != "param" or not mine:
            continue
        if len(mine) > 1:
            raise ValueError(
                f"group {group.name!r} indexes {slot.name!r} twice; matching it would be a quadratic assignment"
            )
        yield slot, mine[0], {owner.name for owner, _ in axes if owner.name != group.name}
