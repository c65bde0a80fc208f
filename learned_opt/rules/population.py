"""A learned rule as an optimizer of populations: what trains a zoo, or is compared with Adam on equal terms.

Legend: N networks, P numbers of one network, M meta-parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learned_opt.rules.rule import RuleState, TensorSpec, UpdateRule
from learned_opt.rules.tensor_specs import specs_of
from zoo.networks.layout import ParamLayout
from zoo.training.optimizers import State


class PopulationOptimizer:
    """Trains N networks by one rule; an `InnerOptimizer` of `zoo.training.optimizers`.

    Args:
        rule: the update rule.
        theta: (M,) shared by all networks, or (N, M).
        lr: multiplier of the rule's own step.
        weight_decay: in units of the rule's base step; None is the rule's own.
        depth: residual branches or hidden layers of the model, by default read from the layout.
    """

    def __init__(
        self,
        rule: UpdateRule,
        theta: Tensor,
        *,
        lr: float = 1.0,
        weight_decay: float | None = None,
        depth: int | None = None,
    ) -> None:
        self.rule = rule
        self.theta = theta
        self.lr = lr
        self.weight_decay = weight_decay
        self.depth = depth

    def init_state(self, layout: ParamLayout, params: Tensor) -> State:
        """Tensors named `<kind>.<index of the parameter>`."""
        state = self.rule.init_state(self._specs(layout), _views(layout, params))
        return {f"{kind}.{i}": tensor for kind, tensors in state.items() for i, tensor in enumerate(tensors)}

    @torch.no_grad()
    def update(
        self, layout: ParamLayout, params: Tensor, grads: Tensor, state: State, *, inner_step: int, num_steps: int
    ) -> None:
        nested = _nested(state)
        slots = [slot for slot in layout if slot.kind == "param"]
        self.rule.update(
            self.theta.to(params.device),
            self._specs(layout),
            _views(layout, params),
            [grads[:, slot.span].unflatten(1, slot.shape) if slot.shape else grads[:, slot.offset] for slot in slots],
            nested,
            inner_step=inner_step,
            num_steps=num_steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
        )
        for kind, tensors in nested.items():  # a rule may have put new tensors into its lists
            state.update({f"{kind}.{i}": tensor for i, tensor in enumerate(tensors)})

    def _specs(self, layout: ParamLayout) -> Sequence[TensorSpec]:
        return specs_of(layout, self.depth)


def _views(layout: ParamLayout, params: Tensor) -> list[Tensor]:
    views = layout.views(params)
    return [views[slot.name] for slot in layout if slot.kind == "param"]


def _nested(state: State) -> RuleState:
    nested: RuleState = {}
    for name, tensor in state.items():  # in the order of the indices, as `init_state` made them
        nested.setdefault(name.rpartition(".")[0], []).append(tensor)
    return nested
