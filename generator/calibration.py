"""Calibration of prompts: what to ask of a model so that networks have, on average, the value that was meant.

A model of several architectures answers some of them with networks that are systematically better or worse than asked.
The bias is measured on validation starts, for each architecture and mode, and taken out by asking for something else.

Legend: N starts, K prompts, B networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

CALIBRATED: Final = "val_loss"  # the metric whose prompts are calibrated
_LOWEST: Final = 1e-4  # of achieved values, before their logarithm


@dataclass(frozen=True)
class Calibration:
    """A monotone map from values that are meant to values that are asked for, linear between logarithms.

    Attributes:
        meant: (K,) mean values that were reached, never falling.
        asked: (K,) prompts that reached them, rising.
    """

    meant: list[float]
    asked: list[float]

    @classmethod
    def fit(cls, prompts: Tensor, achieved: Tensor) -> Calibration:
        """From rising prompts (K,) and the values (N, K) reached, by isotonic regression of mean logarithms."""
        asked = prompts.double().log().numpy()
        means = achieved.double().clamp(min=_LOWEST).log().mean(0).numpy()
        rising = IsotonicRegression().fit_transform(asked, means)
        return cls(np.exp(rising).tolist(), np.exp(asked).tolist())

    def __call__(self, values: Tensor) -> Tensor:
        """What to ask (B,) for the values (B,) that are meant; the nearest end beyond those measured, NaN for NaN."""
        logs = np.interp(values.double().log().numpy(), np.log(self.meant), np.log(self.asked))
        return torch.from_numpy(logs).exp().to(values)
