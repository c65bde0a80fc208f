"""Networks brought to a common order of units: matched to a reference, or to a canonical form of their own.

Legend: N networks, P numbers of one network, U units of a group, K numbers that one unit owns in a slot.

Only trainable slots decide; buffers, such as BatchNorm's statistics, follow.

Source: Ainsworth et al. 2022 (arXiv 2209.04836), section 3.2, "Matching weights", and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zoo.networks.layout import GroupAxis, ParamLayout, ParamSlot, SymmetryGroup
from zoo.networks.symmetry import Permutations, Scales, apply, apply_scales, compose, grouped_axes, identity

MAX_SWEEPS = 100
_BALANCE_TOLERANCE = 1e-7  # on the natural logarithm of a scale
_GAIN_TOLERANCE = 1e-12  # relative to the similarity, so that rounding cannot keep the descent going
_WEYL_STEP = (5**0.5 - 1) / 2


class Alignment(NamedTuple):
    """How networks were transformed, and the transformed networks (N, P)."""

    permutations: Permutations
    params: Tensor


def align(layout: ParamLayout, params: Tensor, reference: Tensor, *, rescale: bool = False) -> Alignment:
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
        rescale: balance the scales of both sides first (ReLU networks), see `balance`.

    Returns:
        The permutations, for `symmetry.apply`, and the aligned (and, if asked, balanced) networks (N, P).

    Raises:
        LayoutMismatchError: if vectors do not fit the layout.
        ValueError: if shapes are not as above, or numbers are not finite.
    """
    layout.check_vector(params)
    layout.check_vector(reference)
    if params.ndim != 2 or (reference.ndim != 1 and reference.shape != params.shape):
        shapes = f"{tuple(params.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"params must be (N, P) and reference (P,) or (N, P), got {shapes}")
    _check_finite(params, "params")
    _check_finite(reference, "reference")
    if rescale:
        params = balance(layout, params)[1]
        reference = balance(layout, reference.expand_as(params))[1]
    target = reference.expand_as(params)
    permutations = _descend(layout, params, target, identity(layout, len(params), params.device))
    if not groups_are_independent(layout):
        other = _descend(layout, params, target, _match_in_order(layout, params, target))
        permutations = _nearer(layout, params, target, permutations, other)
    return Alignment(permutations, apply(layout, params, permutations))


def canonical(layout: ParamLayout, params: Tensor, *, rescale: bool = False) -> Alignment:
    """Networks in an order of units that depends on nothing but the network up to permutation.

    The groups are sorted one after another by a key per unit: the inner product of the unit's numbers with a fixed
    generic vector, over the entries whose other axes are fixed or sorted already. All permutations of a network have
    one canonical form, bit for bit, and the canonical form is its own, provided that no two units of a group share a
    key without being equal (a network at random or trained initialisation does not).

    Args:
        layout: layout of the networks.
        params: (N, P).
        rescale: balance the scales first (ReLU networks), see `balance`; then equal up to rounding.

    Raises:
        LayoutMismatchError: if a vector does not fit the layout.
        ValueError: if numbers are not finite.
    """
    layout.check_vector(params)
    _check_finite(params, "params")
    if rescale:
        params = balance(layout, params)[1]
    permutations = identity(layout, len(params), params.device)
    for i, group in enumerate(layout.groups):
        settled = [other.name for other in layout.groups[:i]]
        ordered = apply(layout, params, permutations)
        key = torch.zeros(len(params), group.size, dtype=torch.float64, device=params.device)
        for _, units in unit_blocks(layout, group, ordered, settled):  # (N, U, K)
            key += units.double() @ _weyl_sequence(units.shape[-1]).to(params.device)
        permutations[group.name] = key.argsort(dim=1, stable=True)
    return Alignment(permutations, apply(layout, params, permutations))


