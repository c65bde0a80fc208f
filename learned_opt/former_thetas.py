"""Meta-parameters from files of former versions, brought to the rules of today.

Version 1 of the normalised rule had learned powers of the width for input, hidden and output matrices, left the
directions of outputs as they were, and showed its network the width.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from learned_opt.controller import NUM_HIDDEN, SCALAR_NAMES
from learned_opt.normalized_rule import NormalizedRule

_VERSION_1: Final = (
    "rate",
    "log_input",
    "log_hidden",
    "log_output",
    "log_bias",
    "log_norm",
    "log_embedding",
    "noise_power",
    "momentum_decay",
    "square_decay",
    "slow_decay",
    "nesterov",
    "horizon_power",
    "depth_power",
    "width_input",
    "width_hidden",
    "width_output",
    "agreement_rate",
    "agreement_target",
    "schedule_power",
    "mix_input",
    "mix_hidden",
    "weight_decay",
    "agreement_horizon",
    "decay_horizon",
)
_WIDTH_INPUT: Final = 3  # place of the width among the inputs of its network


def upgraded(rule: str, theta: Tensor, version: int) -> Tensor:
    """(M,) of today's rule from those (M',) of a file of an older version.

    Scalars that the rule had not are at their start, those that it has no more are left out.
    """
    if rule != NormalizedRule.name or version > 1:
        return theta
    named = dict(zip(_VERSION_1, theta, strict=False))
    scalars = torch.stack([named.get(name, theta.new_zeros(())) for name in SCALAR_NAMES])
    network = theta[len(_VERSION_1) :]
    width_weights = slice(_WIDTH_INPUT * NUM_HIDDEN, (_WIDTH_INPUT + 1) * NUM_HIDDEN)
    return torch.cat([scalars, network[: width_weights.start], network[width_weights.stop :]])
