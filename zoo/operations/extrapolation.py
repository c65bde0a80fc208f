"""A training continued along the main direction of its path, without any gradient.

Legend: S snapshots, P numbers of one network, `...` any leading dims.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def main_direction(path: Tensor) -> Tensor:
    """First right singular vector (..., P), of length 1, of displacements (..., S, P); its sign is arbitrary."""
    return torch.linalg.svd(path, full_matrices=False).Vh[..., 0, :]


def extrapolate(
    trajectory: Tensor, steps: Sequence[float] | Tensor, to_step: float, sizes: Sequence[int] | None = None
) -> Tensor:
    """The network (..., P) that a training would reach at `to_step` if it moved on along one line at one speed.

    The displacements from the first snapshot are projected on their main direction v; the coordinates c_s on it are
    fitted as a line a + b * step by least squares; the result is first + (a + b * to_step) v.

    Args:
        trajectory: (..., S, P) snapshots of one training in order, S >= 3: the first is the origin, and two more make
            a line.
        steps: (S,) their inner steps.
        to_step: where to go.
        sizes: lengths of parts of the vector, such as its tensors, each of which has a direction and a line of its
            own, as in the paper; by default the vector is one part.

    Raises:
        ValueError: if there are fewer than three snapshots, or steps do not increase.

    Source: Wei et al. 2026 (arXiv 2605.21468), RELEX with rank 1.
    """
    at = torch.as_tensor(steps, dtype=trajectory.dtype, device=trajectory.device)
    if trajectory.ndim < 2 or trajectory.shape[-2] < 3 or at.shape != trajectory.shape[-2:-1]:
        raise ValueError(
            f"extrapolation needs (..., S, P) and S steps, S of at least 3, got {tuple(trajectory.shape)} and "
            f"{tuple(at.shape)}"
        )
    if not bool((at.diff() > 0).all()):
        raise ValueError(f"steps of a trajectory must increase, got {at.tolist()}")
    first, path = trajectory[..., 0, :], trajectory[..., 1:, :] - trajectory[..., :1, :]
    centred = at[1:] - at[1:].mean()
    lever = 1 / centred.numel() + (to_step - at[1:].mean()) * centred / centred.square().sum()  # line at to_step
    moved = []
    for part in path.split(list(sizes) if sizes else path.shape[-1], dim=-1):
        direction = main_direction(part) if part.shape[-1] else part[..., 0, :]
        coordinates = (part @ direction.unsqueeze(-1)).squeeze(-1)  # (..., S - 1)
        moved.append((coordinates @ lever).unsqueeze(-1) * direction)
    return first + torch.cat(moved, dim=-1)
