"""Muon over populations: orthogonalised momentum for the matrices inside a network, AdamW for all else.

Legend: N networks, A rows and B columns of a matrix, P numbers of one network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from zoo.networks.layout import ParamLayout, ParamSlot
from zoo.training.optimizers import (
    CoefficientUpdate,
    Hyperparameter,
    State,
    adam_coefficients,
    adam_step,
    as_coefficients,
    check_hyperparameters,
)
from zoo.training.schedules import Schedule, StepCount

ADJUSTMENTS: Final = ("original", "match_rms_adamw")
_NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS: Final = 5
_NORM_EPS: Final = 1e-7


@dataclass(frozen=True)
class Muon(CoefficientUpdate):
    """Muon as torch.optim.Muon for two-dimensional matrices of role input or hidden, AdamW for all other parameters.

    Output matrices, embeddings, convolution kernels, biases and norms belong to AdamW.

    Args:
        lr, momentum, weight_decay: of the matrices; numbers, or (N,).
        nesterov: orthogonalise the momentum as it will be.
        adam_lr, beta1, beta2, eps, adam_weight_decay: of all other parameters; numbers, or (N,).
        dtype: of the orthogonalisation, "bfloat16" as in the original or "float32".
        adjust_lr_fn: how `lr` follows the shape, as in torch.optim.Muon: "original" multiplies it by
            sqrt(max(1, A / B)), "match_rms_adamw" by 0.2 sqrt(max(A, B)), so that one rate serves Muon and AdamW.
        schedule: of both learning rates.

    Source: Jordan et al. 2024, Muon; Liu et al. 2025 (arXiv 2502.16982) for "match_rms_adamw".
    """

    lr: Hyperparameter = 0.02
    momentum: Hyperparameter = 0.95
    weight_decay: Hyperparameter = 0.0
    nesterov: bool = True
    adam_lr: Hyperparameter = 1e-3
    beta1: Hyperparameter = 0.9
    beta2: Hyperparameter = 0.999
    eps: Hyperparameter = 1e-8
    adam_weight_decay: Hyperparameter = 0.0
    dtype: str = "bfloat16"
    adjust_lr_fn: str = "original"
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype must be 'bfloat16' or 'float32', got {self.dtype!r}")
        if self.adjust_lr_fn not in ADJUSTMENTS:
            raise ValueError(f"adjust_lr_fn must be one of {ADJUSTMENTS}, got {self.adjust_lr_fn!r}")
        check_hyperparameters(self, lr=None, momentum=1.0, weight_decay=None)
        check_hyperparameters(self, adam_lr=None, beta1=1.0, beta2=1.0, eps=None, adam_weight_decay=None)

    @property
    def flags(self) -> tuple[object, ...]:
        return ("muon", self.nesterov, self.dtype, self.adjust_lr_fn)

    def init_state(self, layout: ParamLayout, params: Tensor) -> State:
        num_matrix = sum(slot.numel for slot in _matrix_slots(layout))
        others = params.new_zeros(len(params), layout.num_trainable - num_matrix)
        return {
            "momentum": params.new_zeros(len(params), num_matrix),
            "mean": others,
            "square": others.clone(),
        }

    def coefficients(self, inner_step: StepCount, num_steps: StepCount, params: Tensor) -> State:
        factor = self.schedule.factor(inner_step, num_steps)
        matrix = {
            "lr": self.lr * factor,
            "momentum": self.momentum,
            "matrix_decay": self.lr * factor * self.weight_decay,
        }
        others = adam_coefficients(
            self.adam_lr * factor,
            inner_step,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.adam_weight_decay,
        )
        return as_coefficients(matrix | others, params)

    def apply(
        self, layout: ParamLayout, params: Tensor, grads: Tensor, state: State, coefficients: Mapping[str, Tensor]
    ) -> None:
        start = 0
        for slot in _matrix_slots(layout):
            momentum = state["momentum"][:, start : start + slot.numel]
            start += slot.numel
            self._matrix_step(slot, params[:, slot.span], grads[:, slot.span], momentum, coefficients)
        start = 0
        for span in _other_spans(layout):
            part = slice(start, start + span.stop - span.start)
            start = part.stop
            mean, square = state["mean"][:, part], state["square"][:, part]
            adam_step(params[:, span], grads[:, span], mean, square, coefficients, decoupled=True)

    def _matrix_step(
        self, slot: ParamSlot, params: Tensor, grads: Tensor, momentum: Tensor, coefficients: Mapping[str, Tensor]
    ) -> None:
        momentum.lerp_(grads, 1 - coefficients["momentum"])
        update = grads.lerp(momentum, coefficients["momentum"]) if self.nesterov else momentum
        matrices = update.unflatten(1, slot.shape).to(getattr(torch, self.dtype))  # (N, A, B)
        direction = orthogonalize(matrices).flatten(1).to(params.dtype)
        rows, columns = slot.shape
        is_original = self.adjust_lr_fn == "original"
        adjustment = math.sqrt(max(1, rows / columns)) if is_original else 0.2 * math.sqrt(max(rows, columns))
        step_size = coefficients["lr"] * adjustment
        params.mul_(1 - coefficients["matrix_decay"]).sub_(step_size * direction)


def orthogonalize(matrices: Tensor, dtype: torch.dtype | None = None, *, by_gram: bool = False) -> Tensor:
    """Nearly the nearest semi-orthogonal matrices, of singular values from .7 to 1.2, by five Newton-Schulz iterations.

    Args:
        matrices: (N, A, B).
        dtype: of the products, default that of the matrices; bfloat16 rounds far below what the iteration leaves.
        by_gram: iterate on the smaller side's Gram matrix where the other side is more than twice as long, with four
            products of the full size in place of ten.

    Source: Jordan et al. 2024, Muon; the quintic's coefficients make it steepest at zero.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = (x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_NORM_EPS)).to(dtype)
    if by_gram and x.shape[2] > 2 * x.shape[1]:
        x = _iterated_by_gram(_iterated_by_gram(x, 3), _NUM_ITERATIONS - 3)
    else:
        linear, cubic, quintic = _NEWTON_SCHULZ
        for _ in range(_NUM_ITERATIONS):
            gram = torch.bmm(x, x.mT)
            polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
            x = torch.baddbmm(x, polynomial, x, beta=linear)
    return (x.mT if is_tall else x).to(matrices.dtype)


