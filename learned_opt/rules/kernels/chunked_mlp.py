"""The MLP rule chunk by chunk in plain torch: constant temporary memory, activations that stay in the cache.

Legend: N networks, H hidden units, E x R x C one tensor (see `features`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learned_opt.rules import features
from learned_opt.rules.features import Accumulators, Decays
from learned_opt.rules.kernels.folding import MAGNITUDE_SCALE, Layer, fold, network_size, only_active


def chunked_update_(
    layers: Sequence[Layer],
    decays: Decays,
    accumulators: Accumulators,
    *,
    param: Tensor,
    grad: Tensor,
    inner_step: Tensor,
    step_size: float | Tensor,
    shrink: float | Tensor,
    chunk_numel: int,
    active: Tensor | None = None,
) -> None:
    """param <- shrink * param - step_size * step, and accumulate the gradient, in place where networks are active.

    Statistics of the features are needed before the network can run, so that features are built twice, unless one chunk
    holds them all.
    """
    layers, decays, shrink_of = only_active(layers, decays, shrink, active)
    num_blocks, num_rows, num_columns = param.shape[1:]
    chunks = list(features.chunks((num_blocks, num_rows, num_columns), chunk_numel))
    room = min(chunk_numel, param[0].numel())
    dense = param.new_empty(param.shape[0], features.NUM_DENSE, room)

    features.accumulate_factors(accumulators, grad, decays)
    factors = features.preconditioners(accumulators)
    total = param.new_zeros(param.shape[0], features.NUM_DENSE)
    for chunk in chunks:
        place = (slice(None), slice(None), *chunk)
        momentum, square = accumulators.momentum[place], accumulators.square[place]
        features.accumulate_elements(momentum, square, grad[(slice(None), *chunk)], decays)
        x = features.dense_features(param, grad, accumulators, factors, chunk=chunk, out=dense)
        total += torch.linalg.vector_norm(x.flatten(2), dim=2).square_()

    first = fold(layers[0], accumulators, total / param[0].numel(), inner_step)
    _, second, last = layers
    # relu(y + b) = max(y, -b) + b: the bias of the second layer moves into the last one and costs no pass.
    floor = -second.bias[..., None]
    last_bias = last.bias[..., None] + last.weight @ second.bias[..., None]
    hidden = param.new_empty(2, param.shape[0], network_size(layers), room)
    for chunk in chunks:
        e, r, c = chunk
        if len(chunks) > 1:
            x = features.dense_features(param, grad, accumulators, factors, chunk=chunk, out=dense)
        one, two = hidden[..., : x[0, 0].numel()]
        torch.add(first.row_bias[:, :, e, r], first.column_bias[:, :, e, :, c], out=one.unflatten(2, x.shape[2:]))
        one.baddbmm_(first.weight, x.flatten(2)).relu_()  # (N, H, n)
        torch.maximum(torch.bmm(second.weight, one, out=two), floor, out=two)
        direction, magnitude = torch.baddbmm(last_bias, last.weight, two).unbind(1)  # (N, n)
        step = direction.mul_(magnitude.mul_(MAGNITUDE_SCALE).exp_())
        target = param[:, e, r, c]
        if isinstance(shrink, Tensor) or shrink != 1:
            target.mul_(shrink_of)
        target.sub_(step.mul_(step_size).view_as(target))
