"""When an inner training ends: horizons, the clocks of unrolled networks, and their resets.

Legend: N networks, G groups of networks that share data and clock, T horizon in inner steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogUniformHorizon:
    """Horizons whose logarithm is uniform between those of `low` and `high` (both included).

    Long trainings are rare but no length is left out, so a rule learns what to do at every scale of time.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(f"horizons must satisfy 1 <= low <= high, got low {self.low}, high {self.high}")

    def sample(self, rng: torch.Generator, count: int) -> Tensor:
        """(count,) int64 horizons."""
        low, high = math.log(self.low), math.log(self.high)
        uniform = torch.rand(count, generator=rng, dtype=torch.float64)
        return (low + (high - low) * uniform).exp().round().long()


@dataclass
class Clocks:
    """How far each group of networks has been trained, and how long it will be.

    Kept on the CPU whatever the device of the networks, because Python asks them when to reset.

    Args:
        inner_step: (G,) int64, updates done so far.
        num_steps: (G,) int64, horizon T.
    """

    inner_step: Tensor
    num_steps: Tensor

    @classmethod
    def start(cls, num_steps: Tensor) -> Clocks:
        return cls(torch.zeros_like(num_steps), num_steps.clone())

    def advance(self) -> None:
        self.inner_step += 1

    def finished(self) -> Tensor:
        """(G,) bool, groups whose training has reached its horizon."""
        return self.inner_step >= self.num_steps

    def restart(self, groups: Tensor, num_steps: Tensor) -> None:
        """Set the groups of an index tensor to the beginning of a training of `num_steps` steps."""
        self.inner_step[groups] = 0
        self.num_steps[groups] = num_steps

    def stagger(self, rng: torch.Generator) -> None:
        """Shorten each first training by a random share, so that later resets do not fall together.

        Without it all particles would be young at the same time and the meta-gradient would see one phase of
        training at a time.
        """
        share = torch.rand(len(self.num_steps), generator=rng, dtype=torch.float64)
        self.num_steps = (self.num_steps * share).ceil().long().clamp(min=1)

    def for_rule(self, copies: int, device: torch.device) -> tuple[int | Tensor, int | Tensor]:
        """`inner_step` and `num_steps` as an update rule takes them.

        Plain integers if all groups agree (no tensor arithmetic in the rule then), else (N,) tensors for N = copies
        x G networks, the copies outermost.
        """
        first_step, first_length = int(self.inner_step[0]), int(self.num_steps[0])
        if bool((self.inner_step == first_step).all()) and bool((self.num_steps == first_length).all()):
            return first_step, first_length
        return self.inner_step.repeat(copies).to(device), self.num_steps.repeat(copies).to(device)
