"""Windows over token sequences, and the positions of tokens.

Legend: B sequences, L tokens, K windows, w window length, d width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def to_windows(tokens: Tensor, window: int, which: Tensor) -> Tensor:
    """Windows (B * K, w, d) with numbers `which` (K,) of sequences (B, L, d); the last one is padded with zeros."""
    length = tokens.shape[1]
    padded = F.pad(tokens, (0, 0, 0, math.ceil(length / window) * window - length))
    return padded.unflatten(1, (-1, window))[:, which].flatten(0, 1)


def from_windows(windows: Tensor, batch: int, length: int) -> Tensor:
    """Sequences (B, L, d) of all their windows (B * K, w, d) in order: the inverse of `to_windows`."""
    return windows.unflatten(0, (batch, -1)).flatten(1, 2)[:, :length]


def sinusoids(positions: Tensor, width: int, *, are_few: bool = False) -> Tensor:
    """Sine and cosine embeddings (L, d) of positions (L, A) on A axes, which share the width evenly.

    Neighbouring positions are alike. Where they are few, frequencies are spaced evenly instead, which makes the
    embeddings of an axis orthogonal up to d / A positions.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, on each axis.
    """
    num_axes = positions.shape[1]
    num_frequencies = width // (2 * num_axes)
    number = torch.arange(num_frequencies, device=positions.device)
    share = max(num_frequencies, 1)
    frequencies = (number + 0.5) * math.pi / share if are_few else 10_000.0 ** (-number / share)
    angles = positions[..., None] * frequencies  # (L, A, frequencies)
    waves = torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(1)
    return F.pad(waves, (0, width - waves.shape[1]))
