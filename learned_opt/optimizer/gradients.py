"""The gradients of one step: which tensors have one, how large they are, and what a rule is told of them.

Legend: N matrices of a stack, 1 for every other tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from learned_opt.rules.rule import TensorSpec
from learned_opt.rules.tensor_specs import matrix_view


@dataclass(slots=True)
class Pending:
    """A parameter with a gradient, and what a rule needs to update it."""

    param: Tensor
    grad: Tensor  # (N, *shape)
    spec: TensorSpec
    axes: str
    group: Mapping[str, Any]
    rows: Tensor | None = None  # which of the N matrices have a gradient; None for all

    @property
    def is_stack(self) -> bool:
        """Whether the parameter has a dim for the N matrices."""
        return self.axes.startswith("e")

    def used(self, whole: Tensor) -> Tensor:
        """Of the parts of N matrices those that have a gradient; a view where all have."""
        return whole if self.rows is None else whole[self.rows]


def gradients_of(group: Mapping[str, Any]) -> Iterator[Pending]:
    """Parameters of a group that have a gradient."""
    described = zip(group["params"], group["roles"], group["fan_ins"], group["axes"], strict=True)
    for i, (param, role, fan_in, axes) in enumerate(described):
        if param.grad is None or not param.numel():
            continue
        grad = matrix_view(param.grad.to_dense() if param.grad.is_sparse else param.grad, axes)
        name = group["param_names"][i] if "param_names" in group else f"params.{i}"
        spec = TensorSpec(name, role, fan_in, tuple(grad.shape[1:]), group["depth"], group["reads_tokens"])
        yield Pending(param, grad, spec, axes, group)


def largest_entries(grads: Sequence[Tensor]) -> list[list[float]]:
    """Largest absolute entry of each of the N matrices of each gradient (N, *shape), with one transfer a device."""
    largest: list[list[float]] = [[] for _ in grads]
    for device in {grad.device for grad in grads}:
        places = [i for i, grad in enumerate(grads) if grad.device == device]
        norms = {i: torch.linalg.vector_norm(grads[i].flatten(1), math.inf, dim=1) for i in places if len(grads[i]) > 1}
        if single := [i for i in places if i not in norms]:
            norms |= zip(single, torch._foreach_norm([grads[i] for i in single], math.inf), strict=True)
        values = iter(torch.cat([norms[i].reshape(-1).float() for i in places]).tolist())
        for i in places:
            largest[i] = [next(values) for _ in range(len(grads[i]))]
    return largest


def used_part(entry: Pending, largest: Sequence[float]) -> Pending | None:
    """The part of a tensor whose gradient is not zero, None if there is none."""
    if all(largest):
        return entry
    rows = [i for i, size in enumerate(largest) if size]
    return replace(entry, rows=torch.tensor(rows, device=entry.param.device)) if rows else None
