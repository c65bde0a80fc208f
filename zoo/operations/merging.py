"""Task vectors: what trainings that began with one network changed in it, added to it at once.

Legend: N networks, P numbers of one network.
"""

from __future__ import annotations

import torch
from torch import Tensor


def task_vectors(networks: Tensor, base: Tensor) -> Tensor:
    """What training added (N, P) to a base (P,).

    Raises:
        ValueError: if the base is not one network of the same size, or numbers are not finite.
    """
    if networks.ndim != 2 or base.shape != networks.shape[1:]:
        got = f"{tuple(networks.shape)} and {tuple(base.shape)}"
        raise ValueError(f"networks must be (N, P) and their base (P,), got {got}")
    vectors = networks - base
    _check_finite(vectors)
    return vectors


def task_arithmetic(networks: Tensor, base: Tensor, scale: float = 0.4) -> Tensor:
    """The base plus the scaled sum of all task vectors: base + scale * sum_n (networks_n - base), (P,).

    Args:
        networks: (N, P).
        base: (P,) network with which their trainings began.
        scale: the paper chooses it on held-out data, mostly .3 to .5; a negative scale forgets.

    Source: Ilharco et al. 2023 (arXiv 2212.04089), section 2.
    """
    return base + scale * task_vectors(networks, base).sum(0)


def ties(networks: Tensor, base: Tensor, density: float = 0.2, scale: float = 1.0) -> Tensor:
    """The base plus the scaled mean of trimmed task vectors that agree with the elected sign, (P,).

    Each task vector keeps its largest entries; a coordinate's sign is that of their sum; the mean is over the task
    vectors whose entry has that sign. Where the entries cancel, the base is left as it is.

    Args:
        networks: (N, P).
        base: (P,) network with which their trainings began.
        density: share of entries that each task vector keeps, in (0, 1].
        scale: of the merged vector.

    Source: Yadav et al. 2023 (arXiv 2306.01708), Algorithm 1.
    """
    trimmed = torch.stack([keep_largest(vector, density) for vector in task_vectors(networks, base)])
    elected = trimmed.sum(0).sign()
    agrees = (trimmed.sign() == elected) & (elected != 0)
    merged = torch.where(agrees, trimmed, 0).sum(0) / agrees.sum(0).clamp(min=1)
    return base + scale * merged


def dare(networks: Tensor, base: Tensor, rng: torch.Generator, drop_rate: float = 0.9, scale: float = 0.4) -> Tensor:
    """The base plus the scaled sum of task vectors of which random entries were dropped and the rest made larger, (P,).

    Args:
        networks: (N, P).
        base: (P,) network with which their trainings began.
        rng: source of the drops.
        drop_rate: share of entries that is dropped, in [0, 1).
        scale: of the sum, as in `task_arithmetic`.

    Source: Yu et al. 2024 (arXiv 2311.03099), section 3.1, then task arithmetic.
    """
    return base + scale * drop_and_rescale(task_vectors(networks, base), drop_rate, rng).sum(0)


def drop_and_rescale(vectors: Tensor, drop_rate: float, rng: torch.Generator) -> Tensor:
    """Vectors of any shape with entries set to 0 at random and the others divided by 1 - drop_rate.

    Their expectation is as before.

    Source: Yu et al. 2024 (arXiv 2311.03099), equations 1 to 3.
    """
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate must be in [0, 1), got {drop_rate}")
    kept = torch.rand(vectors.shape, generator=rng, device=rng.device).to(vectors.device) >= drop_rate
    return torch.where(kept, vectors / (1 - drop_rate), 0)


def keep_largest(vector: Tensor, density: float) -> Tensor:
    """A vector (P,) whose entries are 0 except the share `density` of largest magnitude, at least one."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")
    _check_finite(vector)
    kept = vector.abs().topk(max(1, round(density * len(vector)))).indices
    return torch.zeros_like(vector).index_copy(0, kept, vector[kept])


def _check_finite(vectors: Tensor) -> None:
    """Raise ValueError for NaN, which has no sign to agree and no size to be kept, and for infinity."""
    if not vectors.isfinite().all():
        raise ValueError("networks and their base must be finite, got NaN or infinity; did a training diverge?")
