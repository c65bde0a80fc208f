"""Do generated networks classify test examples as well as real ones of equal training loss?

Prompts on validation data could be met by networks that have not learned the training data, or by networks that have
learned it by heart; at equal training loss both would show.

Legend: N networks, R real runs, S snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

MAX_GAP: Final = 0.007
_SMALLEST_LOSS: Final = 1e-8


@dataclass(frozen=True)
class RealCurves:
    """Real runs over their snapshots: (R, S) each, NaN where a run has no snapshot."""

    train_loss: Tensor
    test_accuracy: Tensor

    def accuracy_at(self, train_loss: Tensor) -> Tensor:
        """Mean test accuracy (N,) of the runs when their training loss falls to (N,) for the first time.

        Between two snapshots it is interpolated in the logarithm of the loss. Runs that never get so low are left out;
        where none does, all count with their lowest loss.
        """
        losses = self.train_loss.nan_to_num(nan=torch.inf).cummin(1).values.clamp(min=_SMALLEST_LOSS).log()  # (R, S)
        asked = train_loss.nan_to_num(nan=torch.inf).clamp(min=_SMALLEST_LOSS).log()  # (N,)
        below = losses <= asked[:, None, None]  # (N, R, S)
        reaches = below.any(2)  # (N, R)
        lowest = losses.argmin(1).expand_as(reaches)
        after = torch.where(reaches, below.int().argmax(2), lowest)
        before = (after - 1).clamp(min=0)
        rows = torch.arange(len(losses)).expand_as(after)
        high, low = losses[rows, before], losses[rows, after]
        share = ((high - asked[:, None]) / (high - low).clamp(min=1e-9)).clamp(0, 1)
        accuracy = self.test_accuracy[rows, before].lerp(self.test_accuracy[rows, after], share)
        counted = torch.where(reaches.any(1, keepdim=True), reaches, True)
        return (accuracy * counted).sum(1) / counted.sum(1)


@dataclass(frozen=True)
class Generalization:
    """Generated networks beside real ones of equal training loss.

    Attributes:
        train_loss: (N, K) of the networks generated for N starts and K prompts.
        gap: (N, K) test accuracy that is missing to the real runs' at that training loss; negative where it is better.
    """

    train_loss: Tensor
    gap: Tensor

    @classmethod
    def of(cls, curves: RealCurves, train_loss: Tensor, test_error: Tensor) -> Generalization:
        """From training losses (N, K) and test errors (N, K)."""
        real = torch.cat([curves.accuracy_at(part) for part in train_loss.flatten().split(256)])
        return cls(train_loss, real.view_as(train_loss) - (1 - test_error))
