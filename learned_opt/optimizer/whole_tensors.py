"""A rule on whole tensors, or shards as if they were: their state to begin with, one update of parameters and state.

Legend: N matrices of a stack, 1 for every other tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learned_opt.optimizer.averaging import AVERAGE, new_average
from learned_opt.optimizer.gradients import Pending
from learned_opt.optimizer.low_precision import REMAINDER, loses_updates, portions, to_float32, write_back
from learned_opt.rules.rule import RuleState, StepCount, Total, UpdateRule, update_active
from learned_opt.rules.tensor_specs import matrix_view
from zoo.ambient import torch_defaults


def complete_state(entry: Pending, rule: UpdateRule, *, kahan_sum: bool) -> None:
    """Give a tensor what its state is to begin with, divided among ranks as the parameter is."""
    if not entry.state:
        if entry.sharding is None:
            param = entry.param.detach()
        else:
            from learned_opt.optimizer.sharded import whole_param

            param = whole_param(entry)
        fresh = rule.init_state([entry.spec], [matrix_view(param, entry.axes)])
        _keep(entry, {key: tensor for key, (tensor,) in fresh.items()})
    if kahan_sum and REMAINDER not in entry.state and loses_updates(entry.param):
        entry.state[REMAINDER] = torch.zeros_like(entry.param)  # also of a state that was saved without it
    if entry.group["average"] is not None and AVERAGE not in entry.state:
        entry.state[AVERAGE] = new_average(entry.param)
    if entry.sharding is not None:
        from learned_opt.optimizer.sharded import shard_state

        shard_state(entry, (*getattr(rule, "large_state", ()), REMAINDER, AVERAGE))


@torch_defaults()
def update_whole(
    rule: UpdateRule,
    theta_on: Callable[[torch.device], Tensor],
    pending: Sequence[Pending],
    *,
    inner_step: StepCount,
    num_steps: int | None,
    told: Mapping[str, Any],
    total: Total | None = None,
) -> None:
    """Update parameters and their state.

    Args:
        rule: that is run.
        theta_on: its meta-parameters on a device.
        pending: whole tensors, with their state; or shards.
        inner_step: updates made before.
        num_steps: horizon, None for none.
        told: what else the rule is told of the step.
        total: where these are shards: sums over them to sums over whole tensors, on all ranks in the same order.
    """
    told = told if total is None else {**told, "total": total}
    together: dict[tuple[torch.device, int], list[Pending]] = defaultdict(list)
    for entry in pending:
        together[entry.param.device, entry.num_matrices].append(entry)
    for (device, _), entries in together.items():
        for portion in [entries] if getattr(rule, "mixes_tensors", False) else portions(entries):
            _update_together(rule, theta_on(device), portion, inner_step=inner_step, num_steps=num_steps, **told)


def _update_together(rule: UpdateRule, theta: Tensor, pending: Sequence[Pending], **told: Any) -> None:
    """Run the rule on tensors of one device that are equally many matrices, as one model."""
    parts = [matrix_view(entry.param.detach(), entry.axes) for entry in pending]
    lost = [entry.state.get(REMAINDER) for entry in pending]  # by rounding
    remainders = [x if x is None else matrix_view(x, entry.axes) for x, entry in zip(lost, pending, strict=True)]
    params = [to_float32(part, lost) for part, lost in zip(parts, remainders, strict=True)]
    state: RuleState = defaultdict(list)
    for entry in pending:
        for key, kept in entry.state.items():
            if key not in (REMAINDER, AVERAGE):
                state[key].append(kept if entry.is_stack else kept.unsqueeze(0))
    old_state = {key: list(tensors) for key, tensors in state.items()}
    update_active(
        rule,
        theta,
        [entry.spec for entry in pending],
        params,
        grads=[(-entry.grad if entry.group["maximize"] else entry.grad).to(torch.float32) for entry in pending],
        state=state,
        active=[entry.active for entry in pending],
        **told,
        lr=[entry.lr for entry in pending],
        weight_decay=[entry.group["weight_decay"] for entry in pending],
    )
    for i, (entry, part, param) in enumerate(zip(pending, parts, params, strict=True)):
        if part.dtype != torch.float32:
            write_back(part, remainders[i], param)
        elif param is not part:  # otherwise the rule has changed the parameter itself
            part.copy_(param)
        _keep(entry, {key: new[i] for key, new in state.items() if new[i] is not old_state[key][i]})


def _keep(entry: Pending, state: Mapping[str, Tensor]) -> None:
    """Store the rule's state (N, ...) of a parameter, without the dim N unless the parameter has it."""
    entry.state.update(state if entry.is_stack else {key: tensor.squeeze(0) for key, tensor in state.items()})
