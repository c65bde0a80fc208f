"""The MLP rule's network with everything that does not vary along rows and columns taken out of its dense input.

Of 39 features 23 are the same along rows, along columns, or everywhere. Their share of the first layer is computed once
for each row, column or tensor; the normalisation of all features goes into the weights.

Legend: N networks, H hidden units, E x R x C one tensor (see `features`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from learned_opt.rules import features
from learned_opt.rules.features import Accumulators, Decays

MAGNITUDE_SCALE: Final = 0.001


@dataclass(frozen=True)
class Layer:
    """Affine map of feature-major activations, one for each network."""

    weight: Tensor  # (N, out, in)
    bias: Tensor  # (N, out)


@dataclass(frozen=True)
class FoldedLayer:
    """First layer on the 16 dense features, not normalised."""

    weight: Tensor  # (N, H, 16)
    row_bias: Tensor  # (N, H, E, R, 1)
    column_bias: Tensor  # (N, H, E, 1, C)


def fold(first: Layer, accumulators: Accumulators, dense_mean_square: Tensor, inner_step: Tensor) -> FoldedLayer:
    """First layer (N, H, 39) folded.

    Args:
        first: the layer as published.
        accumulators: after the gradient at hand.
        dense_mean_square: (N, 16) mean square of each dense feature over the tensor.
        inner_step: (1,) or (N,) updates made before this one.
    """
    rows, columns = features.row_features(accumulators), features.column_features(accumulators)
    num_tensor_features = features.NUM_TENSOR_FEATURES
    row_mean_square, column_mean_square = (kind.square().mean(dim=(2, 3, 4)) for kind in (rows, columns))
    mean_square = features.join_kinds(dense_mean_square, row_mean_square, column_mean_square)
    scaled = first.weight[:, :, :num_tensor_features] * features.inverse_rms(mean_square)[:, None]
    of_dense, of_rows, of_columns = features.split_kinds(scaled)

    time = features.time_features(inner_step).expand(len(scaled), -1)
    constant = first.bias + (first.weight[:, :, num_tensor_features:] @ time[..., None]).squeeze(-1)  # (N, H)
    row_bias, column_bias = _mix(of_rows, rows), _mix(of_columns, columns)
    if not accumulators.factored:  # a vector's row features vary along its columns
        row_bias, column_bias = torch.zeros_like(row_bias[..., :1]), row_bias + column_bias
    return FoldedLayer(of_dense, row_bias + constant[..., None, None, None], column_bias)


def unpack_layers(theta: Tensor, sizes: Sequence[int]) -> tuple[list[Layer], Tensor]:
    """Layers of the given sizes from the leading part of theta (N, M), each weight before its bias, and the rest."""
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        weight, bias, theta = theta.split([fan_in * fan_out, fan_out, theta.shape[1] - (fan_in + 1) * fan_out], dim=1)
        layers.append(Layer(weight.unflatten(1, (fan_out, fan_in)), bias))
    return layers, theta


def only_active(
    layers: Sequence[Layer], decays: Decays, shrink: float | Tensor, active: Tensor | None
) -> tuple[Sequence[Layer], Decays, float | Tensor]:
    """Layers, decays and shrink factor that leave inactive networks as they are: no step, averages that keep all.

    Args:
        active: (N,) bool, None for all.

    Returns:
        The shrink factor as (N, 1, 1, 1) where there are inactive ones.
    """
    if active is None:
        return layers, decays, shrink
    column, last = active[:, None], layers[-1]
    kept = (decay.masked_fill(~column, 1.0) for decay in (decays.momentum, decays.square, decays.factored))
    silent = Layer(last.weight * column[..., None], last.bias * column)
    each = torch.ones_like(last.bias[:, 0]).mul_(shrink).masked_fill_(~active, 1.0)[:, None, None, None]
    return [*layers[:-1], silent], Decays(*kept), each


def network_size(layers: Sequence[Layer]) -> int:
    """H of a network's layers."""
    return layers[0].weight.shape[1]


def _mix(weight: Tensor, x: Tensor) -> Tensor:
    """(N, H, F) and (N, F, e, r, c) -> (N, H, e, r, c)."""
    return (weight @ x.flatten(2)).unflatten(2, x.shape[2:])
