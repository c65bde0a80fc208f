"""Coordinates for the moments of a matrix: eigenvectors of its gradients' covariance along the shorter side.

Gradients of a matrix are far from independent along rows and columns, so a second moment of each number sees little of
their shape. With gradient G of A rows and B columns, n = min(A, B), and Q (n, n), which begins as the identity:

    C <- lerp(C, G'G, 1 - b)                  G G' where A < B
    Q <- orthonormal factor of C Q            every REFRESH updates, one step of the orthogonal iteration
    the rule sees G Q, and turns its update U into U Q'        Q'G and Q U where A < B

The momentum is kept in the new coordinates, and turns with them; second moments stay what they are. Newton-Schulz turns
with its argument, so nothing else of a rule changes. Matrices with n > MAX_SIDE have no basis, C and Q of size 0. Both
together have at most twice as many numbers as the matrix.

Source: Vyas et al. 2024 (arXiv 2409.11321), SOAP, with one of its two sides; Shampoo (Gupta et al. 2018) for C.

Legend: N networks, K tensors of one shape, A rows, B columns, n = min(A, B).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from learned_opt.rules.batches import Chunk, per_row
from learned_opt.rules.rule import RuleState, TensorSpec, TensorUpdate, per_network
from zoo.networks.roles import MATRIX_ROLES
from zoo.training.schedules import StepCount

DECAY: Final = 0.95  # b
REFRESH: Final = 10
MAX_SIDE: Final = 256  # beyond, the factor costs more than all else of an update

COVARIANCE: Final = "covariance"  # names in the state of a tensor
BASIS: Final = "basis"


def init_bases(specs: Sequence[TensorSpec], params: Sequence[Tensor]) -> RuleState:
    """C and Q (N, n, n) of each tensor before the first update, n = 0 where there is no basis."""
    sides = [min(_sides(spec)) if spec.role in MATRIX_ROLES else 0 for spec in specs]
    sizes = [(len(param), side * (side <= MAX_SIDE)) for param, side in zip(params, sides, strict=True)]
    identities = [
        torch.eye(side, dtype=torch.float32, device=param.device).repeat(count, 1, 1)
        for param, (count, side) in zip(params, sizes, strict=True)
    ]
    return {COVARIANCE: [torch.zeros_like(basis) for basis in identities], BASIS: identities}


def has_basis(tensor: TensorUpdate) -> bool:
    """Whether the rule sees this tensor in a basis."""
    return BASIS in tensor.state and tensor.state[BASIS].numel() > 0


def update_basis(chunk: Chunk, inner_step: StepCount, *, in_place: bool) -> None:
    """Let the gradients of whole tensors into C and, where it is due, turn Q and the momentum."""
    grad, covariance = _matrices(chunk.grad()), chunk.state(COVARIANCE)
    product = grad @ grad.mT if _is_wide(chunk) else grad.mT @ grad
    weight = covariance.new_full((1, 1, 1, 1), 1 - DECAY)
    if chunk.active is not None:
        weight = weight * chunk.active[..., None, None]
    covariance = covariance.lerp_(product, weight) if in_place else covariance.lerp(product, weight)
    chunk.write_state(COVARIANCE, covariance, in_place=in_place)
    if isinstance(inner_step, Tensor) or inner_step % REFRESH == 0:
        _turn(chunk, covariance, inner_step, in_place=in_place)


def _turn(chunk: Chunk, covariance: Tensor, inner_step: StepCount, *, in_place: bool) -> None:
    """One orthogonal iteration, of those networks that are due."""
    basis, momentum = chunk.state(BASIS), chunk.state("momentum")
    new = torch.linalg.qr(covariance @ basis).Q
    is_due = new.isfinite().all(3).all(2) & (per_network(inner_step, basis) % REFRESH == 0).unsqueeze(1)  # (N, K)
    if chunk.active is not None:
        is_due = is_due & chunk.active
    turn, old = basis.mT @ new, _matrices(momentum)
    turned = (turn.mT @ old if _is_wide(chunk) else old @ turn).view_as(momentum)
    for kind, before, after in ((BASIS, basis, new), ("momentum", momentum, turned)):
        kept = torch.where(per_row(is_due, before), after, before)
        chunk.write_state(kind, before.copy_(kept) if in_place else kept, in_place=in_place)


def gradient_of(chunk: Chunk) -> Tensor:
    """(N, K, *shape) gradient of a chunk in its basis, if it has one."""
    if not has_basis(chunk.tensors[0]):
        return chunk.grad()
    whole = replace(chunk, rows=None)
    basis = whole.state(BASIS)
    if not _is_wide(chunk):
        grad = chunk.grad()
        return (_matrices(grad) @ basis).view(grad.shape)
    grad = whole.grad()
    turned = (basis if chunk.rows is None else basis[..., chunk.rows]).mT @ _matrices(grad)
    return turned.view(*turned.shape[:3], *grad.shape[3:])


def turned_back(chunk: Chunk, update: Tensor) -> Tensor:
    """Updates (N, K, *shape) of whole tensors, out of their basis."""
    basis, matrices = chunk.state(BASIS), _matrices(update)
    return (basis @ matrices if _is_wide(chunk) else matrices @ basis.mT).view(update.shape)


def _sides(spec: TensorSpec) -> tuple[int, int]:
    """A and B."""
    return spec.shape[0], math.prod(spec.shape[1:])


def _is_wide(chunk: Chunk) -> bool:
    rows, columns = _sides(chunk.tensors[0].spec)
    return rows < columns


def _matrices(x: Tensor) -> Tensor:
    """(N, K, A, ...) -> (N, K, A, B)."""
    return x.reshape(*x.shape[:3], -1)