def balance(layout: ParamLayout, params: Tensor) -> tuple[Scales, Tensor]:
    """The equivalent networks whose units read and write with equal norms, and the scales that lead there.

    Of all positive scalings of a ReLU network this is the one with the least sum of squared weights; the problem is
    convex in the logarithms of the scales, so cyclic descent over the groups finds it. Units without incoming or
    outgoing weights keep their scale.

    Args:
        layout: layout of the networks.
        params: (N, P).

    Raises:
        LayoutMismatchError: if a vector does not fit the layout.
        ValueError: if numbers are not finite, or a scale power of the layout is not -1, 0 or 1.

    Source: Stock et al. 2019 (arXiv 1902.10416), section 3.
    """
    layout.check_vector(params)
    _check_finite(params, "params")
    groups = [group for group in layout.groups if group.scalable]
    scales = {group.name: params.new_ones(len(params), group.size, dtype=torch.float64) for group in groups}
    balanced = params.double()
    for _ in range(MAX_SWEEPS):
        largest_change = 0.0
        for group in groups:
            factor = _balancing_factor(layout, group, balanced)  # (N, U)
            balanced = apply_scales(layout, balanced, {group.name: factor})
            scales[group.name] *= factor
            largest_change = max(largest_change, factor.log().abs().max().item())
        if largest_change < _BALANCE_TOLERANCE:
            break
    return scales, apply_scales(layout, params, scales)


def groups_are_independent(layout: ParamLayout) -> bool:
    """Whether no trainable slot belongs to two groups, so that each group can be matched by itself."""
    return not any(others for group in layout.groups for _, _, others in _trainable_axes(layout, group))


def unit_blocks(
    layout: ParamLayout, group: SymmetryGroup, params: Tensor, settled: Collection[str] | None = None
) -> Iterator[tuple[GroupAxis, Tensor]]:
    """Each trainable axis of a group with its numbers by unit (N, U, K).

    Slots that also belong to a group outside `settled`, a collection of names, are left out; None leaves none out.
    """
    for slot, axis, others in _trainable_axes(layout, group):
        if settled is None or others <= set(settled):
            block = params[:, slot.span].view(len(params), *slot.shape).movedim(1 + axis.axis, 1)
            yield axis, block.reshape(len(params), group.size, -1)


def assign(similarity: Tensor) -> Tensor:
    """The permutations (N, U) that bring the most similar units together, given similarities (N, U, U).

    Entry j of a row is the unit (row of the similarity) that is put where the reference has unit j.
    """
    matrices = similarity.transpose(1, 2).double().cpu().numpy()
    columns = [linear_sum_assignment(matrix, maximize=True)[1] for matrix in matrices]
    return torch.from_numpy(np.array(columns, dtype=np.int64).reshape(similarity.shape[:2])).to(similarity.device)


def _descend(layout: ParamLayout, params: Tensor, target: Tensor, start: Permutations) -> Permutations:
    """Coordinate descent from `start`; networks that no group improves any more drop out."""
    permutations = {name: permutation.clone() for name, permutation in start.items()}
    active = torch.arange(len(params), device=params.device)
    for _ in range(MAX_SWEEPS):
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
        return difference.double().square().sum(1)

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
    total = torch.zeros(len(params), group.size, group.size, dtype=torch.float64, device=params.device)
    pairs = zip(
        unit_blocks(layout, group, params, settled), unit_blocks(layout, group, reference, settled), strict=True
    )
    for (_, mine), (_, theirs) in pairs:
        total += torch.bmm(mine.double(), theirs.double().transpose(1, 2))
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


def _balancing_factor(layout: ParamLayout, group: SymmetryGroup, params: Tensor) -> Tensor:
    """Scale (N, U) that makes the norms of what the units read and of what is read from them equal."""
    squares: Mapping[int, Tensor] = {
        power: params.new_zeros(len(params), group.size, dtype=torch.float64) for power in (-1, 0, 1)
    }
    for axis, units in unit_blocks(layout, group, params):
        if axis.scale_power not in squares:
            raise ValueError(f"scale power of {axis.slot!r} must be -1, 0 or 1 to balance, got {axis.scale_power}")
        squares[axis.scale_power].add_(units.double().square().sum(-1))
    ratio = (squares[-1] / squares[1]) ** 0.25
    return torch.where((squares[-1] > 0) & (squares[1] > 0), ratio, torch.ones_like(ratio))


def _weyl_sequence(length: int) -> Tensor:
    """Fixed generic numbers in (-.5, .5): fractional parts of multiples of the golden ratio."""
    return (torch.arange(1, length + 1, dtype=torch.float64) * _WEYL_STEP).frac() - 0.5


def _check_finite(value: Tensor, what: str) -> None:
    if not bool(value.isfinite().all()):
        raise ValueError(f"{what} must be finite to be matched or balanced; leave diverged networks out")
