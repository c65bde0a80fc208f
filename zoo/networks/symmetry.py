"""What can be done to a network's weights without changing its function: permuted units, positively scaled units.

A permutation says for each group where its new units come from: new unit i is old unit `permutation[i]`. Scales say
by what each unit's activation is multiplied; the weights that read it are divided by as much.

Legend: N networks, P numbers of one network, U units of a group, `...` any dims that share one permutation, such as
the snapshots of a run.

Source: Hecht-Nielsen 1990, "On the algebraic structure of feedforward network weight spaces" (permutations); Neyshabur
et al. 2015 (arXiv 1506.02617; scaling in ReLU networks).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from zoo.networks.layout import GroupAxis, ParamLayout, ParamSlot, SymmetryGroup

Permutations: TypeAlias = dict[str, Tensor]  # group name -> (N, U) int64
Scales: TypeAlias = dict[str, Tensor]  # group name -> (N, U) positive


def identity(layout: ParamLayout, num_networks: int, device: torch.device | str = "cpu") -> Permutations:
    """Permutations that leave N networks as they are."""
    return {
        group.name: torch.arange(group.size, device=device).expand(num_networks, group.size) for group in layout.groups
    }


def sample(layout: ParamLayout, num_networks: int, rng: torch.Generator) -> Permutations:
    """Uniformly random permutations of every group, one for each of N networks, on the device of `rng`."""
    return {
        group.name: torch.rand(num_networks, group.size, generator=rng, device=rng.device).argsort(1)
        for group in layout.groups
    }


def compose(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Permutations:
    """The permutations that do `first`, then `second`. A group that one of them lacks is left alone by it."""
    names = [*first, *(name for name in second if name not in first)]
    return {
        name: first[name].gather(1, second[name]) if name in first and name in second else {**first, **second}[name]
        for name in names
    }


def invert(permutations: Mapping[str, Tensor]) -> Permutations:
    """The permutations that undo the given ones."""
    return {name: permutation.argsort(1) for name, permutation in permutations.items()}


def apply(layout: ParamLayout, params: Tensor, permutations: Mapping[str, Tensor]) -> Tensor:
    """Networks with permuted units; they compute what the given ones compute.

    Args:
        layout: layout of the networks.
        params: (N, ..., P); everything that network n has in the middle dims is permuted alike.
        permutations: (N, U) int64 by group name; groups that are not named stay as they are.

    Returns:
        (N, ..., P) in new memory.

    Raises:
        ValueError: if a group is unknown, or a permutation is none or of another size.
    """
    layout.check_vector(params)
    _check_lengths(layout, params, permutations, "permutation")
    if not permutations:
        return params.clone()
    index = permutation_index(layout, permutations).to(params.device)  # (N, P)
    middle = params.shape[1:-1]
    index = index.reshape(len(index), *(1 for _ in middle), layout.num_params).expand(-1, *middle, -1)
    return params.gather(-1, index)


def permutation_index(layout: ParamLayout, permutations: Mapping[str, Tensor]) -> Tensor:
    """Index (N, P) from which each entry of a permuted network is taken, for `params.gather(-1, index)`.

    Raises:
        ValueError: if there are no permutations, a group is unknown, or a permutation is none or of another size.
    """
    if not permutations:
        raise ValueError("permutations are empty, so the number of networks is unknown; use `identity`")
    _check_permutations(layout, permutations)
    some = next(iter(permutations.values()))
    index = torch.arange(layout.num_params, device=some.device).repeat(len(some), 1)  # (N, P)
    for slot, axes in grouped_axes(layout):
        moved = {
            axis.axis: _entries(permutations[group.name], axis) for group, axis in axes if group.name in permutations
        }
        if moved:
            index[:, slot.span] = _slot_index(slot, moved)
    return index


def sample_scales(layout: ParamLayout, num_networks: int, rng: torch.Generator, std: float = 0.5) -> Scales:
    """Random scales of every scalable group: log-normal, `std` is that of the natural logarithm."""
    return {
        group.name: (std * torch.randn(num_networks, group.size, generator=rng, device=rng.device)).exp()
        for group in layout.groups
        if group.scalable
    }


def invert_scales(scales: Mapping[str, Tensor]) -> Scales:
    """The scales that undo the given ones."""
    return {name: 1 / scale for name, scale in scales.items()}


def apply_scales(layout: ParamLayout, params: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
    """Networks whose units are scaled; they compute what the given ones compute, up to rounding.

    Args:
        layout: layout of the networks.
        params: (N, ..., P); everything that network n has in the middle dims is scaled alike.
        scales: (N, U) positive factors by group name; groups that are not named stay as they are.

    Returns:
        (N, ..., P) in new memory.

    Raises:
        ValueError: if a group is unknown or cannot be scaled, or a scale is not positive.
    """
    layout.check_vector(params)
    _check_scales(layout, scales)
    _check_lengths(layout, params, scales, "scale")
    scaled = params.clone()
    for slot, axes in grouped_axes(layout):
        block = scaled[..., slot.span].view(*params.shape[:-1], *slot.shape)
        for group, axis in axes:
            if group.name not in scales or not axis.scale_power:
                continue
            factor = scales[group.name].to(params).pow(axis.scale_power).repeat_interleave(axis.unit_size, 1)
            ones = [1] * (block.ndim - 1)
            ones[block.ndim - 1 - len(slot.shape) + axis.axis] = factor.shape[1]
            block.mul_(factor.view(len(factor), *ones))
    return scaled


def grouped_axes(layout: ParamLayout) -> Iterator[tuple[ParamSlot, list[tuple[SymmetryGroup, GroupAxis]]]]:
    """Each slot that symmetry groups index, with its (group, axis) pairs.

    Raises:
        ValueError: if two groups claim one axis.
    """
    for slot in layout:
        axes = [(group, axis) for group in layout.groups for axis in group.axes if axis.slot == slot.name]
        if len({axis.axis for _, axis in axes}) < len(axes):
            raise ValueError(
                f"two groups index the same axis of slot {slot.name!r}: {[group.name for group, _ in axes]}"
            )
        if axes:
            yield slot, axes


def _entries(permutation: Tensor, axis: GroupAxis) -> Tensor:
    """Permutation (N, U * unit_size) of an axis's entries: each unit takes all its entries along."""
    within = torch.arange(axis.unit_size, device=permutation.device)
    return (permutation.unsqueeze(-1) * axis.unit_size + within).flatten(1)


