"""What a rule is meta-trained to make small: functions of whole training curves, and the bounds on losses in them.

Legend: T inner steps, N networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

LOSS_CAP: Final = 20.0  # nats; an untrained classifier of ten classes has 2.3
END_SHARE: Final = 0.05  # the last part of a training, over which its final loss is averaged
END_FLOOR: Final = 0.001  # nats, of classifiers
ERROR_FLOOR: Final = 0.01


Generalisation = Callable[[], tuple[Tensor, Tensor]]  # -> loss in nats and error, (N,) each, on the validation split
Objective = Callable[[Tensor, Generalisation], Tensor]  # capped training losses (T, N) -> meta-loss (N,)


@dataclass(frozen=True, kw_only=True)
class LogLossObjective:
    """log(mean loss) + a log(final loss + d) + b log(validation loss + d) + c log(validation error + .01).

    Logarithms make all tasks count equally. The mean rewards speed, the end a decay, the validation split restraint: a
    rule that sees training losses alone learns to fit noisy labels, and one that sees only the loss of the validation
    split learns to keep networks from being sure rather than from being wrong.

    Args:
        end_weight: a.
        validation_weight: b.
        error_weight: c.
        floor: d, in nats or squared units, below which a loss hardly counts as better.
    """

    end_weight: float = 0.1
    validation_weight: float = 0.0
    error_weight: float = 0.0
    floor: float = END_FLOOR

    def __call__(self, losses: Tensor, generalisation: Generalisation) -> Tensor:
        """(N,) of capped training losses (T, N); the validation split is looked at only if it has a weight."""
        objective = losses.mean(0).log() + self.end_weight * (final_loss(losses) + self.floor).log()
        if self.validation_weight or self.error_weight:
            loss, error = generalisation()
            objective = objective + self.validation_weight * (loss + self.floor).log()
            objective = objective + self.error_weight * (error + ERROR_FLOOR).log()
        return objective


def final_loss(losses: Tensor) -> Tensor:
    """Mean over the last 5% of the steps (dim 0) of (T, ...)."""
    return losses[-max(1, int(len(losses) * END_SHARE)) :].mean(0)


def cap_loss(loss: Tensor) -> Tensor:
    """Losses with everything above LOSS_CAP, and everything not finite, set to it."""
    return loss.nan_to_num(LOSS_CAP, LOSS_CAP, LOSS_CAP).clamp(max=LOSS_CAP)
