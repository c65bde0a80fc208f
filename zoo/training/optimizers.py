"""Optimizers over populations: N networks updated at once, each as torch.optim would update it alone.

Hyperparameters are numbers or one number per network. What changes from step to step (learning rates, bias
corrections) is computed in float64 outside the update, so that the update itself is a pure function of tensors and
can be compiled once.

Legend: N networks, P numbers of one network, T of them trainable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor

from zoo.devices import widened
from zoo.networks.layout import ParamLayout
from zoo.training.schedules import Schedule, StepCount

_CACHED: Final = 2**15  # numbers of each tensor

Hyperparameter = float | Tensor
State = dict[str, Tensor]


class InnerOptimizer(Protocol):
    """What trains a population. A learned optimizer is one too."""

    def init_state(self, layout: ParamLayout, params: Tensor) -> State:
        """State for networks (N, P); the first dim of every tensor is N."""
        ...

    def update(
        self,
        layout: ParamLayout,
        params: Tensor,
        grads: Tensor,
        state: State,
        *,
        inner_step: StepCount,
        num_steps: StepCount,
    ) -> None:
        """One step, in place on `params[:, :T]` and `state`.

        Args:
            layout: of the networks.
            params: (N, P).
            grads: (N, T).
            state: from `init_state`.
            inner_step: number of steps taken before this one, of all networks or of each.
            num_steps: number of steps of the whole run, likewise.
        """
        ...


@runtime_checkable
class RecordableOptimizer(InnerOptimizer, Protocol):
    """An optimizer whose update is work on tensors alone, if the steps so far are a tensor () on their device."""

    @property
    def is_recordable(self) -> bool:
        """Whether that is so with these options."""
        ...


@runtime_checkable
class CompilableOptimizer(InnerOptimizer, Protocol):
    """An optimizer whose update is a pure function of tensors and of `flags`."""

    @property
    def flags(self) -> tuple[object, ...]:
        """All that `apply` reads beside its arguments, hashable: optimizers with equal flags share compiled code."""
        ...

    def coefficients(self, inner_step: StepCount, num_steps: StepCount, params: Tensor) -> State:
        """Numbers of one step by name, () or (N, 1), of the dtype and on the device of `params`."""
        ...

    def apply(
        self, layout: ParamLayout, params: Tensor, grads: Tensor, state: State, coefficients: Mapping[str, Tensor]
    ) -> None:
        """`update` with the coefficients of the step."""
        ...


class CoefficientUpdate:
    """`update` of optimizers that are written as `coefficients` and `apply`."""

    @torch.no_grad()
    def update(
        self: CompilableOptimizer,
        layout: ParamLayout,
        params: Tensor,
        grads: Tensor,
        state: State,
        *,
        inner_step: StepCount,
        num_steps: StepCount,
    ) -> None:
        self.apply(layout, params, grads, state, self.coefficients(inner_step, num_steps, params))


@dataclass(frozen=True)
class Sgd(CoefficientUpdate):
    """Stochastic gradient descent as torch.optim.SGD: momentum, Nesterov, coupled weight decay.

    Args:
        lr, momentum, weight_decay: numbers, or (N,).
        nesterov: look ahead along the momentum.
        schedule: of the learning rate.
    """

    lr: Hyperparameter = 0.1
    momentum: Hyperparameter = 0.0
    weight_decay: Hyperparameter = 0.0
    nesterov: bool = False
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        check_hyperparameters(self, lr=None, momentum=1.0, weight_decay=None)
        if self.nesterov and not self._has_momentum:
            raise ValueError("nesterov needs a momentum above 0")

    @property
    def flags(self) -> tuple[object, ...]:
        return ("sgd", self._has_momentum, self.nesterov)

    def init_state(self, layout: ParamLayout, params: Tensor) -> State:
        return {"momentum": torch.zeros_like(params[:, : layout.num_trainable])} if self._has_momentum else {}

    def coefficients(self, inner_step: StepCount, num_steps: StepCount, params: Tensor) -> State:
        factor = self.schedule.factor(inner_step, num_steps)
        values = {"lr": self.lr * factor, "momentum": self.momentum, "weight_decay": self.weight_decay}
        return as_coefficients(values, params)

    def apply(
        self, layout: ParamLayout, params: Tensor, grads: Tensor, state: State, coefficients: Mapping[str, Tensor]
    ) -> None:
        trainable = params[:, : layout.num_trainable]
        direction = grads + coefficients["weight_decay"] * trainable
        if self._has_momentum:
            momentum = coefficients["momentum"]
            state["momentum"].mul_(momentum).add_(direction)
            direction = direction + momentum * state["momentum"] if self.nesterov else state["momentum"]
        trainable.sub_(coefficients["lr"] * direction)

    @property
    def _has_momentum(self) -> bool:
        return isinstance(self.momentum, Tensor) or self.momentum > 0


@dataclass(frozen=True)
class Adam(CoefficientUpdate):
    """Adam as torch.optim.Adam, by default with the decoupled weight decay of torch.optim.AdamW.

    Args:
        lr, beta1, beta2, eps, weight_decay: numbers, or (N,).
        decoupled: shrink the parameters (AdamW) instead of adding their decay to the gradient (Adam).
        schedule: of the learning rate.

    Source: Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1; Loshchilov and Hutter 2019 (arXiv 1711.05101).
    """

    lr: Hyperparameter = 1e-3
    beta1: Hyperparameter = 0.9
    beta2: Hyperparameter = 0.999
    eps: Hyperparameter = 1e-8
    weight_decay: Hyperparameter = 0.0
    decoupled: bool = True
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        check_hyperparameters(self, lr=None, beta1=1.0, beta2=1.0, eps=None, weight_decay=None)

    @property
    def flags(self) -> tuple[object, ...]:
        return ("adam", self.decoupled)

    def init_state(self, layout: ParamLayout, params: Tensor) -> State:
        trainable = params[:, : layout.num_trainable]
        return {"mean": torch.zeros_like(trainable), "square": torch.zeros_like(trainable)}

    def coefficients(self, inner_step: StepCount, num_steps: StepCount, params: Tensor) -> State:
        lr = self.lr * self.schedule.factor(inner_step, num_steps)
        values = adam_coefficients(
            lr, inner_step, beta1=self.beta1, beta2=self.beta2, eps=self.eps, weight_decay=self.weight_decay
        )
        return as_coefficients(values, params)

    def apply(
        self, layout: ParamLayout, params: Tensor, grads: Tensor, state: State, coefficients: Mapping[str, Tensor]
    ) -> None:
        trainable = params[:, : layout.num_trainable]
        in_parts = layout.is_large and params.device.type == "cpu" and not torch.compiler.is_compiling()
        tensors = (trainable, grads, state["mean"], state["square"])
        slices = (in_cache(tensor) if in_parts else (tensor,) for tensor in tensors)
        for param, grad, mean, square in zip(*slices, strict=True):
            adam_step(param, grad, mean, square, coefficients, decoupled=self.decoupled)


def adam_coefficients(
    lr: Hyperparameter,
    inner_step: StepCount,
    *,
    beta1: Hyperparameter,
    beta2: Hyperparameter,
    eps: Hyperparameter,
    weight_decay: Hyperparameter,
) -> dict[str, Hyperparameter]:
    """What `adam_step` needs at that step and learning rate."""
    root = (1 - beta2 ** (inner_step + 1)) ** 0.5  # the second moment's bias correction moves into step size and eps
    return {
        "step_size": lr * root / (1 - beta1 ** (inner_step + 1)),
        "scaled_eps": eps * root,
        "one_minus_beta1": 1 - beta1,
        "one_minus_beta2": 1 - beta2,
        "decay": lr * weight_decay,
        "weight_decay": weight_decay,
    }


def adam_step(
    params: Tensor, grads: Tensor, mean: Tensor, square: Tensor, coefficients: Mapping[str, Tensor], *, decoupled: bool
) -> None:
    """One step of Adam on (N, any number of parameters), in place."""
    if decoupled:
        params.mul_(1 - coefficients["decay"])
    else:
        grads = grads + coefficients["weight_decay"] * params
    mean.lerp_(grads, coefficients["one_minus_beta1"])
    square.lerp_(grads.square(), coefficients["one_minus_beta2"])
    direction = mean / square.sqrt().add_(coefficients["scaled_eps"])
    params.sub_(direction.mul_(coefficients["step_size"]))


def in_cache(tensor: Tensor) -> tuple[Tensor, ...]:
    """Slices of columns of a tensor (N, T) that a CPU's caches hold, so that memory is passed through once a step."""
    return tensor.split(max(1, _CACHED // len(tensor)), dim=1)


def as_coefficients(values: Mapping[str, Hyperparameter], like: Tensor) -> State:
    """Tensors by name, all () or all (N, 1), of the dtype and on the device of `like` (N, P), in one transfer."""
    tensors = {name: _exact(value) for name, value in values.items()}
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if wrong := shapes - {(), (len(like),)}:
        raise ValueError(f"hyperparameters must be numbers, or one for each of {len(like)} networks; got {wrong.pop()}")
    table = torch.stack(torch.broadcast_tensors(*tensors.values()))  # (number of values,) or (number of values, N)
    columns = table[..., None] if table.ndim > 1 else table
    return dict(zip(tensors, columns.to(like, non_blocking=True).unbind(), strict=True))


def _exact(value: Hyperparameter) -> Tensor:
    """In float64, a number on the CPU whatever the program's default device."""
    return widened(value) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")


def check_hyperparameters(optimizer: object, **upper_bounds: float | None) -> None:
    """Raise ValueError unless each named hyperparameter is >= 0, finite, and below its bound if it has one."""
    for name, bound in upper_bounds.items():
        value = getattr(optimizer, name)
        if not isinstance(value, int | float | Tensor):
            raise ValueError(
                f"{name} of {type(optimizer).__name__} must be a number, a range such as "
                f"{{'log_uniform': [0.001, 0.1]}} or a tensor (N,), got {value!r}"
            )
        values = _exact(value)
        good = values.isfinite() & (values >= 0)
        if bound is not None:
            good &= values < bound
        if not good.all():
            wanted = "finite and >= 0" if bound is None else f"from 0 to less than {bound:g}"
            raise ValueError(f"{name} of {type(optimizer).__name__} must be {wanted}, got {values[~good].tolist()}")
