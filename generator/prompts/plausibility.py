"""Does a network that was made from examples fit these very examples? Where it does not, something is wrong with them.

A prompt that mixes examples of two tasks, or labels them wrongly, is answered with a network that is unusually bad on
the prompt itself. How bad is usual is measured on the tasks of validation runs, after the training.

Legend: B networks, P numbers of one network, E examples of a prompt.
"""

from __future__ import annotations

import math
import warnings
from typing import Final

from torch import Tensor

from generator.prompts.examples import NO_LABEL, Examples
from zoo.tasks.task import Task

FEWEST_LABELLED: Final = 16  # the loss on fewer is too uncertain
FEWEST_TASKS: Final = 16
_SHARE_BELOW: Final = 0.98


def loss_on_prompts(task: Task, params: Tensor, examples: Examples) -> Tensor:
    """Losses (B,) of networks (B, P) on the examples of their prompts; NaN where these are few, or lack labels."""
    labels = examples.targets.flatten(1)
    is_known = examples.is_given & (labels != NO_LABEL).all(1) & (examples.inputs.shape[1] >= FEWEST_LABELLED)
    losses = task.objective.loss(task.predict(params, examples.inputs), examples.targets.clamp(min=0))
    return losses.masked_fill(~is_known, math.nan)


def usual_loss(losses: Tensor) -> float | None:
    """What 98 of 100 losses (B,) of networks on their own prompts stay below; None if they are too few to say."""
    known = losses[losses.isfinite()]
    return float(known.quantile(_SHARE_BELOW)) if len(known) >= FEWEST_TASKS else None


def warn_of_unusual(losses: Tensor, usual: float) -> None:
    """Warn if networks have losses (B,) on their own prompts that are above what is usual."""
    is_high = losses > usual
    if bool(is_high.any()):
        warnings.warn(
            f"{int(is_high.sum())} of {len(losses)} generated networks have a loss of up to "
            f"{losses[is_high].max().item():.3g} on the examples that they were made from, where {usual:.3g} is rarely "
            "exceeded: are a prompt's examples of one task, and their labels right?",
            stacklevel=3,
        )
