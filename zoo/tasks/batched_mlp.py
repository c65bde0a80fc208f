"""N multilayer perceptrons at once, their forward and backward pass written out by hand.

Activities are kept with units before examples, so that no product needs a transposed copy, and so that the first layer
of all networks is one matrix product where they see the same minibatch. This is why training a population costs little
more than its arithmetic. The tests hold these functions to the module and to autograd.

Legend: N networks, B examples, D inputs, O units of a layer, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from zoo.networks.architectures import ACTIVATIONS
from zoo.networks.layout import ParamLayout
from zoo.tasks.objectives import Objective

_SELU_SCALE: Final = 1.0507009873554805
_SELU_ALPHA: Final = 1.6732632423543772


@dataclass(frozen=True)
class BatchedMLP:
    """A Backend for `zoo.networks.architectures.MLP`.

    Attributes:
        layout: of an MLP.
        activation: one of ACTIVATIONS.
        objective: whose losses are taken.
        input_ndim: dims of inputs that all networks share; own ones have one more.
    """

    layout: ParamLayout
    activation: str
    objective: Objective
    input_ndim: int
    is_compilable: ClassVar[bool] = True

    def base(self) -> dict[str, Tensor]:
        return {}

    def to(self, device: torch.device | str) -> BatchedMLP:
        return self

    def outputs(self, params: Tensor, inputs: Tensor) -> Tensor:
        return mlp_forward(self.layout, params, self._flat(inputs), self.activation)[0]

    def loss(self, params: Tensor, inputs: Tensor, targets: Tensor, stream: Tensor | None = None) -> Tensor:
        return self.objective.loss(self.outputs(params, inputs), targets)

    def loss_and_grad(
        self, params: Tensor, inputs: Tensor, targets: Tensor, stream: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        inputs = self._flat(inputs)
        outputs, saved = mlp_forward(self.layout, params, inputs, self.activation)
        loss, output_grad = self.objective.loss_and_grad(outputs, targets)
        return loss, mlp_backward(self.layout, params, inputs, self.activation, saved=saved, output_grad=output_grad)

    def _flat(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(2 if inputs.ndim > self.input_ndim else 1)  # (B, D) or (N, B, D)


class MLPActivities(NamedTuple):
    """What the backward pass needs of each hidden layer: sums before the activation and activities, (N, O, B)."""

    sums: list[Tensor]
    activities: list[Tensor]


def mlp_forward(layout: ParamLayout, params: Tensor, inputs: Tensor, activation: str) -> tuple[Tensor, MLPActivities]:
    """Outputs (N, B, K) of N networks, and what the backward pass needs.

    Args:
        layout: of an MLP.
        params: (N, P).
        inputs: (B, D) shared by all networks, or (N, B, D).
        activation: one of ACTIVATIONS.
    """
    weights, biases = _layers(layout, params)
    saved = MLPActivities([], [])
    value = _first_layer(weights[0], inputs) + biases[0][..., None]  # (N, O, B)
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        saved.sums.append(value)
        saved.activities.append(ACTIVATIONS[activation](value))
        value = torch.bmm(weight, saved.activities[-1]) + bias[..., None]  # (N, O, B)
    return value.mT, saved


def mlp_backward(
    layout: ParamLayout, params: Tensor, inputs: Tensor, activation: str, *, saved: MLPActivities, output_grad: Tensor
) -> Tensor:
    """Gradients (N, P) of N networks by their parameters.

    Args:
        layout, params, inputs, activation: as in `mlp_forward`.
        saved: from `mlp_forward`.
        output_grad: (N, B, K) gradient by the outputs.
    """
    weights, _ = _layers(layout, params)
    parts: list[Tensor] = []  # of the last layer first
    grad = output_grad.mT  # (N, K, B)
    for weight, value, activity in zip(weights[:0:-1], saved.sums[::-1], saved.activities[::-1], strict=True):
        parts += [grad.sum(2), torch.bmm(grad, activity.mT).flatten(1)]
        grad = torch.bmm(weight.mT, grad) * DERIVATIVES[activation](value)  # (N, O, B)
    parts += [grad.sum(2), _first_weight_grad(grad, inputs)]
    return torch.cat(parts[::-1], dim=1)


def _layers(layout: ParamLayout, params: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Weights (N, O, I) and biases (N, O) of each layer, views of `params`."""
    views = list(layout.views(params).values())
    return views[0::2], views[1::2]


def _first_layer(weight: Tensor, inputs: Tensor) -> Tensor:
    if inputs.ndim == 3:
        return torch.bmm(weight, inputs.mT)  # (N, O, B)
    num_networks, num_units, num_inputs = weight.shape
    together = weight.reshape(-1, num_inputs) @ inputs.T  # (N * O, B): one product for the whole population
    return together.view(num_networks, num_units, -1)


def _first_weight_grad(grad: Tensor, inputs: Tensor) -> Tensor:
    if inputs.ndim == 3:
        return torch.bmm(grad, inputs).flatten(1)  # (N, O * D)
    return (grad.flatten(0, 1) @ inputs).view(len(grad), -1)  # (N, O * D)


def _gelu_derivative(x: Tensor) -> Tensor:
    cumulative = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
    return cumulative + x * density


def _selu_derivative(x: Tensor) -> Tensor:
    return _SELU_SCALE * (_SELU_ALPHA * x.clamp(max=0).exp()).masked_fill(x > 0, 1.0)


def _silu_derivative(x: Tensor) -> Tensor:
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))


DERIVATIVES: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "relu": lambda x: x > 0,
    "gelu": _gelu_derivative,
    "selu": _selu_derivative,
    "silu": _silu_derivative,
    "tanh": lambda x: 1 - x.tanh().square(),
}
