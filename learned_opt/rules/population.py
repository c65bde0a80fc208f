"""A learned rule as an optimizer of populations: of a zoo, of the particles of a meta-training, of a comparison.

Legend: N networks, P numbers of one network, T of them trainable, R tensors of one network, M meta-parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from learned_opt.rules.rule import RuleState, UpdateRule, reads_loss
from learned_opt.rules.tensor_specs import specs_of
from zoo.devices import sent
from zoo.networks.layout import ParamLayout
from zoo.training.optimizers import Hyperparameter, State
from zoo.training.schedules import Schedule, StepCount


@dataclass(frozen=True, eq=False)
class PopulationOptimizer:
    """Trains N networks by one rule; an `InnerOptimizer` of `zoo.training.optimizers`.

    Args:
        rule: the update rule.
        theta: (M,) shared by all networks, or (N, M).
        lr: multiplier of the rule's own step, a number or (N,). A rule takes one number, so networks of equal
            multipliers should stand beside each other: they are updated together.
        weight_decay: in units of the rule's base step; None is the rule's own.
        schedule: of `lr`.
        depth: residual branches or hidden layers of the model, by default read from the layout.
    """

    rule: UpdateRule
    theta: Tensor
    _: KW_ONLY
    lr: Hyperparameter = 1.0
    weight_decay: float | None = None
    schedule: Schedule | None = None
    depth: int | None = None
    _thetas: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def is_recordable(self) -> bool:
        """Whether `update` is work on tensors alone; schedules and multipliers of each network are read by Python."""
        return self.schedule is None and not isinstance(self.lr, Tensor)

    @property
    def uses_loss(self) -> bool:
        """Whether `update` must be given the losses."""
        return reads_loss(self.rule)

    def init_state(self, layout: ParamLayout, params: Tensor) -> State:
        """Tensors named `<kind>.<index of the parameter>`."""
        return _flat(self.rule.init_state(specs_of(layout, self.depth), _views(layout, params)))

    def update(
        self,
        layout: ParamLayout,
        params: Tensor,
        grads: Tensor,
        state: State,
        *,
        inner_step: StepCount,
        num_steps: StepCount,
        loss: Tensor | None = None,
    ) -> None:
        """One step, in place on `params` (N, P); under autograd, which a rule must be made for, with their history."""
        lr = self.lr if self.schedule is None else self.lr * self.schedule.factor(inner_step, num_steps)
        theta = self._theta_on(params.device)
        if not isinstance(lr, Tensor):
            self._update(theta, layout, params, grads, state, lr=lr, clock=(inner_step, num_steps), loss=loss)
            return
        counts = torch.unique_consecutive(lr, return_counts=True)[1]
        for rows in torch.arange(len(lr)).split(counts.tolist()):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            states = {name: tensor[part] for name, tensor in state.items()}
            own = theta[part] if theta.ndim == 2 else theta
            clock = tuple(count[part] if isinstance(count, Tensor) else count for count in (inner_step, num_steps))
            some = None if loss is None else loss[part]
            self._update(own, layout, params[part], grads[part], states, lr=float(lr[part][0]), clock=clock, loss=some)
            for name, tensor in states.items():
                state[name][part] = tensor

    def _theta_on(self, device: torch.device) -> Tensor:
        """The meta-parameters, copied to another device once."""
        if self.theta.device == device:
            return self.theta
        if device not in self._thetas:
            self._thetas[device] = sent(self.theta, device)
        return self._thetas[device]

    def _update(
        self,
        theta: Tensor,
        layout: ParamLayout,
        params: Tensor,
        grads: Tensor,
        state: State,
        *,
        lr: float,
        clock: Sequence[StepCount],
        loss: Tensor | None,
    ) -> None:
        told = {"loss": loss} if self.uses_loss else {}  # rules of users may not have heard of it
        slots = [slot for slot in layout if slot.kind == "param"]
        # Autograd may need the old values: the rule then works on a copy, as one that makes new tensors does anyway.
        before = _views(layout, params.clone() if torch.is_grad_enabled() else params)
        views = list(before)
        nested: RuleState = {}
        for name, tensor in state.items():  # in the order of the indices, as `init_state` made them
            nested.setdefault(name.rpartition(".")[0], []).append(tensor)
        self.rule.update(
            theta,
            specs_of(layout, self.depth),
            views,
            [grads[:, slot.span].view(len(grads), *slot.shape) for slot in slots],
            nested,
            inner_step=clock[0],
            num_steps=clock[1],
            lr=lr,
            weight_decay=self.weight_decay,
            **told,
        )
        for name, tensor in _flat(nested).items():
            if torch.is_grad_enabled():
                state[name] = tensor
            elif tensor is not state[name]:  # of a rule that makes new ones
                state[name].copy_(tensor)
        for slot, old, new in zip(slots, before, views, strict=True):
            if torch.is_grad_enabled() or new is not old:
                params[:, slot.span] = new.reshape(len(params), -1)


def _views(layout: ParamLayout, params: Tensor) -> list[Tensor]:
    views = layout.views(params)
    return [views[slot.name] for slot in layout if slot.kind == "param"]


def _flat(state: RuleState) -> State:
    return {f"{kind}.{i}": tensor for kind, tensors in state.items() for i, tensor in enumerate(tensors)}
