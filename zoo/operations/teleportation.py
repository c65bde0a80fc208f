"""Networks moved along their symmetries: other numbers, the same function.

Legend: N networks, P numbers of one network, U units of a group, `...` any dims that share one move.

Source: Armenta et al. 2023 (arXiv 2012.01118), "Neural teleportation", equation 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zoo.networks import symmetry
from zoo.networks.layout import ParamLayout
from zoo.networks.symmetry import grouped_axes


def scalable_groups(layout: ParamLayout) -> list[str]:
    """Names of the groups whose units may be scaled."""
    return [group.name for group in layout.groups if any(axis.scale_power for axis in group.axes)]


def sample_scales(layout: ParamLayout, num_networks: int, std: float, rng: torch.Generator) -> dict[str, Tensor]:
    """Log-normal factors (N, U) for each group that may be scaled, on the device of `rng`.

    Args:
        layout: of the networks.
        num_networks: N.
        std: standard deviation of their logarithm.
        rng: source of the factors.
    """
    sizes = {group.name: group.size for group in layout.groups}
    return {
        name: (std * torch.randn(num_networks, sizes[name], generator=rng, device=rng.device)).exp()
        for name in scalable_groups(layout)
    }


def rescale(layout: ParamLayout, params: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
    """Networks whose units send s times as much and are listened to 1 / s times; they compute what they did.

    Args:
        layout: of the networks.
        params: (N, ..., P).
        scales: (N, U) positive factors by group name; groups that are not named stay as they are.

    Returns:
        (N, ..., P) in new memory.

    Raises:
        ValueError: if a group is unknown or may not be scaled, or factors are not positive or misshapen.
    """
    layout.check_vector(params)
    sizes = {group.name: group.size for group in layout.groups}
    for name, scale in scales.items():
        if name not in scalable_groups(layout):
            raise ValueError(f"units of {name!r} may not be scaled; those of {scalable_groups(layout)} may")
        if scale.shape != (len(params), sizes[name]) or not bool((scale > 0).all()):
            raise ValueError(f"scales of {name!r} must be {(len(params), sizes[name])} and positive")
    scaled = params.clone()
    views = layout.views(scaled)
    for slot, axes in grouped_axes(layout):
        for group, axis in axes:
            if group.name in scales and axis.scale_power:
                factor = scales[group.name].to(params).pow(axis.scale_power).repeat_interleave(axis.unit_size, dim=1)
                trailing = [1] * (len(slot.shape) - axis.axis - 1)
                leading = [1] * (params.ndim - 2 + axis.axis)
                views[slot.name].mul_(factor.view(len(params), *leading, -1, *trailing))
    return scaled


def teleport(layout: ParamLayout, params: Tensor, rng: torch.Generator, std: float = 0.5) -> Tensor:
    """Networks (N, ..., P) with their units in random order, and scaled at random where they may be.

    Args:
        layout: of the networks; one without groups is refused, since nothing of it can be moved.
        params: (N, ..., P).
        rng: source of orders and factors.
        std: standard deviation of the logarithm of the factors.

    Raises:
        ValueError: if the layout has no groups of interchangeable units.
    """
    if not layout.groups:
        raise ValueError("the layout names no interchangeable units, so nothing can be moved; give a model that does")
    moved = symmetry.apply(layout, params, symmetry.sample(layout, len(params), rng))
    return rescale(layout, moved, sample_scales(layout, len(params), std, rng))
