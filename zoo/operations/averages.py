"""Averages of networks: with weights, along a trajectory, and of those members that help.

Legend: N networks, S snapshots, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from zoo.ambient import torch_defaults

DEFAULT_DECAY: Final = 0.9


class Soup(NamedTuple):
    """The average (P,) of the networks whose numbers are `members`, in the order in which they were added."""

    params: Tensor
    members: tuple[int, ...]


@torch_defaults()
def average(networks: Tensor, weights: Sequence[float] | Tensor | None = None) -> Tensor:
    """Weighted mean (P,) of networks.

    Args:
        networks: (N, P).
        weights: (N,) at least 0, of any positive sum; uniform by default.

    Raises:
        ValueError: if weights are negative, all zero, or not N.

    Source: Wortsman et al. 2022 (arXiv 2203.05482), "Model soups", uniform soup.
    """
    return normalized_weights(weights, networks) @ networks


@torch_defaults()
def exponential_average(networks: Tensor, decay: float = DEFAULT_DECAY) -> Tensor:
    """Exponential moving average (P,) at the end of a trajectory, begun with its first network.

    Args:
        networks: (S, P) in the order of training.
        decay: share of the average that is kept from one snapshot to the next.

    Source: Morales-Brotons et al. 2024 (arXiv 2411.18704), equation 1.
    """
    return exponential_weights(len(networks), decay).to(networks) @ networks


def greedy_soup(networks: Tensor, evaluate: Callable[[Tensor], Tensor]) -> Soup:
    """Average of networks, best first, each of which is kept only if the average does not become worse by it.

    Args:
        networks: (N, P).
        evaluate: held-out losses (n,) of networks (n, P); lower is better.

    Source: Wortsman et al. 2022 (arXiv 2203.05482), Algorithm 1.
    """
    losses = evaluate(networks)
    if losses.shape != networks.shape[:1] or losses.isnan().all():
        raise ValueError(f"evaluate must give a loss for each of {len(networks)} networks, got {losses.tolist()}")
    first, *others = losses.argsort(stable=True).tolist()  # NaN come last
    members, total, best = [first], networks[first], losses[first]
    for candidate in others:
        wider = total + networks[candidate]
        loss = evaluate((wider / (len(members) + 1)).unsqueeze(0))[0]
        if bool(loss <= best):
            members, total, best = [*members, candidate], wider, loss
    return Soup(total / len(members), tuple(members))


def normalized_weights(weights: Sequence[float] | Tensor | None, networks: Tensor) -> Tensor:
    """Weights (N,) of sum 1 for networks (N, P), of their dtype and on their device."""
    try:
        given = torch.as_tensor([1.0] * len(networks) if weights is None else weights).to(networks)
    except (TypeError, ValueError) as error:
        raise ValueError(f"weights must be {len(networks)} numbers, one a network, got {weights!r}") from error
    if given.shape != networks.shape[:1]:
        raise ValueError(f"weights must be {len(networks)} numbers, one a network, got {tuple(given.shape)}")
    if not (given.isfinite().all() and (given >= 0).all() and given.sum() > 0):
        raise ValueError(f"weights must be at least 0 and not all 0, got {given.tolist()}")
    return given / given.sum()


def exponential_weights(num_snapshots: int, decay: float = DEFAULT_DECAY) -> Tensor:
    """Weights (S,) that the snapshots of a trajectory have in their exponential moving average."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")
    powers = decay ** torch.arange(num_snapshots - 1, -1, -1, dtype=torch.float64)
    return powers * torch.tensor([1.0, *[1 - decay] * (num_snapshots - 1)], dtype=torch.float64)
