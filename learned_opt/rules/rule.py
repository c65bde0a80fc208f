"""What an update rule is: pure mathematics over lists of tensors, batched over networks.

The same rule runs in meta-training (N networks = tasks x particles, each with its own theta) and in the torch
optimizer (N = 1). All mutable quantities are arguments; a rule object holds nothing but its configuration.

Legend: N networks, R tensors of one network, M meta-parameters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from zoo.devices import sent
from zoo.training.schedules import StepCount

RuleState = dict[str, list[Tensor]]  # name -> one tensor (N, ...) for each of the R tensors
RuleOption = int | float | str | bool
Total = Callable[[Tensor], Tensor]  # sums over shards of tensors -> sums over the whole tensors


@dataclass(frozen=True)
class TensorSpec:
    """What a rule knows of one tensor besides its numbers.

    Args:
        name: name in the model, for messages.
        role: one of `zoo.networks.parametrization.PARAM_ROLES`.
        fan_in: number of products summed into one output.
        shape: of one network, without the batch dim; of a matrix outputs first, then inputs, then the kernel.
        depth: residual branches of the model; hidden layers if it has no residual blocks.
        reads_tokens: whether the model looks up embeddings, be this tensor one of them or not.
    """

    name: str
    role: str
    fan_in: int
    shape: tuple[int, ...]
    depth: int = 1
    reads_tokens: bool = False

    @property
    def width(self) -> int:
        """fan_in without the area of a convolution's kernel: what grows with the width of the network."""
        return max(1, self.fan_in // math.prod(self.shape[2:]))


@runtime_checkable
class UpdateRule(Protocol):
    """Turns gradients into updates under M meta-parameters."""

    @property
    def name(self) -> str:
        """Name under which `registry.get_rule` finds the class of rules."""
        ...

    @property
    def num_theta(self) -> int:
        """M."""
        ...

    @property
    def uses_horizon(self) -> bool:
        """Whether the length of the training run enters the update."""
        ...

    @property
    def config(self) -> dict[str, RuleOption]:
        """Options, JSON-able, such that `get_rule(rule.name, **rule.config)` is this rule again."""
        ...

    def init_theta(self, rng: torch.Generator) -> Tensor:
        """Meta-parameters (M,) before meta-training."""
        ...

    def init_state(self, specs: Sequence[TensorSpec], params: Sequence[Tensor]) -> RuleState:
        """State before the first update; every tensor is float32 and has the leading dim N."""
        ...

    def update(
        self,
        theta: Tensor,
        specs: Sequence[TensorSpec],
        params: list[Tensor],
        grads: Sequence[Tensor],
        state: RuleState,
        *,
        inner_step: StepCount,
        num_steps: StepCount | None,
        lr: Sequence[float | Tensor] | float = 1.0,
        weight_decay: Sequence[float | None] | float | None = None,
    ) -> None:
        """Change `params` and `state` in place.

        A rule made with `reference=True` is the readable twin: it puts new tensors into the lists `params` and
        `state[...]` instead, so that it can be differentiated with respect to theta.

        Args:
            theta: (M,) or (N, M).
            specs: R descriptions.
            params: R float32 tensors (N, *shape).
            grads: R float32 tensors (N, *shape).
            state: from `init_state`.
            inner_step: updates made so far.
            num_steps: horizon of the training run, None if it is not known.
            lr: multiplier of the update, per tensor or for all; tensors () on the device of the parameters.
            weight_decay: decoupled decay in units of the rule's base step, per tensor or for all: with a base
                step s, weights shrink by the factor 1 - lr * s * weight_decay. None is the rule's own, if it has one.
        """
        ...


@dataclass(slots=True)
class TensorUpdate:
    """One tensor in one update; a rule changes `param` and `state` in place or puts new tensors there."""

    spec: TensorSpec
    param: Tensor  # (N, *shape)
    raw_grad: Tensor  # (N, *shape), of inactive networks anything
    state: dict[str, Tensor]
    lr: float | Tensor
    weight_decay: float | None
    active: Tensor | None  # (N,) bool
    loss: Tensor | None = None  # (N,) float32, before the update
    total: Total | None = None  # of a shard; None where `param` is all of the tensor

    @property
    def numel(self) -> int:
        """Numbers of one network's whole tensor."""
        return math.prod(self.spec.shape)

    def grad(self) -> Tensor:
        """(N, *shape) gradient, zero for inactive networks; a temporary where there can be any."""
        if self.active is None:
            return self.raw_grad
        return self.raw_grad.masked_fill(~expanded(self.active, self.raw_grad), 0.0)

    def write(self, param: Tensor, state: Mapping[str, Tensor], *, in_place: bool = True) -> None:
        """Give active networks new numbers, in the memory of the old ones or in new tensors."""
        self.param = self._merged(self.param, param, in_place)
        for kind, new in state.items():
            self.state[kind] = self._merged(self.state[kind], new, in_place)

    def _merged(self, old: Tensor, new: Tensor, in_place: bool) -> Tensor:
        if self.active is not None:
            return torch.where(expanded(self.active, old), new, old, out=old if in_place else None)
        return old.copy_(new) if in_place else new


class TensorwiseRule(UpdateRule, ABC):
    """A rule that is written as `update_tensors` and can be told to leave some networks alone.

    Attributes:
        large_state: kinds of state as large as the parameters, which are sharded where these are; every rank has the
            others.
        uses_loss: whether the update must be told the loss.
        mixes_tensors: whether tensors of a network enter each other's updates, so that all must be there at once.
    """

    large_state: ClassVar[tuple[str, ...]] = ()
    uses_loss: ClassVar[bool] = False
    mixes_tensors: ClassVar[bool] = False

    def updates_shards(self, spec: TensorSpec) -> bool:
        """Whether an update needs no more of the tensor than sums, so that ranks can each update their shard of it.

        Such a rule sends what it sums over a tensor through `TensorUpdate.total`, on all ranks in the same order.
        """
        return False

    @abstractmethod
    def update_tensors(
        self, theta: Tensor, tensors: Sequence[TensorUpdate], *, inner_step: StepCount, num_steps: StepCount | None
    ) -> None:
        """Update the tensors, at least one and none empty but for shards, under meta-parameters (N, M)."""

    def update(
        self,
        theta: Tensor,
        specs: Sequence[TensorSpec],
        params: list[Tensor],
        grads: Sequence[Tensor],
        state: RuleState,
        *,
        inner_step: StepCount,
        num_steps: StepCount | None,
        lr: Sequence[float | Tensor] | float = 1.0,
        weight_decay: Sequence[float | None] | float | None = None,
        active: Sequence[Tensor | None] | None = None,
        loss: Tensor | None = None,
        total: Total | None = None,
    ) -> None:
        """Change `params` and `state`, see `UpdateRule.update`.

        Args:
            active: for each tensor None, or which of its N networks have a gradient, (N,) bool. Parameters and state of
                the others stay as they are, whatever their gradients hold.
            loss: (N,), or () of all networks, before the update; for a rule that `uses_loss`.
            total: where params, grads and large state are shards of tensors that the rule `updates_shards` of.
        """
        used = [i for i, param in enumerate(params) if math.prod(specs[i].shape) * len(param)]
        if not used:
            return
        count = len(params)
        if loss is not None:
            loss = sent(loss.detach(), params[used[0]].device, torch.float32).expand(len(params[0]))
        lrs, decays, masks = per_tensor(lr, count), per_tensor(weight_decay, count), per_tensor(active, count)
        tensors = [
            TensorUpdate(
                specs[i],
                params[i],
                grads[i],
                {kind: kept[i] for kind, kept in state.items()},
                lrs[i],
                decays[i],
                masks[i],
                loss,
                total,
            )
            for i in used
        ]
        theta = batched_theta(theta, self, len(params[0]))
        self.update_tensors(theta, tensors, inner_step=inner_step, num_steps=num_steps)
        for i, tensor in zip(used, tensors, strict=True):
            params[i] = tensor.param
            for kind, kept in tensor.state.items():
                state[kind][i] = kept


def update_active(
    rule: UpdateRule,
    theta: Tensor,
    specs: Sequence[TensorSpec],
    params: list[Tensor],
    *,
    grads: Sequence[Tensor],
    state: RuleState,
    active: Sequence[Tensor | None],
    **options: Any,
) -> None:
    """`rule.update` with `active`, on copies where it matters for a rule that is no `TensorwiseRule`."""
    if isinstance(rule, TensorwiseRule):
        rule.update(theta, specs, params, grads, state, **options, active=active)
        return
    masks = [(i, mask) for i, mask in enumerate(active) if mask is not None]
    before = [(tensors, i, mask, tensors[i].clone()) for tensors in (params, *state.values()) for i, mask in masks]
    rule.update(theta, specs, params, grads, state, **options)
    for tensors, i, mask, old in before:
        tensors[i] = torch.where(expanded(mask, old), tensors[i], old)


def reads_loss(rule: UpdateRule) -> bool:
    """Whether `rule.update` must be given the loss."""
    return isinstance(rule, TensorwiseRule) and rule.uses_loss


def batched_theta(theta: Tensor, rule: UpdateRule, num_networks: int) -> Tensor:
    """Meta-parameters (N, M) from (M,) or (N, M).

    Raises:
        ValueError: if they do not fit the rule or the number of networks.
    """
    if theta.ndim not in (1, 2) or theta.shape[-1] != rule.num_theta:
        raise ValueError(
            f"rule {rule.name!r} has {rule.num_theta:,} meta-parameters, got theta of shape {tuple(theta.shape)}; "
            "is it of another rule or another hidden size?"
        )
    if theta.ndim == 2 and theta.shape[0] != num_networks:
        raise ValueError(f"theta is given for {theta.shape[0]} networks, the parameters are of {num_networks}")
    return theta.expand(num_networks, -1)


_Value = TypeVar("_Value", float | Tensor, float | None, Tensor | None)


def per_tensor(value: Sequence[_Value] | _Value, num_tensors: int) -> list[_Value]:
    """One value for each tensor."""
    return list(value) if isinstance(value, Sequence) else [value] * num_tensors


def per_network(count: StepCount, like: Tensor) -> Tensor:
    """Step count as a float32 tensor (1,) or (N,) on the device of `like`, without waiting for it."""
    if isinstance(count, Tensor):
        return sent(count, like.device, torch.float32).reshape(-1)
    return torch.full((1,), float(count), dtype=torch.float32, device=like.device)


@lru_cache(maxsize=1024)  # what a recorded step reads must not be thrown away
@torch.inference_mode(False)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as a float32 tensor that is copied to a device once."""
    return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)


def expanded(x: Tensor, other: Tensor) -> Tensor:
    """(N,) -> (N, 1, ..., 1) with as many dims as `other`."""
    return x.reshape(-1, *(1,) * (other.ndim - 1))
