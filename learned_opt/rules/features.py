"""Accumulators of gradients and the features that the published rules read: 39 of the MLP rule, 30 of VeLO and Celo2.

Order of the 39: gradient 1, parameter 1, momenta 3, second moment 1, momenta * rsqrt(second moment) 3,
rsqrt(second moment) 1, factored-normalised gradient 3, row 3, column 3, rsqrt(row) 3, rsqrt(column) 3, momenta *
factored preconditioner 3; these 28 are divided by their root mean square over the tensor. Then 11 of time.

A tensor is handled as (E, R, C): C is its largest axis, R the second largest, E all others. Vectors are one row.
Only 16 of the 39 vary along both rows and columns. They are built chunk by chunk, and the others enter the first
layer of a network as biases of rows, of columns or of the whole tensor: the same numbers for less than half the work.

Source: Metz et al. 2022 (arXiv 2203.11860), small_fc_lopt; Shazeer and Stern 2018 (arXiv 1804.04235) for the factors.

Legend: N networks, 3 decays, E x R x C one tensor, n = E * R * C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from learned_opt.rules.rule import constant

NUM_FEATURES: Final = 39
NUM_TENSOR_FEATURES: Final = 28
TIMESCALES: Final = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
_KINDS: Final = (13, 3, 3, 3, 3, 3)  # how many in turn are dense (vary along rows and columns), row, column, ... dense
NUM_DENSE: Final = 16

GRAD_LIMIT: Final = 1000.0  # of the gradients that VeLO and Celo2 read
SMALL_GRAD_LIMIT: Final = 0.1
NUM_PUBLISHED_FEATURES: Final = 30

_SQUARE_FLOOR: Final = 1e-30
_FACTOR_FLOOR: Final = 1e-9
_MEAN_SQUARE_FLOOR: Final = 1e-5

STATE_KEYS: Final = ("momentum", "square", "row", "column")

Chunk = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Accumulators:
    """Exponential averages, updated in place."""

    momentum: Tensor  # (N, 3, E, R, C)
    square: Tensor  # (N, 1, E, R, C)
    row: Tensor  # (N, 3, E, R, 1), for vectors the same as column
    column: Tensor  # (N, 3, E, 1, C)
    factored: bool  # False for vectors, which keep a full second moment in `column`


@dataclass(frozen=True)
class Decays:
    """Decay of each accumulator and network."""

    momentum: Tensor  # (N, 3)
    square: Tensor  # (N, 1)
    factored: Tensor  # (N, 3)


@dataclass(frozen=True)
class Preconditioners:
    """Factors of gradient and momenta; their product over rows and columns is Adafactor's 1 / sqrt(v)."""

    row: Tensor  # (N, 3, E, R, 1)
    column: Tensor  # (N, 3, E, 1, C), of the gradient
    momentum_column: Tensor  # (N, 3, E, 1, C), of the momenta


def init_accumulators(shapes: Sequence[tuple[int, ...]], params: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Zeros for tensors (N, *shape), by STATE_KEYS."""
    state: dict[str, list[Tensor]] = {key: [] for key in STATE_KEYS}
    for shape, param in zip(shapes, params, strict=True):
        num_networks, blocks, rows, columns = canonical(param.detach(), shape).shape
        whole = param.new_zeros(num_networks, 1, blocks, rows, columns, dtype=torch.float32)
        state["momentum"].append(whole.repeat(1, 3, 1, 1, 1))
        state["square"].append(whole)
        state["row"].append(whole[..., :1].repeat(1, 3, 1, 1, 1 if factored_axes(shape) else columns))
        state["column"].append(whole[..., :1, :].repeat(1, 3, 1, 1, 1))
    return state


def accumulators_of(state: Mapping[str, Tensor], shape: tuple[int, ...]) -> Accumulators:
    """Those in the state of one tensor."""
    momentum, square, row, column = (state[key] for key in STATE_KEYS)
    return Accumulators(momentum, square, row, column, factored_axes(shape) is not None)


@lru_cache(maxsize=1024)
def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(second largest axis, largest axis), later ones first among equals; None for vectors and scalars."""
    if len(shape) < 2:
        return None
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])  # stable
    return order[-2], order[-1]


