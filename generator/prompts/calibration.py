"""Calibration of prompts: what to ask of a model so that networks have, on average, the value that was meant.

A model of several architectures answers some of them with networks that are systematically better or worse than asked.
The bias is measured on validation starts, for each architecture and mode, and taken out by asking for something else.

Legend: N starts, K prompts, B networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from generator.prompts.prompt import is_lower_better

_LOWEST: Final = 1e-4  # of achieved values, before their logarithm


@dataclass(frozen=True)
class Calibration:
    """A monotone map from values that are meant to values that are asked for, linear between those measured.

    Losses and errors are averaged and interpolated as logarithms.

    Attributes:
        meant: (K,) mean values that were reached, never falling.
        asked: (K,) prompts that reached them, rising.
        metric: that the values are of.
        latent_scale: deviation of the latents with which networks differ as real ones do.
    """

    meant: list[float]
    asked: list[float]
    metric: str = "val_loss"
    latent_scale: float = 1.0

    @classmethod
    def fit(cls, prompts: Tensor, achieved: Tensor, metric: str = "val_loss") -> Calibration:
        """From prompts (K,) and the values (N, K) reached, by isotonic regression of what each reached on average."""
        from sklearn.isotonic import IsotonicRegression  # takes longer to import than a pipeline that is only asked

        forward, back = _scale(metric)
        asked, order = prompts.double().sort()
        means = forward(achieved.double()[:, order]).mean(0)
        rising = IsotonicRegression().fit_transform(forward(asked).numpy(), means.numpy())
        return cls(back(torch.from_numpy(rising)).tolist(), asked.tolist(), metric)

    def __call__(self, values: Tensor) -> Tensor:
        """What to ask (B,) for the values (B,) that are meant; the nearest end beyond those measured, NaN for NaN."""
        forward, back = _scale(self.metric)
        meant, asked = (forward(torch.tensor(some, dtype=torch.float64)).numpy() for some in (self.meant, self.asked))
        return back(torch.from_numpy(np.interp(forward(values.double()).numpy(), meant, asked))).to(values)


def _scale(metric: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """What values of a metric are compared by, and its inverse."""
    if is_lower_better(metric):
        return lambda values: values.clamp(min=_LOWEST).log(), torch.exp
    return lambda values: values, lambda values: values
