"""One-line verdicts that follow from confidence intervals.

Legend: N independent units (starts, networks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from zoo.networks.metrics import bootstrap_interval

LEVEL: Final = 0.95
_SEED: Final = 0


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds, and the sentence with the numbers that decide it."""

    passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}  {self.text}"


@dataclass(frozen=True)
class Estimate:
    """A mean over independent units and its bootstrap interval at level LEVEL."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """Estimate from the values (N,) of independent units.

        Raises:
            ValueError: if a value is not finite.
        """
        values = values.cpu().double()
        if not bool(values.isfinite().all()):
            raise ValueError(f"an estimate needs finite values, got {values[~values.isfinite()][:4].tolist()}")
        low, high = bootstrap_interval(values, torch.Generator().manual_seed(_SEED), level=LEVEL)
        return cls(values.mean().item(), low, high)

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"
