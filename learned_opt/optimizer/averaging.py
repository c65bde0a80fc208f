"""Averages of weights, which are what to keep of a run whose length is not known.

While steps are not small, weights are in a ball of noise whose middle is better than any point of it. After the update
t = 0, 1, ... the average A of the weights W becomes A + (p + 1) / (t + 1 + p) (W - A): a mean over about the last
1 / (p + 1) of the run, however long that is. A is as precise as what the rule computes, float32 or better, whatever the
dtype of the parameter.

As in Schedule-Free optimizers the model holds either: `optimizer.eval()` puts the averages into it, `optimizer.train()`
the weights that are trained.

Source: Shamir & Zhang 2013 (arXiv 1212.1824), polynomial-decay averaging; Defazio et al. 2024 (arXiv 2405.15682) for
the two modes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from learned_opt.optimizer.checks import is_sharded
from learned_opt.optimizer.low_precision import REMAINDER, to_float32

AVERAGE: Final = "averaged_weights"  # names in the state of a parameter
ITERATE: Final = "trained_weights"  # while the model holds the average: what training goes on from


def new_average(param: Tensor) -> Tensor:
    """Where an average begins."""
    return param.detach().to(torch.promote_types(param.dtype, torch.float32), copy=True)


@torch.no_grad()
def update_averages(
    params: Iterable[Tensor],
    states: Mapping[Tensor, dict[str, Any]],
    *,
    power: float,
    inner_step: int | Tensor,
    by: bool | Tensor,
) -> None:
    """Move the averages of all parameters that have one towards what the parameters are now.

    Args:
        params: of all groups, with an update in this step or without.
        states: of the optimizer.
        power: p.
        inner_step: t, updates before this one.
        by: whether this step was an update; a tensor where one would have to wait for it.
    """
    weight = (power + 1) / (inner_step + 1 + power) * by
    averages, iterates = [], []
    for param in params:
        if (average := states[param].get(AVERAGE) if param in states else None) is not None:
            averages.append(_local(average))
            iterates.append(_exact(_local(param.detach()), states[param].get(REMAINDER)))
    if isinstance(weight, Tensor):
        for average, iterate in zip(averages, iterates, strict=True):
            average.lerp_(iterate, weight.to(average))
    elif averages:
        torch._foreach_lerp_(averages, iterates, weight)


@torch.no_grad()
def show_averages(params: Sequence[Tensor], states: Mapping[Tensor, dict[str, Any]]) -> None:
    """Put averages into the parameters that have one, whose numbers are kept unless some are kept already."""
    for param in params:
        state = states.get(param, {})
        if AVERAGE in state:
            state.setdefault(ITERATE, param.detach().clone())
            _local(param.detach()).copy_(_local(state[AVERAGE]))


@torch.no_grad()
def show_iterates(params: Sequence[Tensor], states: Mapping[Tensor, dict[str, Any]]) -> None:
    """Undo `show_averages`."""
    for param in params:
        state = states.get(param, {})
        if ITERATE in state:
            _local(param.detach()).copy_(_local(state.pop(ITERATE)))


@torch.no_grad()
def holds_averages(params: Sequence[Tensor], states: Mapping[Tensor, dict[str, Any]]) -> bool:
    """Whether the parameters are what `show_averages` puts into them."""
    averaged = [param for param in params if AVERAGE in states.get(param, {})]
    return bool(averaged) and all(
        torch.equal(_local(param.detach()), _local(states[param][AVERAGE]).to(param.dtype)) for param in averaged
    )


def _exact(param: Tensor, remainder: Tensor | None) -> Tensor:
    if param.dtype == torch.float64:
        return param
    return to_float32(param, None if remainder is None else _local(remainder))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
