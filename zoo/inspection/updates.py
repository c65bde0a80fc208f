"""What training changed: of each trained tensor the share of its numbers, how far it went, and along how many axes.

Legend: N networks, P numbers of one network, K the smaller side of a matrix.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.devices import widened
from zoo.networks.layout import ParamLayout
from zoo.storage.selection import evenly
from zoo.storage.zoo import Zoo

_TOLERANCE: Final = 1e-5  # as in the paper; below it bfloat16 and float32 trainings differ by rounding
_MAX_RUNS: Final = 8
_MAX_BYTES: Final = 2**28


class UpdateStatistics(NamedTuple):
    """Of N updates of one tensor, each (N,): see `update_statistics`."""

    share_changed: Tensor
    norm: Tensor
    relative_norm: Tensor
    effective_rank: Tensor


def update_statistics(layout: ParamLayout, start: Tensor, end: Tensor) -> dict[str, UpdateStatistics]:
    """Statistics of updates (N, P), end - start, by the name of each trained tensor.

    `share_changed` counts numbers that moved by more than 1e-5 (Mukherjee et al. 2025, arXiv 2505.11711); `norm` is
    Euclidean, `relative_norm` that over the norm at the start, infinite where this is 0; `effective_rank` is
    `effective_rank` of the update as a matrix of its first axis by all others, NaN for tensors of fewer than two axes.

    Args:
        layout: of the networks.
        start: (N, P).
        end: (N, P).
    """
    changes, starts = layout.views(end - start), layout.views(start)
    found = {}
    for slot in layout:
        if slot.kind == "param":
            change = changes[slot.name].flatten(1)
            norm = change.norm(dim=1)
            rank = effective_rank(changes[slot.name].flatten(2)) if len(slot.shape) > 1 else norm * torch.nan
            share = (change.abs() > _TOLERANCE).float().mean(1)
            found[slot.name] = UpdateStatistics(share, norm, norm / starts[slot.name].flatten(1).norm(dim=1), rank)
    return found


def effective_rank(matrices: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of matrices (..., A, B), (...); 0 for zero matrices.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1.
    """
    wide = widened(matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT)
    values = torch.linalg.eigvalsh(wide @ wide.mT).clamp(min=0).sqrt()  # (..., K)
    total = values.sum(-1, keepdim=True)
    shares = values / total.where(total > 0, 1)
    return torch.special.entr(shares).sum(-1).exp() * (total.squeeze(-1) > 0)


def zoo_updates(zoo: Zoo) -> dict[str, dict[str, float]]:
    """Mean statistics, by tensor, of what usable runs changed from their first snapshot to their last.

    At most eight runs are read, evenly spaced; {} if no run has two snapshots.
    """
    runs = zoo.usable_runs()
    lengths = (zoo.inner_step >= 0).sum(1)
    runs = runs[lengths[runs] > 1]
    if not len(runs):
        return {}
    runs = evenly(runs, min(_MAX_RUNS, max(1, _MAX_BYTES // (8 * zoo.layout.num_params))))
    has = zoo.inner_step[runs] >= 0
    ends = (has.argmax(1), has.shape[1] - 1 - has[:, ::-1].argmax(1))  # first and last snapshot of each
    start, end = (torch.from_numpy(zoo.read(np.stack([runs, at], axis=1))) for at in ends)
    return {
        name: {what: float(value.mean()) for what, value in statistics._asdict().items()}
        for name, statistics in update_statistics(zoo.layout, start, end).items()
    }
