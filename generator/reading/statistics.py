"""Statistics of the weights of every tensor, which no order of the units changes.

Source: Unterthiner et al. 2020 (arXiv 2002.11448), section 4.1: mean, variance and quantiles of each layer.

Legend: B networks, P numbers of one network, T tensors.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from generator.tokens.tokenizer import is_generated
from zoo.networks.layout import ParamLayout, ParamSlot

QUANTILES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
_MIN_STD: Final = 1e-6


def described_slots(layout: ParamLayout) -> list[ParamSlot]:
    """The T tensors of which there are statistics: all but those of integers."""
    return [slot for slot in layout if is_generated(slot) and slot.numel]


def weight_statistics(layout: ParamLayout, params: Tensor) -> Tensor:
    """Mean, logarithm of the deviation, and quantiles of each tensor of networks (B, P): (B, 7 T)."""
    layout.check_vector(params)
    parts = []
    for slot in described_slots(layout):
        values = params[:, slot.span].sort(1).values  # torch.quantile takes no large tensors
        places = torch.tensor(QUANTILES, device=params.device) * (slot.numel - 1)
        below, above = places.floor().long(), places.ceil().long()
        quantiles = values[:, below].lerp(values[:, above], places - below)  # (B, 5)
        moments = torch.stack((values.mean(1), (values.std(1, correction=0) + _MIN_STD).log()), dim=1)
        parts += [moments, quantiles]
    return torch.cat(parts, dim=1)
