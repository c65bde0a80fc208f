"""Learning-rate schedules as factors on the base rate.

Legend: N networks, W warm-up steps, T all steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, overload

import torch
from torch import Tensor

StepCount = int | Tensor  # one for all networks, or one for each: (N,) float64, so that powers of it are exact

SCHEDULES: Final = ("constant", "cosine", "wsd")
WSD_DECAY: Final = 0.2  # last part of "wsd", in which it falls


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then constant, cosine decay, or constant with a linear decay in the last fifth ("wsd").

    Equal to torch's LinearLR(start_factor=1 / (W + 1), total_iters=W) followed by
    CosineAnnealingLR(T_max=T - W, eta_min=final_factor * lr). Source of warm-up, stable, decay: Hu et al. 2024
    (arXiv 2404.06395); that a fifth suffices for the decay: Hägele et al. 2024 (arXiv 2405.18392).

    Args:
        name: "constant", "cosine" or "wsd".
        warmup_steps: W.
        final_factor: factor after T steps of "cosine" or "wsd", from 0 to 1.
    """

    name: str = "constant"
    warmup_steps: int = 0
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}, got {self.name!r}")
        if not isinstance(self.warmup_steps, int) or self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be an integer >= 0, got {self.warmup_steps!r}")
        if not 0 <= self.final_factor <= 1:
            raise ValueError(f"final_factor must be from 0 to 1, got {self.final_factor}")

    @overload
    def factor(self, inner_step: int, num_steps: int) -> float: ...

    @overload
    def factor(self, inner_step: StepCount, num_steps: StepCount) -> float | Tensor: ...

    def factor(self, inner_step: StepCount, num_steps: StepCount) -> float | Tensor:
        """Factor of the step that follows `inner_step` steps, of `num_steps` in all; (N,) float64 of counts (N,)."""
        if isinstance(inner_step, Tensor) or isinstance(num_steps, Tensor):
            counts = [torch.as_tensor(count, device="cpu") for count in (inner_step, num_steps)]
            pairs = zip(*(count.tolist() for count in torch.broadcast_tensors(*counts)), strict=True)
            factors = [self.factor(*pair) for pair in pairs]
            return torch.tensor(factors, dtype=torch.float64, device="cpu")
        if inner_step < self.warmup_steps:
            return (inner_step + 1) / (self.warmup_steps + 1)
        if self.name == "constant":
            return 1.0
        progress = (inner_step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        cosine, line = 0.5 * (1 + math.cos(math.pi * progress)), (1 - progress) / WSD_DECAY
        left = cosine if self.name == "cosine" else min(1.0, line)
        return self.final_factor + (1 - self.final_factor) * left
