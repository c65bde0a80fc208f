"""Objectives of real targets (B, ..., K), of the outputs' shape.

The loss is a mean over the K outputs too, the error the mean absolute difference.

Legend: N networks, B examples, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zoo.tasks.target_checks import check_like_outputs, dtype_name


class Regression:
    """A loss of the differences between outputs and targets."""

    def losses_and_slopes(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of differences, and their derivatives, both of their shape."""
        raise NotImplementedError

    def num_outputs(self, num_classes: int, targets: Tensor) -> int:
        return targets.shape[-1]

    def check_targets(self, outputs: Tensor, targets: Tensor, num_classes: int) -> None:
        if targets.dtype != outputs.dtype:
            raise ValueError(f"expected targets of {dtype_name(outputs)}, as outputs are, got {dtype_name(targets)}")
        check_like_outputs(outputs, targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss_and_grad(outputs, targets)[0]

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().flatten(1).mean(1)

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses, slopes = self.losses_and_slopes(outputs - targets)
        return losses.flatten(1).mean(1), slopes / losses[0].numel()


@dataclass(frozen=True)
class SquaredError(Regression):
    """Squared difference, as torch's `mse_loss`."""

    name: ClassVar[str] = "squared_error"

    def losses_and_slopes(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        return difference.square(), 2 * difference


@dataclass(frozen=True)
class AbsoluteError(Regression):
    """Absolute difference, as torch's `l1_loss`, which is also the error."""

    name: ClassVar[str] = "l1"

    def losses_and_slopes(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        return difference.abs(), difference.sign()


@dataclass(frozen=True)
class Huber(Regression):
    """Quadratic for small differences and linear for large ones, as torch's `huber_loss`.

    Args:
        delta: the difference from which on it is linear.
    """

    name: ClassVar[str] = "huber"
    delta: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.delta, int | float) and self.delta > 0):
            raise ValueError(f"delta of 'huber' must be above 0, got {self.delta!r}")

    def losses_and_slopes(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        slope = difference.clamp(-self.delta, self.delta)
        return slope * (difference - 0.5 * slope), slope
