"""Forward and backward pass of N multilayer perceptrons at once, written out by hand.

Where all networks see the same minibatch, the first layer of all of them is one matrix product, which is why training
a population costs little more than its arithmetic. The tests hold these functions to the module and to autograd.

Legend: N networks, B examples, D inputs, I and O units below and above a matrix, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from zoo.architectures import ACTIVATIONS
from zoo.layout import ParamLayout

_SELU_SCALE: Final = 1.0507009873554805
_SELU_ALPHA: Final = 1.6732632423543772


def mlp_forward(
    layout: ParamLayout, params: Tensor, inputs: Tensor, activation: str
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Outputs of N networks, and what the backward pass needs.

    Args:
        layout: of an MLP.
        params: (N, P).
        inputs: (B, D) shared by all networks, or (N, B, D).
        activation: one of ACTIVATIONS.

    Returns:
        Outputs (N, B, K); of each hidden layer the sums before the activation (N, B, O); and its activities (N, B, O).
    """
    weights, biases = mlp_slots(layout, params)
    sums, activities = [], []
    value = _first_layer(weights[0], biases[0], inputs)
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        sums.append(value)
        activities.append(ACTIVATIONS[activation](value))
        value = torch.baddbmm(bias[:, None], activities[-1], weight.mT)  # (N, B, O)
    return value, sums, activities


def mlp_backward(
    layout: ParamLayout,
    params: Tensor,
    inputs: Tensor,
    activation: str,
    *,
    saved: tuple[list[Tensor], list[Tensor]],
    output_grad: Tensor,
) -> Tensor:
    """Gradients (N, P) of N networks by their parameters.

    Args:
        layout, params, inputs, activation: as in `mlp_forward`.
        saved: sums and activities of the hidden layers, from `mlp_forward`.
        output_grad: (N, B, K) gradient by the outputs.
    """
    weights, _ = mlp_slots(layout, params)
    sums, activities = saved
    parts: list[Tensor] = []
    grad = output_grad
    for weight, value, activity in zip(weights[:0:-1], sums[::-1], activities[::-1], strict=True):
        parts += [grad.sum(1), torch.bmm(grad.mT, activity).flatten(1)]
        grad = torch.bmm(grad, weight) * DERIVATIVES[activation](value)
    parts += [grad.sum(1), _first_weight_grad(grad, inputs)]
    return torch.cat(parts[::-1], dim=1)


def mlp_slots(layout: ParamLayout, params: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Weights (N, O, I) and biases (N, O) of each layer, views of `params`."""
    views = list(layout.views(params).values())
    return views[0::2], views[1::2]


def _first_layer(weight: Tensor, bias: Tensor, inputs: Tensor) -> Tensor:
    num_networks, num_units, num_inputs = weight.shape
    if inputs.ndim == 3:
        return torch.baddbmm(bias[:, None], inputs, weight.mT)  # (N, B, O)
    together = inputs @ weight.reshape(-1, num_inputs).T  # (B, N * O): one product for the whole population
    return together.view(-1, num_networks, num_units).transpose(0, 1) + bias[:, None]  # (N, B, O)


def _first_weight_grad(grad: Tensor, inputs: Tensor) -> Tensor:
    if inputs.ndim == 3:
        return torch.bmm(grad.mT, inputs).flatten(1)  # (N, O * D)
    together = grad.transpose(0, 1).flatten(1)  # (B, N * O)
    return (together.T @ inputs).view(len(grad), -1)  # (N, O * D)


def _gelu_derivative(x: Tensor) -> Tensor:
    cumulative = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
    return cumulative + x * density


def _selu_derivative(x: Tensor) -> Tensor:
    return _SELU_SCALE * torch.where(x > 0, 1.0, _SELU_ALPHA * x.clamp(max=0).exp())


def _silu_derivative(x: Tensor) -> Tensor:
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))


DERIVATIVES: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "relu": lambda x: (x > 0).to(x.dtype),
    "gelu": _gelu_derivative,
    "selu": _selu_derivative,
    "silu": _silu_derivative,
    "tanh": lambda x: 1 - x.tanh().square(),
}
