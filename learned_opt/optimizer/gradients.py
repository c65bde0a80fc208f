"""The gradients of one step: which tensors have one, how large they are, and what a rule is told of them.

What decides about a step (is a gradient infinite, is it zero everywhere) is known at once on a CPU. On any other device
it stays there, as masks, so that the program need not wait for the device.

Legend: N matrices of a stack, 1 for every other tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learned_opt.optimizer.checks import is_sharded
from learned_opt.rules.rule import TensorSpec
from learned_opt.rules.tensor_specs import matrix_view
from zoo.devices import sent

if TYPE_CHECKING:
    from learned_opt.optimizer.sharding import Sharding


@dataclass(slots=True)
class Pending:
    """A parameter with a gradient, and what a rule needs to update it."""

    param: Tensor
    grad: Tensor  # (N, *shape), of a sharded parameter this rank's shard
    spec: TensorSpec
    axes: str
    group: Mapping[str, Any]
    active: Tensor | None = None  # (N,) which matrices are to be updated; None for all
    sharding: Sharding | None = None  # None unless the parameter is a DTensor
    state: dict[str, Tensor] = field(default_factory=dict)  # that of the optimizer, once the step is made

    @property
    def num_matrices(self) -> int:
        """N."""
        return self.param.shape[0] if self.is_stack else 1

    @property
    def numel(self) -> int:
        """Numbers of the parameter, of a shard those of the whole: the same on every rank."""
        return self.num_matrices * math.prod(self.spec.shape)

    @property
    def is_stack(self) -> bool:
        """Whether the parameter has a dim for the N matrices."""
        return self.axes.startswith("e")

    @property
    def is_copied(self) -> bool:
        """Whether a rule, which computes in float32 and descends, needs a copy of parameter or gradient."""
        return not self.param.dtype == self.grad.dtype == torch.float32 or self.group["maximize"]

    @property
    def lr(self) -> float | Tensor:
        """Multiplier of the update; a tensor only where one would have to wait for it."""
        lr = self.group["lr"]
        return lr if isinstance(lr, Tensor) and lr.device.type != "cpu" else float(lr)


def gradients_of(group: Mapping[str, Any]) -> Iterator[Pending]:
    """Parameters of a group that have a gradient."""
    for i, (param, axes) in enumerate(zip(group["params"], group["axes"], strict=True)):
        if param.grad is None or not param.numel():
            continue
        if is_sharded(param):
            from learned_opt.optimizer.sharding import sharded_gradient

            grad, sharding = sharded_gradient(param)
            shape = matrix_view(torch.empty(param.shape, device="meta"), axes).shape[1:]
        else:
            grad, sharding = param.grad.to_dense() if param.grad.is_sparse else param.grad, None
            shape = matrix_view(grad, axes).shape[1:]
        spec = spec_in(group, i, shape)
        yield Pending(param, matrix_view(grad, axes), spec, axes, group, sharding=sharding)


def spec_in(group: Mapping[str, Any], i: int, shape: Sequence[int]) -> TensorSpec:
    """What a rule is told of tensor i of a group, whose matrices have that shape."""
    name = group["param_names"][i] if "param_names" in group else f"params.{i}"
    return TensorSpec(name, group["roles"][i], group["fan_ins"][i], tuple(shape), group["depth"], group["reads_tokens"])


def largest_entries(grads: Sequence[Tensor]) -> Tensor:
    """Largest absolute entry of every matrix of all gradients (N, *shape), one after the other, on one device.

    That of a gradient without entries is 0: a rank may have no share of a tensor.
    """
    devices = {grad.device for grad in grads}
    largest = {i: grad.new_zeros(len(grad)) for i, grad in enumerate(grads) if not grad.numel()}
    for device in devices:
        places = [i for i, grad in enumerate(grads) if grad.device == device and grad.numel()]
        stacks = [i for i in places if grads[i].shape[0] > 1]
        largest |= {i: torch.linalg.vector_norm(grads[i].flatten(1), math.inf, dim=1) for i in stacks}
        if single := [i for i in places if i not in largest]:
            largest |= zip(single, torch._foreach_norm([grads[i] for i in single], math.inf), strict=True)
    home = next((device for device in devices if device.type != "cpu"), grads[0].device)
    return torch.cat([largest[i].reshape(-1).float().to(home, non_blocking=True) for i in range(len(grads))])


def known(flag: Tensor) -> bool | Tensor:
    """A bool on the CPU, where nothing has to be waited for; elsewhere the tensor itself."""
    return bool(flag) if flag.device.type == "cpu" else flag


def to_update(pending: Sequence[Pending], has_gradient: Tensor) -> list[Pending]:
    """The tensors to update, with masks of their matrices.

    On a CPU tensors without any gradient are left out, and those with all need no mask.

    Args:
        pending: of the step.
        has_gradient: bool of every matrix, in the order of `largest_entries`.
    """
    parts = has_gradient.split([entry.num_matrices for entry in pending])
    if has_gradient.device.type != "cpu":
        masks = (sent(part, entry.param.device) for entry, part in zip(pending, parts, strict=True))
        return [replace(entry, active=mask) for entry, mask in zip(pending, masks, strict=True)]
    if bool(has_gradient.all()):
        return list(pending)
    used = [(entry, part) for entry, part in zip(pending, parts, strict=True) if bool(part.any())]
    return [replace(entry, active=None if bool(part.all()) else part) for entry, part in used]