def _iterated_by_gram(x: Tensor, num_iterations: int) -> Tensor:
    """Wide matrices (N, A, B) after some iterations, as the product of their polynomials in the Gram matrix.

    A Gram matrix holds the squares of singular values: in bfloat16 those below a sixteenth of the largest are noise,
    which five iterations blow up to any size. After three they are harmless, so one has to begin anew there.
    """
    linear, cubic, quintic = _NEWTON_SCHULZ
    gram = torch.bmm(x, x.mT)
    product: Tensor | None = None
    for i in range(num_iterations):
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        polynomial.diagonal(dim1=1, dim2=2).add_(linear)
        product = polynomial if product is None else torch.bmm(polynomial, product)
        if i + 1 < num_iterations:
            gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
    assert product is not None
    return torch.bmm(product, x)


def _matrix_slots(layout: ParamLayout) -> list[ParamSlot]:
    return [slot for slot in layout if slot.role in ("input", "hidden") and len(slot.shape) == 2]


def _other_spans(layout: ParamLayout) -> list[slice]:
    """The trainable stretches of the flat vector between the matrices."""
    bounds = [0]
    for slot in _matrix_slots(layout):
        bounds += [slot.span.start, slot.span.stop]
    bounds.append(layout.num_trainable)
    return [slice(start, stop) for start, stop in list(pairwise(bounds))[::2] if start < stop]
