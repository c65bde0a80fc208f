"""The networks that a generator for tables gives: an MLP with one hidden layer, and a direct way past it.

Legend: B tables, q rows, D features, K classes, H units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

LIMIT: Final = 4.0  # that standardised features approach


class Networks(NamedTuple):
    """Classifiers of B tables: logits = relu(z in_weights + in_bias) out_weights + z direct_weights + out_bias.

    z are the features less `mean`, times `scale`, squashed.
    """

    mean: Tensor  # (B, 1, D)
    scale: Tensor  # (B, 1, D)
    in_weights: Tensor  # (B, D, H)
    in_bias: Tensor  # (B, 1, H)
    out_weights: Tensor  # (B, H, K)
    direct_weights: Tensor  # (B, D, K)
    out_bias: Tensor  # (B, 1, K)

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, q, K) of rows (B, q, D)."""
        z = squashed((inputs - self.mean) * self.scale)
        hidden = torch.relu(z @ self.in_weights + self.in_bias)
        return hidden @ self.out_weights + z @ self.direct_weights + self.out_bias


class TabularMLP(nn.Module):
    """One of them as a module, (q, D) -> (q, K): an ordinary network to run, train further, or export.

    Args:
        num_features: D.
        num_units: H.
        num_classes: K.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, num_features: int, num_units: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))
        self.hidden = nn.Linear(num_features, num_units)
        self.out = nn.Linear(num_units, num_classes)
        self.direct = nn.Linear(num_features, num_classes, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        z = squashed((inputs - self.mean) * self.scale)
        return self.out(torch.relu(self.hidden(z))) + self.direct(z)

    @classmethod
    def mean_of(cls, members: Sequence[Networks]) -> TabularMLP:
        """The network whose logits are the mean of those of networks of one table and one standardisation (B = 1)."""
        first, share = members[0], 1 / len(members)
        _, num_features, num_classes = first.direct_weights.shape
        module = cls(num_features, sum(one.in_bias.shape[-1] for one in members), num_classes)
        state = {
            "mean": first.mean[0, 0],
            "scale": first.scale[0, 0],
            "hidden.weight": torch.cat([one.in_weights[0].mT for one in members]),
            "hidden.bias": torch.cat([one.in_bias[0, 0] for one in members]),
            "out.weight": torch.cat([one.out_weights[0].mT * share for one in members], 1),
            "out.bias": torch.stack([one.out_bias[0, 0] * share for one in members]).sum(0),
            "direct.weight": torch.stack([one.direct_weights[0].mT * share for one in members]).sum(0),
        }
        module.to(first.mean.device).load_state_dict(state)
        return module


def standardisation(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, 1, D) and one over the deviation of rows (B, n, D); 0 for features that do not vary."""
    mean = inputs.mean(1, keepdim=True)
    deviation = (inputs - mean).square().mean(1, keepdim=True).sqrt()
    return mean, torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, 0.0)


def squashed(values: Tensor) -> Tensor:
    """Standardised features brought smoothly below LIMIT.

    Source: Holzmüller et al. 2024 (arXiv 2407.04491), smooth clipping.
    """
    return values / (1 + (values / LIMIT).square()).sqrt()