def _slot_index(slot: ParamSlot, moved: Mapping[int, Tensor]) -> Tensor:
    """Flat source index (N, numel) of a slot: the sum over its axes of entry times stride, plus the offset."""
    some = next(iter(moved.values()))
    total = torch.full((len(some), *(1 for _ in slot.shape)), slot.offset, device=some.device)
    for i, size in enumerate(slot.shape):
        stride = math.prod(slot.shape[i + 1 :])
        entries = moved[i] if i in moved else torch.arange(size, device=some.device).unsqueeze(0)
        ones = [1] * len(slot.shape)
        ones[i] = size
        total = total + stride * entries.view(len(entries), *ones)
    return total.flatten(1)


def _check_permutations(layout: ParamLayout, permutations: Mapping[str, Tensor]) -> None:
    sizes = {group.name: group.size for group in layout.groups}
    for name, permutation in permutations.items():
        _check_group(name, permutation, sizes, "permutation")
        if permutation.dtype != torch.int64:
            raise ValueError(f"permutation of {name!r} must be int64, got {permutation.dtype}")
        ordered = torch.arange(sizes[name], device=permutation.device)
        if not torch.equal(permutation.sort(1).values, ordered.expand_as(permutation)):
            raise ValueError(f"permutation of {name!r} must hold each of 0..{sizes[name] - 1} once in every row")


def _check_scales(layout: ParamLayout, scales: Mapping[str, Tensor]) -> None:
    sizes = {group.name: group.size for group in layout.groups if group.scalable}
    for name, scale in scales.items():
        _check_group(name, scale, sizes, "scale")
        if not bool((scale > 0).all()) or not bool(scale.isfinite().all()):
            raise ValueError(f"scales of {name!r} must be positive and finite, got {scale.min()} to {scale.max()}")


def _check_group(name: str, value: Tensor, sizes: Mapping[str, int], what: str) -> None:
    if name not in sizes:
        raise ValueError(f"{what} names group {name!r}; the layout allows it for {sorted(sizes)}")
    if value.ndim != 2 or value.shape[1] != sizes[name]:
        raise ValueError(f"{what} of {name!r} must be (N, {sizes[name]}), got {tuple(value.shape)}")


def _check_lengths(layout: ParamLayout, params: Tensor, values: Mapping[str, Tensor], what: str) -> None:
    if params.ndim < 2:
        raise ValueError(f"params must be (N, ..., {layout.num_params}), got {tuple(params.shape)}; add a dim of 1")
    for name, value in values.items():
        if len(value) != len(params):
            raise ValueError(f"{what} of {name!r} is for {len(value)} networks, got {len(params)}")
