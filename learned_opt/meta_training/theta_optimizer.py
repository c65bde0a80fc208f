"""The optimizer of theta: AdamW with warm-up and cosine decay, the gradient clipped before it.

Adam divides a gradient by its own history, so a single outlier spoils many steps unless it is clipped first.

Legend: M meta-parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.training.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class ThetaOptimizerConfig:
    """AdamW's settings.

    Args:
        learning_rate: peak, in units of `unit` (see `ThetaOptimizer`) an outer step.
        final_share: share of the peak towards which a cosine falls after the warm-up.
        num_warmup_steps: outer steps of linear warm-up, see `zoo.training.schedules.Schedule`.
        betas, weight_decay: as in AdamW.
        clip: largest norm of the gradient; None for no clipping.
    """

    learning_rate: float
    final_share: float = 0.05
    num_warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float | None = 1.0


class ThetaOptimizer:
    """Steps on theta in units of `unit`, normally the perturbation's standard deviation.

    Meta-parameters of different nature then move at comparable speeds, and a unit of zero freezes one.

    Args:
        theta: (M,) start.
        unit: (M,) or a number.
        num_outer_steps: length of the cosine.
    """

    def __init__(
        self, theta: Tensor, config: ThetaOptimizerConfig, *, unit: float | Tensor, num_outer_steps: int
    ) -> None:
        self.config = config
        self.num_outer_steps = num_outer_steps
        self.schedule = Schedule("cosine", config.num_warmup_steps, config.final_share)
        self._unit = torch.as_tensor(unit, dtype=theta.dtype, device=theta.device).expand_as(theta).clone()
        self._start = theta.detach().clone()
        self._offset = torch.zeros_like(theta).requires_grad_()  # theta = start + unit * offset
        self._adam = torch.optim.AdamW(
            [self._offset], lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )

    @property
    def theta(self) -> Tensor:
        """(M,) current meta-parameters."""
        return (self._start + self._unit * self._offset).detach()

    def step(self, grad: Tensor, outer_step: int) -> float:
        """Descend along the gradient (M,) with respect to theta; returns its norm in units before clipping.

        A gradient that is not finite is passed over: it says nothing about where to go.
        """
        scaled = grad.to(self._unit.device) * self._unit
        norm = float(scaled.norm())
        if not math.isfinite(norm):
            return norm
        clip = self.config.clip
        self._offset.grad = scaled * min(1.0, clip / (norm + 1e-12)) if clip else scaled
        for group in self._adam.param_groups:
            group["lr"] = self.config.learning_rate * self.schedule.factor(outer_step, self.num_outer_steps)
        self._adam.step()
        return norm

    def state_dict(self) -> dict[str, object]:
        offset = self._offset.detach()
        return {"start": self._start, "offset": offset, "unit": self._unit, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self._start, self._unit = state["start"], state["unit"]
        with torch.no_grad():
            self._offset.copy_(state["offset"])
        self._adam.load_state_dict(state["adam"])
