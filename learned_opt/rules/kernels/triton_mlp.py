"""The MLP rule on a GPU: two kernels, each reading every number of the state once.

The first accumulates the gradient and sums the squares of the dense features by program (summed again in a fixed order,
so that updates are reproducible bit by bit); the second runs the network in registers and changes the parameters.

Legend: N networks, H hidden units, E x R x C one tensor (see `features`); a program handles BLOCK columns of one row.
"""

# Triton kernels take pointers and sizes by position, and their arguments have no Python types.
# ruff: noqa: PLR0917
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from learned_opt.rules import features
from learned_opt.rules.features import Accumulators, Decays
from learned_opt.rules.kernels.folding import MAGNITUDE_SCALE, Layer, fold, network_size, only_active

SUPPORTED_HIDDEN: Final = (16, 32, 64)  # sizes that the matrix units take
STATISTICS_BLOCK: Final = 1024
NETWORK_BLOCK: Final = 128


def fused_update_(
    layers: Sequence[Layer],
    decays: Decays,
    accumulators: Accumulators,
    *,
    param: Tensor,
    grad: Tensor,
    inner_step: Tensor,
    step_size: float | Tensor,
    shrink: float | Tensor,
    active: Tensor | None = None,
) -> None:
    """As `chunked_update_`."""
    layers, decays, shrink_of = only_active(layers, decays, shrink, active)
    one = param.new_ones(len(param))
    shrinks, step_sizes = one * (shrink_of.flatten() if isinstance(shrink_of, Tensor) else shrink_of), one * step_size
    num_networks, num_blocks, num_rows, num_columns = param.shape
    num_programs = num_blocks * num_rows * triton.cdiv(num_columns, STATISTICS_BLOCK)
    features.accumulate_factors(accumulators, grad, decays)
    factors = features.preconditioners(accumulators)
    tensors = (
        *(param, grad, accumulators.momentum, accumulators.square),
        *(x.contiguous() for x in (factors.row, factors.column, factors.momentum_column)),
    )
    shape = (num_blocks, num_rows, num_columns, *param.stride(), *grad.stride())

    sums = param.new_empty(num_networks, num_programs, features.NUM_DENSE)
    grid = (num_networks * num_blocks * num_rows, triton.cdiv(num_columns, STATISTICS_BLOCK))
    decay = torch.cat([decays.momentum.expand(num_networks, -1), decays.square.expand(num_networks, -1)], dim=1)
    with _on(param):
        _statistics[grid](*tensors, decay.contiguous(), sums, *shape, BLOCK=STATISTICS_BLOCK)

    first = fold(layers[0], accumulators, sums.sum(dim=1) / param[0].numel(), inner_step)
    _, second, last = layers
    grid = (grid[0], triton.cdiv(num_columns, NETWORK_BLOCK))
    weights = (first.weight, first.row_bias, first.column_bias, second.weight, second.bias, last.weight, last.bias)
    with _on(param):
        _network[grid](
            *tensors,
            *(weight.contiguous() for weight in weights),
            *(shrinks, step_sizes, MAGNITUDE_SCALE, *shape),
            HIDDEN=network_size(layers),
            PRECISION="tf32x3" if _has_tf32(param) else "ieee",
            BLOCK=NETWORK_BLOCK,
        )


