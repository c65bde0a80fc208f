"""Steps that are skipped because gradients are not finite: decided where gradients are, told when somebody asks.

So are steps whose gradients are too large to square: one of them would leave NaN in all that they are averaged with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor

from learned_opt.optimizer.counters import counted
from learned_opt.optimizer.gradients import Pending, known

_LARGEST: Final = 1e15  # entry of gradients of which a hundred million squares have a finite sum in float32


class NonFiniteGradientError(RuntimeError):
    """Gradients held infinities, NaN or numbers too large to square, and the optimizer was asked to raise."""


class SkippedSteps:
    """Decides which steps are skipped, and counts those in a row.

    Args:
        raises: whether gradients that are not finite are an error, for which each step waits for the device.
    """

    def __init__(self, *, raises: bool) -> None:
        self.raises = raises
        self._num_in_a_row: int | Tensor = 0
        self._suspect: tuple[list[str], Tensor] | None = None  # matrices of the last step that may have been skipped

    def decide(self, pending: Sequence[Pending], largest: Tensor, inner_step: int | Tensor) -> bool | Tensor:
        """Whether a step is skipped; a tensor where one would have to wait.

        Args:
            pending: of the step.
            largest: absolute entry of every matrix.
            inner_step: updates made before.

        Raises:
            NonFiniteGradientError: if it is and that is an error.
        """
        is_finite = largest < _LARGEST
        is_bad = ~is_finite.all()
        is_skipped = bool(is_bad) if self.raises else known(is_bad)
        if is_skipped is not False:
            self._suspect = [entry.spec.name for entry in pending for _ in range(entry.num_matrices)], is_finite
        if is_skipped is True and self.raises:
            raise NonFiniteGradientError(
                f"gradients of {self.names()} are not finite, or above {_LARGEST:g}, at step {int(inner_step)}; "
                "parameters are unchanged"
            )
        self._num_in_a_row = counted(self._num_in_a_row, is_skipped)
        self._num_in_a_row *= is_skipped
        return is_skipped

    @property
    def num_in_a_row(self) -> int:
        """Steps skipped one after the other until now, for which one waits for the device."""
        return int(self._num_in_a_row)

    def names(self) -> list[str]:
        """Of some tensors whose gradients were not finite."""
        if self._suspect is None:
            return []
        names, is_finite = self._suspect
        return [name for name, fine in zip(names, is_finite.tolist(), strict=True) if not fine][:8]

    def __getstate__(self) -> dict[str, Any]:
        return {"raises": self.raises, "_num_in_a_row": self.num_in_a_row, "_suspect": None}
