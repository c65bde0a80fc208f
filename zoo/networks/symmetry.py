"""Permutations of a network's units, which leave its function as it is.

A permutation says for each group where its new units come from: new unit i is old unit `permutation[i]`.

Legend: N networks, P numbers of one network, U units of a group, `...` any dims that share one permutation, such as
the snapshots of a run.

Source: Hecht-Nielsen 1990, "On the algebraic structure of feedforward network weight spaces".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from zoo.networks.layout import GroupAxis, ParamLayout, ParamSlot, SymmetryGroup

Permutations: TypeAlias = dict[str, Tensor]  # group name -> (N, U) int64


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
        params: (N, ..., P); everything that network n has in the middle dims is permuted in the same way.
        permutations: (N, U) int64 by group name; groups that are not named stay as they are.

    Returns:
        (N, ..., P) in new memory.

    Raises:
        ValueError: if a group is unknown, or a permutation is none or of another size.
    """
    layout.check_vector(params)
    if params.ndim < 2:
        raise ValueError(f"params must be (N, ..., {layout.num_params}), got {tuple(params.shape)}; add a dim of 1")
    _check_permutations(layout, permutations, len(params))
    if not permutations:
        return params.clone()
    index = _source_index(layout, permutations).to(params.device)  # (N, P)
    middle = params.shape[1:-1]
    index = index.reshape(len(index), *(1 for _ in middle), layout.num_params).expand(-1, *middle, -1)
    return params.gather(-1, index)


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


def numbers_outside(layout: ParamLayout, groups: Iterable[SymmetryGroup]) -> Tensor:
    """Mask (P,) of the trainable numbers that belong to none of some groups."""
    mask = torch.arange(layout.num_params) < layout.num_trainable
    for group in groups:
        for axis in group.axes:
            mask[layout[axis.slot].span] = False
    return mask


def _source_index(layout: ParamLayout, permutations: Mapping[str, Tensor]) -> Tensor:
    """Index (N, P) from which each entry of a permuted network is taken, for `params.gather(-1, index)`."""
    some = next(iter(permutations.values()))
    index = torch.arange(layout.num_params, device=some.device).repeat(len(some), 1)  # (N, P)
    for slot, axes in grouped_axes(layout):
        permuted = {axis.axis: (axis, permutations[group.name]) for group, axis in axes if group.name in permutations}
        if not permuted:
            continue
        total = torch.full((len(some), *(1 for _ in slot.shape)), slot.offset, device=some.device)
        for i, size in enumerate(slot.shape):
            entries = torch.arange(size, device=some.device).unsqueeze(0)  # (1, size)
            if i in permuted:  # each unit takes all its entries along
                axis, permutation = permuted[i]
                within = torch.arange(axis.unit_size, device=some.device)
                entries = (permutation.unsqueeze(-1) * axis.unit_size + within).flatten(1)  # (N, size)
            shape = [len(entries), *(size if j == i else 1 for j in range(len(slot.shape)))]
            total = total + math.prod(slot.shape[i + 1 :]) * entries.view(shape)
        index[:, slot.span] = total.flatten(1)
    return index


def _check_permutations(layout: ParamLayout, permutations: Mapping[str, Tensor], num_networks: int) -> None:
    sizes = {group.name: group.size for group in layout.groups}
    for name, permutation in permutations.items():
        if name not in sizes:
            raise ValueError(f"permutations name group {name!r}; the layout has {sorted(sizes)}")
        if permutation.ndim != 2 or permutation.shape[1] != sizes[name]:
            raise ValueError(f"permutation of {name!r} must be (N, {sizes[name]}), got {tuple(permutation.shape)}")
        if permutation.dtype != torch.int64:
            raise ValueError(f"permutation of {name!r} must be int64, got {permutation.dtype}")
        if len(permutation) != num_networks:
            raise ValueError(f"permutation of {name!r} is for {len(permutation)} networks, got {num_networks}")
        ordered = torch.arange(sizes[name], device=permutation.device)
        if not torch.equal(permutation.sort(1).values, ordered.expand_as(permutation)):
            raise ValueError(f"permutation of {name!r} must hold each of 0..{sizes[name] - 1} once in every row")
