"""What a rule is meta-trained to make small: functions of whole training curves.

Legend: T inner steps, N networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

END_SHARE: Final = 0.05  # the last part of a training, over which its final loss is averaged
END_FLOOR: Final = 0.001  # nats; below it a loss hardly counts as better


@dataclass(frozen=True, kw_only=True)
class LogLossObjective:
    """log(mean loss) + end_weight log(final loss + .001) + validation_weight log(validation loss + .001).

    Logarithms make all tasks weigh alike. The mean rewards speed, the end a decay, the validation loss restraint: a
    rule that sees training losses alone learns to fit noisy labels.
    """

    end_weight: float = 0.1
    validation_weight: float = 0.0

    def __call__(self, losses: Tensor, validation_loss: Callable[[], Tensor]) -> Tensor:
        """(N,) of capped training losses (T, N); the validation loss (N,) is computed only if it has a weight."""
        objective = losses.mean(0).log() + self.end_weight * (final_loss(losses) + END_FLOOR).log()
        if self.validation_weight:
            objective = objective + self.validation_weight * (validation_loss() + END_FLOOR).log()
        return objective


def final_loss(losses: Tensor) -> Tensor:
    """(N,) mean over the last 5% of the steps of (T, N)."""
    return losses[-max(1, int(len(losses) * END_SHARE)) :].mean(0)