def _on(x: Tensor) -> torch.cuda.device | nullcontext[None]:
    """Kernels start on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _has_tf32(x: Tensor) -> bool:
    """Whether matrix units take TF32, of which three products are one of float32."""
    return x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (8, 0)


@triton.jit
def _place(num_blocks, num_rows, num_columns, BLOCK: tl.constexpr):
    """Network, block and row of this program, its columns and which of them exist."""
    row_of_all = tl.program_id(0)
    network = row_of_all // (num_blocks * num_rows)
    row = row_of_all % num_rows
    block = (row_of_all // num_rows) % num_blocks
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return network.to(tl.int64), block.to(tl.int64), row.to(tl.int64), columns, columns < num_columns


@triton.jit
def _factors(pointer, row_pointer, network, k, num_blocks, num_rows, num_columns, block, row, columns, mask):
    """Product of the row and column factor of decay k."""
    index = (network * 3 + k) * num_blocks + block
    return tl.load(row_pointer + index * num_rows + row) * tl.load(pointer + index * num_columns + columns, mask, 0.0)


@triton.jit
def _statistics(
    param_ptr, grad_ptr, momentum_ptr, square_ptr, row_ptr, column_ptr, momentum_column_ptr, decay_ptr, sums_ptr,
    num_blocks, num_rows, num_columns, pn, pe, pr, pc, gn, ge, gr, gc, BLOCK: tl.constexpr,
):  # fmt: skip
    network, block, row, columns, mask = _place(num_blocks, num_rows, num_columns, BLOCK)
    param = tl.load(param_ptr + network * pn + block * pe + row * pr + columns * pc, mask, 0.0)
    grad = tl.load(grad_ptr + network * gn + block * ge + row * gr + columns * gc, mask, 0.0)
    count = num_blocks * num_rows * num_columns
    here = (block * num_rows + row) * num_columns + columns
    program = (block * num_rows + row) * tl.num_programs(1) + tl.program_id(1)
    sums = sums_ptr + (network * num_blocks * num_rows * tl.num_programs(1) + program) * 16

    decay = tl.load(decay_ptr + network * 4 + 3)
    square = tl.load(square_ptr + network * count + here, mask, 0.0)
    square = square + (1 - decay) * (grad * grad - square)
    tl.store(square_ptr + network * count + here, square, mask)
    root = tl.where(mask, tl.rsqrt(square + 1e-6), 0.0)
    tl.store(sums, tl.sum(grad * grad))
    tl.store(sums + 1, tl.sum(param * param))
    tl.store(sums + 5, tl.sum(square * square))
    tl.store(sums + 9, tl.sum(root * root))
    for k in tl.static_range(3):
        place = momentum_ptr + (network * 3 + k) * count + here
        momentum = tl.load(place, mask, 0.0)
        momentum = momentum + (1 - tl.load(decay_ptr + network * 4 + k)) * (grad - momentum)
        tl.store(place, momentum, mask)
        scaled = grad * _factors(
            column_ptr, row_ptr, network, k, num_blocks, num_rows, num_columns, block, row, columns, mask
        )
        mixed = momentum * _factors(
            momentum_column_ptr, row_ptr, network, k, num_blocks, num_rows, num_columns, block, row, columns, mask
        )
        tl.store(sums + 2 + k, tl.sum(momentum * momentum))
        tl.store(sums + 6 + k, tl.sum(momentum * root * momentum * root))
        tl.store(sums + 10 + k, tl.sum(scaled * scaled))
        tl.store(sums + 13 + k, tl.sum(mixed * mixed))


@triton.jit
def _add(hidden, weights, index: tl.constexpr, values):
    """hidden (H, BLOCK) plus one dense feature times its column of weights."""
    return hidden + tl.load(weights + index)[:, None] * values[None, :]


@triton.jit
def _network(
    param_ptr, grad_ptr, momentum_ptr, square_ptr, row_ptr, column_ptr, momentum_column_ptr,
    w1_ptr, row_bias_ptr, column_bias_ptr, w2_ptr, b2_ptr, w3_ptr, b3_ptr, shrink_ptr, step_size_ptr, magnitude_scale,
    num_blocks, num_rows, num_columns, pn, pe, pr, pc, gn, ge, gr, gc, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    network, block, row, columns, mask = _place(num_blocks, num_rows, num_columns, BLOCK)
    param_place = param_ptr + network * pn + block * pe + row * pr + columns * pc
    param = tl.load(param_place, mask, 0.0)
    grad = tl.load(grad_ptr + network * gn + block * ge + row * gr + columns * gc, mask, 0.0)
    count = num_blocks * num_rows * num_columns
    here = (block * num_rows + row) * num_columns + columns
    square = tl.load(square_ptr + network * count + here, mask, 0.0)
    root = tl.rsqrt(square + 1e-6)

    units = tl.arange(0, HIDDEN)
    unit = network * HIDDEN + units
    row_bias = tl.load(row_bias_ptr + (unit * num_blocks + block) * num_rows + row)
    column_places = column_bias_ptr + ((unit * num_blocks + block) * num_columns)[:, None] + columns[None, :]
    hidden = row_bias[:, None] + tl.load(column_places, mask[None, :], 0.0)  # (H, BLOCK)
    weights = w1_ptr + unit * 16
    hidden = _add(hidden, weights, 0, grad)
    hidden = _add(hidden, weights, 1, param)
    hidden = _add(hidden, weights, 5, square)
    hidden = _add(hidden, weights, 9, root)
    for k in tl.static_range(3):
        momentum = tl.load(momentum_ptr + (network * 3 + k) * count + here, mask, 0.0)
        scaled = grad * _factors(
            column_ptr, row_ptr, network, k, num_blocks, num_rows, num_columns, block, row, columns, mask
        )
        mixed = momentum * _factors(
            momentum_column_ptr, row_ptr, network, k, num_blocks, num_rows, num_columns, block, row, columns, mask
        )
        hidden = _add(hidden, weights, 2 + k, momentum)
        hidden = _add(hidden, weights, 6 + k, momentum * root)
        hidden = _add(hidden, weights, 10 + k, scaled)
        hidden = _add(hidden, weights, 13 + k, mixed)
    hidden = tl.maximum(hidden, 0.0)

    w2 = tl.load(w2_ptr + network * HIDDEN * HIDDEN + units[:, None] * HIDDEN + units[None, :])
    hidden = tl.dot(w2, hidden, input_precision=PRECISION) + tl.load(b2_ptr + unit)[:, None]
    hidden = tl.maximum(hidden, 0.0)
    outputs = w3_ptr + network * 2 * HIDDEN + units
    direction = tl.sum(tl.load(outputs)[:, None] * hidden, axis=0) + tl.load(b3_ptr + network * 2)
    magnitude = tl.sum(tl.load(outputs + HIDDEN)[:, None] * hidden, axis=0) + tl.load(b3_ptr + network * 2 + 1)
    step = direction * tl.exp(magnitude_scale * magnitude)
    kept = tl.load(shrink_ptr + network) * param
    tl.store(param_place, kept - tl.load(step_size_ptr + network) * step, mask)
