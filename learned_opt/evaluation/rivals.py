"""The optimizers that learned ones are compared with, each over a population of networks and learning rates.

AdamW and Muon run batched, with a learning rate for each network. The others run as the libraries that users have,
network by network, on gradients that are computed together.

Legend: N networks, H settings (learning rates), P numbers of one network (T of them trainable), A x B one matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor, nn

from learned_opt.rules.normalized import newton_schulz
from zoo.networks.layout import ParamLayout, ParamSlot
from zoo.training.optimizers import Adam, InnerOptimizer, State
from zoo.training.schedules import Schedule

LEARNING_RATES: Final = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
ADAM_WEIGHT_DECAY: Final = 0.01  # torch.optim's defaults
MUON_WEIGHT_DECAY: Final = 0.1
COSINE: Final = Schedule("cosine")
_CONSTANT: Final = Schedule("constant")


@dataclass(frozen=True)
class Method:
    """An optimizer with the learning rates that it is tried at.

    Args:
        name: for tables.
        learning_rates: H settings; (1.0,) if there is nothing to choose.
        make: optimizer for networks with these learning rates (N,).
        identity: what cached results are kept under, default the name; change it when `make` changes.
    """

    name: str
    learning_rates: tuple[float, ...]
    make: Callable[[Tensor], InnerOptimizer]
    identity: str = ""

    def at(self, learning_rates: tuple[float, ...]) -> Method:
        """The same method with other settings."""
        return replace(self, learning_rates=learning_rates)


def rivals(learning_rates: tuple[float, ...] = LEARNING_RATES) -> list[Method]:
    """All rivals; those at their defaults have a single setting.

    Args:
        learning_rates: tried for every optimizer that has one to choose.
    """
    return [
        Method("AdamW cosine", learning_rates, lambda lr: _adamw(lr, COSINE)),
        Method("AdamW constant", learning_rates, lambda lr: _adamw(lr, _CONSTANT)),
        Method("AdamW 1e-3 untuned", (1e-3,), lambda lr: _adamw(lr, _CONSTANT)),
        Method("Muon .95 cosine", learning_rates, lambda lr: MatchedMuon(lr, momentum=0.95)),
        Method("Muon .8 cosine", learning_rates, lambda lr: MatchedMuon(lr, momentum=0.8)),
        Method("Prodigy cosine", (1.0,), lambda lr: TorchPopulation(lr, _prodigy, COSINE)),
        Method("Schedule-Free AdamW", (2.5e-3,), lambda lr: TorchPopulation(lr, _schedule_free, _CONSTANT)),
        Method("Lion cosine", tuple(lr / 10 for lr in learning_rates), lambda lr: TorchPopulation(lr, _lion, COSINE)),
        Method("Adafactor cosine", learning_rates, lambda lr: TorchPopulation(lr, _adafactor, COSINE)),
    ]


def _adamw(lr: Tensor, schedule: Schedule) -> Adam:
    return Adam(lr=lr, weight_decay=ADAM_WEIGHT_DECAY, schedule=schedule)


@dataclass(frozen=True)
class MatchedMuon:
    """Muon with the step size that matches AdamW's RMS, so one learning rate serves matrices and all else.

    Input and hidden matrices as torch.optim.Muon(adjust_lr_fn="match_rms_adamw", weight_decay=0.1), in float32; output
    matrices, embeddings, convolution kernels, biases and norms as torch.optim.AdamW. Cosine decay.

    Args:
        lr: (N,).
        momentum: of the matrices, with Nesterov.
    """

    lr: Tensor
    momentum: float = 0.95
    _adam: Adam = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_adam", _adamw(self.lr, COSINE))

    def init_state(self, layout: ParamLayout, params: Tensor) -> State:
        state = self._adam.init_state(layout, params)
        momenta = {f"momentum.{slot.name}": torch.zeros_like(params[:, slot.span]) for slot in _matrices(layout)}
        return state | momenta

    @torch.no_grad()
    def update(
        self, layout: ParamLayout, params: Tensor, grads: Tensor, state: State, *, inner_step: int, num_steps: int
    ) -> None:
        before = {slot.name: params[:, slot.span].clone() for slot in _matrices(layout)}
        self._adam.update(layout, params, grads, state, inner_step=inner_step, num_steps=num_steps)
        lr = (self.lr * COSINE.factor(inner_step, num_steps)).to(params)[:, None]
        for slot in _matrices(layout):  # in place of what AdamW has done to them
            momentum = state[f"momentum.{slot.name}"].lerp_(grads[:, slot.span], 1 - self.momentum)
            direction = grads[:, slot.span].lerp(momentum, self.momentum).unflatten(1, slot.shape)
            size = 0.2 * max(slot.shape) ** 0.5 * lr
            kept = before[slot.name] * (1 - MUON_WEIGHT_DECAY * lr)
            params[:, slot.span] = kept - size * newton_schulz(direction).flatten(1)


class TorchPopulation:
    """A torch optimizer for each network of a population, stepping on gradients that were computed together.

    Args:
        lr: (N,).
        make: optimizer of one network's parameters at a learning rate.
        schedule: factor on the learning rate.
    """

    def __init__(
        self, lr: Tensor, make: Callable[[list[nn.Parameter], float], torch.optim.Optimizer], schedule: Schedule
    ) -> None:
        self.lr = lr
        self.make = make
        self.schedule = schedule
        self._optimizers: list[torch.optim.Optimizer] = []
        self._parameters: list[list[nn.Parameter]] = []

    def init_state(self, layout: ParamLayout, params: Tensor) -> State:
        """Nothing: the optimizers hold their own state, on views of `params`, which must stay the same tensor."""
        slots = [slot for slot in layout if slot.kind == "param"]
        self._parameters = [
            [nn.Parameter(row[slot.span].view(slot.shape)) for slot in slots] for row in params.detach().unbind()
        ]
        self._optimizers = [self.make(p, float(lr)) for p, lr in zip(self._parameters, self.lr, strict=True)]
        return {}

    def update(
        self, layout: ParamLayout, params: Tensor, grads: Tensor, state: State, *, inner_step: int, num_steps: int
    ) -> None:
        slots = [slot for slot in layout if slot.kind == "param"]
        factor = self.schedule.factor(inner_step, num_steps)
        for n, optimizer in enumerate(self._optimizers):
            for parameter, slot in zip(self._parameters[n], slots, strict=True):
                parameter.grad = grads[n, slot.span].view(slot.shape)
            for group in optimizer.param_groups:
                group["lr"] = float(self.lr[n]) * factor
            with torch.enable_grad():
                optimizer.step()

    def finish(self) -> None:
        """Switch optimizers that average to the parameters that are to be used."""
        for optimizer in self._optimizers:
            evaluate = getattr(optimizer, "eval", None)
            if evaluate is not None:
                evaluate()


def _prodigy(params: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    return Prodigy(params, lr=lr)


def _schedule_free(params: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(params, lr=lr)
    optimizer.train()
    return optimizer


def _lion(params: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    from lion_pytorch import Lion

    return Lion(params, lr=lr, weight_decay=10 * ADAM_WEIGHT_DECAY)


def _adafactor(params: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(params, lr=lr)


def _matrices(layout: ParamLayout) -> list[ParamSlot]:
    return [slot for slot in layout if slot.role in ("input", "hidden") and len(slot.shape) == 2]
