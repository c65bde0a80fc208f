"""Training of a model whose weights are averaged: AdamW, a rate that rises and falls, clipped gradients.

Source: averaged weights: Karras et al. 2024 (arXiv 2312.02696) motivates a warm-up of the decay.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor, nn

from zoo.settings import check_options
from zoo.training.schedules import Schedule

BETAS: Final = (0.9, 0.98)
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class AveragedTrainingConfig:
    """What every such training is told.

    Attributes:
        num_steps: batches in all.
        learning_rate: of AdamW; rises over `warmup_steps`, then follows a cosine to 0.
        weight_decay, clip_norm: of AdamW, and of the gradient's norm.
        average_decay: of the averaged weights, which are the result.
        seed: of weights and data.
    """

    num_steps: int
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    average_decay: float = 0.998
    seed: int = 0

    def __post_init__(self) -> None:
        not_counts = ("warmup_steps", "weight_decay", "average_decay", "num_inputs", "seed")
        positive = vars(self).keys() - not_counts
        check_options(vars(self), type(self), positive=positive, shares=("average_decay",))


class AveragedTraining(Generic[Model]):
    """A model in training, and the average of its weights, which is the result.

    Args:
        model: on its device.
        settings: of the training.
    """

    def __init__(self, model: Model, settings: AveragedTrainingConfig) -> None:
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), settings.learning_rate, betas=BETAS, weight_decay=settings.weight_decay
        )
        self._settings = settings
        self._schedule = Schedule("cosine", settings.warmup_steps)

    def take_step(self, step: int, loss: Tensor) -> None:
        """Step number `step`, down the gradient of a loss."""
        settings = self._settings
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * self._schedule.factor(step, settings.num_steps)
        self.optimizer.step()
        update_average(self.average, self.model, step, settings.average_decay)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move averaged weights towards the model's, by at least a tenth of what is left at first, later by 1 - decay."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    mine: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(mine, list(model.parameters()), weight)