def canonical(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View (N, E, R, C) of a tensor (N, *shape), a copy where its strides do not allow a view."""
    axes = factored_axes(shape)
    if axes is None:
        return x.reshape(x.shape[0], 1, 1, math.prod(shape))
    others = [axis for axis in range(len(shape)) if axis not in axes]
    permuted = x.permute(0, *(1 + axis for axis in (*others, *axes)))
    num_blocks = math.prod(shape[axis] for axis in others)
    return permuted.reshape(x.shape[0], num_blocks, shape[axes[0]], shape[axes[1]])


def uncanonical(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `canonical`: (N, E, R, C) -> view (N, *shape)."""
    axes = factored_axes(shape)
    if axes is None:
        return x.reshape(x.shape[0], *shape)
    others = [axis for axis in range(len(shape)) if axis not in axes]
    order = [*others, *axes]
    inverse = [order.index(axis) for axis in range(len(shape))]
    return x.reshape(x.shape[0], *(shape[axis] for axis in order)).permute(0, *(1 + axis for axis in inverse))


def chunks(shape: tuple[int, int, int], max_numel: int) -> Iterator[Chunk]:
    """Blocks of an (E, R, C) tensor with at most `max_numel` elements (at least one)."""
    num_blocks, num_rows, num_columns = shape
    columns = max(1, min(num_columns, max_numel))
    rows = max(1, min(num_rows, max_numel // columns))
    blocks = max(1, min(num_blocks, max_numel // (columns * rows)))
    for e in range(0, num_blocks, blocks):
        for r in range(0, num_rows, rows):
            for c in range(0, num_columns, columns):
                yield slice(e, e + blocks), slice(r, r + rows), slice(c, c + columns)


def accumulate(accumulators: Accumulators, grad: Tensor, decays: Decays) -> Accumulators:
    """Accumulators after a gradient (N, E, R, C), as new tensors: the readable, differentiable form."""
    grad_square = (grad.square() + _SQUARE_FLOOR).unsqueeze(1)
    factored = _as_channels(1 - decays.factored)
    row_mean = grad_square.mean(-1, keepdim=True) if accumulators.factored else grad_square
    column_mean = grad_square.mean(-2, keepdim=True)
    return Accumulators(
        momentum=accumulators.momentum.lerp(grad.unsqueeze(1), _as_channels(1 - decays.momentum)),
        square=accumulators.square.lerp(grad.square().unsqueeze(1), _as_channels(1 - decays.square)),
        row=accumulators.row.lerp(row_mean, factored),
        column=accumulators.column.lerp(column_mean, factored),
        factored=accumulators.factored,
    )


def accumulate_factors(accumulators: Accumulators, grad: Tensor, decays: Decays) -> None:
    """Update the row and column averages of squared gradients (N, E, R, C), without a temporary of that size."""
    weight = _as_channels(1 - decays.factored)
    if not accumulators.factored:
        accumulators.column.lerp_((grad.square() + _SQUARE_FLOOR).unsqueeze(1), weight)
        accumulators.row.copy_(accumulators.column)
        return
    for average, axis in ((accumulators.row, -1), (accumulators.column, -2)):
        norm = torch.linalg.vector_norm(grad, dim=axis, keepdim=True)
        average.lerp_((norm.square() / grad.shape[axis] + _SQUARE_FLOOR).unsqueeze(1), weight)


def accumulate_elements(momentum: Tensor, square: Tensor, grad: Tensor, decays: Decays) -> None:
    """Update the averages of gradients and of their squares; all are chunks of the same place."""
    momentum.lerp_(grad.unsqueeze(1), _as_channels(1 - decays.momentum))
    square.lerp_(grad.square().unsqueeze(1), _as_channels(1 - decays.square))


def preconditioners(accumulators: Accumulators) -> Preconditioners:
    """Adafactor's factors of the current averages."""
    row, column = accumulators.row, accumulators.column
    if not accumulators.factored:
        one = torch.ones_like(row[..., :1])
        return Preconditioners(one, _safe_rsqrt(column + 1e-9), (column + 1e-6).rsqrt())
    row_factor = _safe_rsqrt(row / (row.mean(dim=-2, keepdim=True) + 1e-9))
    column_factor = _safe_rsqrt(column)
    return Preconditioners(row_factor, column_factor, column_factor)


def split_kinds(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Dense (..., 16), row (..., 6) and column (..., 6) entries of the features of tensors (..., 28)."""
    parts = x.split(_KINDS, dim=-1)
    return torch.cat((parts[0], parts[5]), -1), torch.cat(parts[1:4:2], -1), torch.cat(parts[2:5:2], -1)


def join_kinds(dense: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """(..., 28): inverse of `split_kinds`."""
    first, last = dense.split((_KINDS[0], _KINDS[-1]), dim=-1)
    (row, later_row), (column, later_column) = row.chunk(2, dim=-1), column.chunk(2, dim=-1)
    return torch.cat((first, row, column, later_row, later_column, last), dim=-1)


def row_features(accumulators: Accumulators) -> Tensor:
    """The 6 features (N, 6, E, R, 1) in the order of `split_kinds`."""
    return torch.cat([accumulators.row, (accumulators.row + 1e-8).rsqrt()], dim=1)


def column_features(accumulators: Accumulators) -> Tensor:
    """The 6 features (N, 6, E, 1, C) in the order of `split_kinds`."""
    return torch.cat([accumulators.column, (accumulators.column + 1e-8).rsqrt()], dim=1)


def dense_features(
    params: Tensor, grad: Tensor, accumulators: Accumulators, factors: Preconditioners, *, chunk: Chunk, out: Tensor
) -> Tensor:
    """The 16 dense features for one chunk, feature-major.

    Args:
        params: (N, E, R, C).
        grad: (N, E, R, C).
        out: room (N, 16, at least e * r * c) for the result.

    Returns:
        View (N, 16, e, r, c) of `out`.
    """
    e, r, c = chunk
    momentum, square = accumulators.momentum[:, :, e, r, c], accumulators.square[:, :, e, r, c]
    grad = grad[:, e, r, c].unsqueeze(1)
    room = out[:, :, : grad[0].numel()].unflatten(2, grad.shape[2:])
    whole = slice(None)
    row, column = factors.row[:, :, e, r], (whole, whole, e, whole, c)
    room[:, 0:1] = grad
    room[:, 1:2] = params[:, e, r, c].unsqueeze(1)
    room[:, 2:5] = momentum
    room[:, 5:6] = square
    inverse_root = room[:, 9:10]
    torch.rsqrt(square + 1e-6, out=inverse_root)
    torch.mul(momentum, inverse_root, out=room[:, 6:9])
    torch.mul(row, factors.column[column], out=room[:, 10:13])
    room[:, 10:13].mul_(grad)
    torch.mul(row, factors.momentum_column[column], out=room[:, 13:16])
    room[:, 13:16].mul_(momentum)
    return room


def all_features(params: Tensor, grad: Tensor, accumulators: Accumulators, inner_step: Tensor) -> Tensor:
    """All 39 features (N, 39, E, R, C), written for reading: the twin of the folded form.

    Args:
        params: (N, E, R, C).
        grad: (N, E, R, C).
        accumulators: already updated with `grad`.
        inner_step: (1,) or (N,) updates made before this one.
    """
    momentum, square = accumulators.momentum, accumulators.square
    row, column = accumulators.row.expand_as(momentum), accumulators.column.expand_as(momentum)
    factors = preconditioners(accumulators)
    inverse_root = (square + 1e-6).rsqrt()
    grad = grad.unsqueeze(1)
    groups = [
        grad,
        params.unsqueeze(1),
        momentum,
        square,
        momentum * inverse_root,
        inverse_root,
        grad * factors.row * factors.column,
        row,
        column,
        (row + 1e-8).rsqrt(),
        (column + 1e-8).rsqrt(),
        momentum * factors.row * factors.momentum_column,
    ]
    features = torch.cat(groups, dim=1)  # (N, 28, E, R, C)
    features = features * inverse_rms(features.square().mean(dim=(2, 3, 4), keepdim=True))
    time = time_features(inner_step).expand(features.shape[0], -1)[..., None, None, None]
    return torch.cat([features, time.expand(-1, -1, *features.shape[2:])], dim=1)


def published_features(
    param: Tensor, grad: Tensor, accumulators: Accumulators, factors: Preconditioners, *, square_floor: float
) -> list[Tensor]:
    """The 14 groups (N, k, E, R, C) of the 30 features that VeLO and Celo2 read, not normalised.

    Args:
        param: (N, E, R, C), or a chunk of it as all that follows.
        grad: likewise.
        accumulators: already updated with `grad`.
        factors: of the accumulators of the whole tensor.
        square_floor: added to the second moment before its root.
    """
    momentum, square = accumulators.momentum, accumulators.square
    row, column = accumulators.row.expand_as(momentum), accumulators.column.expand_as(momentum)
    inverse_root = (square + square_floor).rsqrt()
    grad = grad.unsqueeze(1)
    return [
        grad,
        grad.clamp(-SMALL_GRAD_LIMIT, SMALL_GRAD_LIMIT),
        param.unsqueeze(1),
        momentum,
        square,
        momentum * inverse_root,
        inverse_root,
        grad * factors.row * factors.column,
        grad * inverse_root,
        row,
        column,
        (row + 1e-8).rsqrt(),
        (column + 1e-8).rsqrt(),
        momentum * factors.row * factors.momentum_column,
    ]


def inverse_rms(mean_square: Tensor) -> Tensor:
    """Factor that brings features with this mean square to unit scale."""
    return (mean_square + _MEAN_SQUARE_FLOOR).rsqrt()


def time_features(inner_step: Tensor) -> Tensor:
    """tanh(t / tau - 1) for each time scale: (N,) -> (N, 11)."""
    return torch.tanh(inner_step[:, None] / constant(TIMESCALES, inner_step.device) - 1)


def _safe_rsqrt(x: Tensor) -> Tensor:
    return x.clamp(min=_FACTOR_FLOOR).rsqrt()


def _as_channels(x: Tensor) -> Tensor:
    return x[..., None, None, None]
