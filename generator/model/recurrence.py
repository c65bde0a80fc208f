"""Bidirectional gated linear recurrence, computed by a parallel scan in plain PyTorch.

The state is linear in its past, h_t = a_t * h_{t-1} + (1 - a_t) * v_t with gates a_t in (0, 1) that depend on the
input alone, so L steps take log2 L rounds instead of L.

Source: Martin and Cundy 2018 (arXiv 1709.04057), linear recurrences by scans; Feng et al. 2024 (arXiv 2410.01201),
gates without the past state (minGRU); scan by doubling: Hillis and Steele 1986.

Legend: B sequences, L positions, d width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


def linear_scan(gates: Tensor, inputs: Tensor) -> Tensor:
    """States h_t = gates_t * h_{t-1} + inputs_t along dim 1, from h_{-1} = 0.

    Memory for the backward pass is that of one tensor, whatever the number of rounds.

    Args:
        gates: (B, L, d).
        inputs: (B, L, d).

    Returns:
        (B, L, d) states.
    """
    return cast(Tensor, _LinearScan.apply(gates, inputs))


def sequential_scan(gates: Tensor, inputs: Tensor) -> Tensor:
    """Readable twin of `linear_scan`: the recurrence as a loop."""
    state = torch.zeros_like(inputs[:, 0])
    states = []
    for gate, value in zip(gates.unbind(1), inputs.unbind(1), strict=True):
        state = gate * state + value
        states.append(state)
    return torch.stack(states, dim=1)


class GatedLinearRecurrence(nn.Module):
    """Residual layer (B, L, d) -> (B, L, d) that mixes along L in both directions.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inputs = nn.Linear(width, 5 * width)
        self.output = nn.Linear(2 * width, width)
        with torch.no_grad():  # gates begin near 0.73 to 0.98: memories of 4 to 50 tokens
            self.inputs.bias[: 2 * width].uniform_(1.0, 4.0)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        gates, values, output_gate = self.inputs(self.norm(x)).float().split((2 * width, 2 * width, width), dim=-1)
        keep = torch.sigmoid(gates)  # (B, L, 2d), forward and backward direction
        fed = (1 - keep) * values
        ahead = linear_scan(keep[..., :width], fed[..., :width])
        back = linear_scan(keep[..., width:].flip(1), fed[..., width:].flip(1)).flip(1)
        mixed = torch.cat((ahead, back), dim=-1) * nn.functional.silu(output_gate).repeat(1, 1, 2)
        return x + self.output(mixed.to(x.dtype))  # (B, L, d)


class _LinearScan(torch.autograd.Function):
    """The gradient of a scan is a scan in the other direction: g_t = dy_t + gates_{t+1} * g_{t+1}."""

    @staticmethod
    def forward(ctx: FunctionCtx, gates: Tensor, inputs: Tensor) -> Tensor:
        states = _scan_by_doubling(gates, inputs)
        ctx.save_for_backward(gates, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gates, states = ctx.saved_tensors  # type: ignore[attr-defined]
        following = torch.cat((gates[:, 1:], torch.zeros_like(gates[:, :1])), dim=1)
        carried = _scan_by_doubling(following.flip(1), grads[0].flip(1)).flip(1)
        previous = torch.cat((torch.zeros_like(states[:, :1]), states[:, :-1]), dim=1)
        return carried * previous, carried


def _scan_by_doubling(gates: Tensor, inputs: Tensor) -> Tensor:
    """After round k each state holds its last 2 ** k inputs, and each gate the product over as many."""
    states, products = inputs.clone(), gates.clone()
    shift, length = 1, inputs.shape[1]
    while shift < length:
        states[:, shift:] += products[:, shift:] * states[:, :-shift]
        products[:, shift:] = products[:, shift:] * products[:, :-shift]
        shift *= 2
    return states
