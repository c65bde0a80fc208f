"""The optimizers that learned ones are compared with, each over a population of networks and learning rates.

AdamW and Muon run batched, with a learning rate for each network. The others run as the libraries that users have,
network by network, on gradients that are computed together.

Legend: N networks, H settings (learning rates), P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from zoo.networks.layout import ParamLayout
from zoo.training.muon import Muon
from zoo.training.optimizers import Adam, InnerOptimizer, State
from zoo.training.schedules import Schedule, StepCount

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
        Method("Muon .95 cosine", learning_rates, lambda lr: muon(lr, momentum=0.95)),
        Method("Muon .8 cosine", learning_rates, lambda lr: muon(lr, momentum=0.8)),
        Method("Prodigy cosine", (1.0,), lambda lr: TorchPopulation(lr, _prodigy, COSINE)),
        Method("Schedule-Free AdamW", (2.5e-3,), lambda lr: TorchPopulation(lr, _schedule_free, _CONSTANT)),
        Method("Lion cosine", tuple(lr / 10 for lr in learning_rates), lambda lr: TorchPopulation(lr, _lion, COSINE)),
        Method("Adafactor cosine", learning_rates, lambda lr: TorchPopulation(lr, _adafactor, COSINE)),
    ]


def _adamw(lr: Tensor, schedule: Schedule) -> Adam:
    return Adam(lr=lr, weight_decay=ADAM_WEIGHT_DECAY, schedule=schedule)


def muon(lr: Tensor, *, momentum: float) -> Muon:
    """As torch.optim.Muon(adjust_lr_fn="match_rms_adamw"), so that one rate (N,) serves matrices and all else.

    In float32, with cosine decay; what torch's Muon does not take is left to AdamW.
    """
    return Muon(
        lr=lr,
        momentum=momentum,
        weight_decay=MUON_WEIGHT_DECAY,
        adam_lr=lr,
        adam_weight_decay=ADAM_WEIGHT_DECAY,
        dtype="float32",
        adjust_lr_fn="match_rms_adamw",
        schedule=COSINE,
    )


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
        self,
        layout: ParamLayout,
        params: Tensor,
        grads: Tensor,
        state: State,
        *,
        inner_step: StepCount,
        num_steps: StepCount,
    ) -> None:
        slots = [slot for slot in layout if slot.kind == "param"]
        rates = (self.lr * self.schedule.factor(inner_step, num_steps)).tolist()
        for optimizer, parameters, row, rate in zip(self._optimizers, self._parameters, grads, rates, strict=True):
            for parameter, slot in zip(parameters, slots, strict=True):
                parameter.grad = row[slot.span].view(slot.shape)
            for group in optimizer.param_groups:
                group["lr"] = rate
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
