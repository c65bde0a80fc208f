"""What an optimizer says of a run that is not as it should be: each of these things once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor

from zoo.remarks import warn

NUM_IN_A_ROW: Final = 10  # steps that change nothing; more than a GradScaler skips to find its scale
LATE_STEP: Final = 100  # past the first steps of a warm-up
_SMALL_LR: Final = 0.02


class Remarks:
    """Warnings of one optimizer, none of them twice."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._num_idle_in_a_row = 0

    def of_skips(self, num_in_a_row: int, names: Sequence[str]) -> None:
        """Steps skipped in a row, and the tensors whose gradients were not finite."""
        if num_in_a_row >= NUM_IN_A_ROW:
            self._say(
                "skips",
                f"the last {num_in_a_row} steps were skipped, because gradients of {names} are not finite; nothing is "
                'trained. nonfinite="raise" stops at the first one',
            )

    def of_gradients(self, num_gradients: int, params: Iterable[Tensor]) -> None:
        """Steps in a row without any, unless all is frozen; where one is made for every microbatch it may be meant."""
        is_idle = not num_gradients and any(param.requires_grad for param in params)
        self._num_idle_in_a_row = self._num_idle_in_a_row + 1 if is_idle else 0
        if self._num_idle_in_a_row >= NUM_IN_A_ROW:
            self._say(
                "no gradients",
                f"the last {self._num_idle_in_a_row} steps changed nothing, because no parameter had a gradient. If "
                "that is not meant, either backward() was not called before step(), or the model's parameters were "
                "replaced after the optimizer was made",
            )

    def of_small_lr(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Learning rates as other optimizers need them; those on a device are not looked at.

        What a scheduler begins with or rises to counts: a long warm-up and the end of a run are small, too.
        """
        rates = [group[key] for group in groups for key in ("lr", "initial_lr", "max_lr") if key in group]
        lr = max((rate for rate in rates if not isinstance(rate, Tensor)), default=0)
        if 0 < lr < _SMALL_LR:
            self._say(
                "lr",
                f"lr multiplies the learned step and is 1 unless one wishes otherwise: with {lr:g}, as AdamW needs it, "
                "training hardly moves; leave it out",
            )

    def of_horizon(self, num_steps: int, horizon: int) -> None:
        """Steps beyond the horizon."""
        if num_steps >= horizon:
            self._say(
                "horizon",
                f"step {num_steps} is beyond num_training_steps={horizon}; the step size stays that of the last step. "
                "Set optimizer.num_training_steps to train longer",
            )

    def of_momentum(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """A momentum that a scheduler has set."""
        if any(group["momentum"] is not None for group in groups):
            self._say(
                "momentum",
                "a scheduler cycles the momentum, but that of a learned optimizer is one of its meta-parameters and "
                "stays as it is; only lr is cycled. cycle_momentum=False says so",
            )

    def of_modes(self) -> None:
        """A model that was saved in eval mode, loaded with an optimizer that was not."""
        self._say(
            "modes",
            "the model holds averages, as it was saved after optimizer.eval(), but the optimizer was saved after "
            "optimizer.train(), so that what was trained is in neither; training goes on from the averages. Save both "
            "in the same mode",
        )

    def is_said(self, topic: str) -> bool:
        return topic in self._said

    def forget(self, topic: str) -> None:
        """Let it be said again."""
        self._said.discard(topic)

    def _say(self, topic: str, message: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            warn(message)
