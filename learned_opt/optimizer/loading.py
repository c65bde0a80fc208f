"""What a saved optimizer must have in common with the one that loads it, and what is made to fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learned_opt.optimizer.averaging import AVERAGE
from learned_opt.optimizer.checks import is_sharded
from learned_opt.optimizer.gradients import spec_in
from learned_opt.optimizer.low_precision import REMAINDER
from learned_opt.optimizer.param_groups import DESCRIPTION
from learned_opt.pretrained.files import Pretrained, available, load_pretrained
from learned_opt.rules.rule import UpdateRule
from learned_opt.rules.tensor_specs import matrix_view


class ThetaMismatchError(ValueError):
    """A saved optimizer was run by other meta-parameters."""


def theta_of(saved: Mapping[str, Any], mine: Pretrained, others: Iterable[str]) -> Pretrained:
    """The meta-parameters that a saved optimizer was run by.

    Args:
        saved: what its `state_dict()` gave.
        mine: those of the optimizer that loads it.
        others: names of those that it may take in place of its own.

    Raises:
        ThetaMismatchError: if they are none of these.
        ValueError: if it was no optimizer.
    """
    if not saved.get("param_groups"):
        raise ValueError(f"expected what state_dict() of an optimizer gives, got the keys {sorted(saved)[:8]}")
    theta_hash = saved["param_groups"][0].get("theta_hash")
    for theta in (mine, *map(load_pretrained, others)):
        if theta.hash == theta_hash:
            return theta
    of = f"used meta-parameters {theta_hash}" if theta_hash else "is of another kind, without meta-parameters"
    name = next((name for name in available() if load_pretrained(name).hash == theta_hash), None)
    raise ThetaMismatchError(
        f"the saved optimizer {of}, this one has {mine.hash} ({mine.name or mine.rule.name}); "
        f"make it with {'the same theta' if name is None else f'theta={name!r}'}"
    )


def fit(
    loaded: Mapping[str, Any], saved: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], rule: UpdateRule
) -> None:
    """Make what torch has loaded fit parameters and groups.

    Args:
        loaded: what torch made of `saved`.
        saved: from a file.
        groups: of the optimizer, before.
        rule: that it runs.

    Raises:
        ValueError: if the state is of parameters of other shapes.
    """
    for group, own, before in zip(loaded["param_groups"], groups, saved["param_groups"], strict=True):
        _complete_group(group, own)
        for i, (param, key) in enumerate(zip(group["params"], before["params"], strict=True)):
            if param.dtype != torch.float32 and key in saved["state"]:  # torch has cast it to that dtype
                loaded["state"][param] = {
                    kind: kept.to(param.device, copy=True) for kind, kept in saved["state"][key].items()
                }
            if state := loaded["state"].get(param):
                if not is_sharded(param):
                    _check_shapes(state, group, i, rule)
                state.update({kind: kept.contiguous() for kind, kept in state.items()})  # kernels take no others


def _complete_group(group: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Add what the release that saved a group did not save, and what the constructor was told."""
    if "axes" in group:
        group |= {key: own[key] for key in DESCRIPTION}
    else:  # version 0.1: every tensor as it lies in memory, and no decay meant the learned one
        group["axes"] = ["oi"] * len(group["params"])
        group["weight_decay"] = group["weight_decay"] or None
    group |= {key: value for key, value in own.items() if key not in group}
    group["num_training_steps"] = own["num_training_steps"] or group["num_training_steps"]


def _check_shapes(state: Mapping[str, Tensor], group: Mapping[str, Any], i: int, rule: UpdateRule) -> None:
    param, axes = group["params"][i], group["axes"][i]
    view = matrix_view(torch.empty(param.shape, device="meta"), axes)
    fresh = rule.init_state([spec := spec_in(group, i, view.shape[1:])], [view])
    like = {key: tensor if axes.startswith("e") else tensor[0] for key, (tensor,) in fresh.items()}
    for key, tensor in (like | {REMAINDER: param, AVERAGE: param}).items():
        if key in state and (got := state[key].shape) != tensor.shape:
            raise ValueError(
                f"the saved optimizer is of another model: {key} of {spec.name} has shape {tuple(got)}, "
                f"expected {tuple(tensor.shape)} for a parameter {tuple(param.shape)}"
            )
