"""Which examples each step of a population sees.

Every epoch is a fresh permutation of the training split; what is left of it when it does not fill a batch is dropped.

Legend: N networks, B examples of a minibatch, n examples of the training split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral

import torch
from torch import Tensor

from zoo.networks.initialization import derive_seed


def shared_indices(data_seed: int, num_examples: int, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Indices (B,) int32 of one minibatch after another, a function of `data_seed` alone."""
    return (order[0] for order in own_indices([data_seed], num_examples, batch_size, device))


def own_indices(run_seeds: Sequence[int], num_examples: int, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Indices (N, B) int32 of one minibatch after another, row i a function of `run_seeds[i]` alone.

    One epoch's permutations are held in memory: 4 N n bytes.

    Raises:
        ValueError: if a minibatch is empty or larger than the training split.
    """
    check_batch_size(batch_size, num_examples)
    return _batches(run_seeds, num_examples, batch_size, device)


def check_batch_size(batch_size: int, num_examples: int) -> None:
    """Raise ValueError unless a minibatch of that size can be drawn from that many examples."""
    if not isinstance(batch_size, Integral) or not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size must be an integer from 1 to {num_examples} (the training split), got {batch_size!r}"
        )


def _batches(run_seeds: Sequence[int], num_examples: int, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    rngs = [torch.Generator().manual_seed(derive_seed(seed, "data order")) for seed in run_seeds]
    while True:
        orders = [torch.randperm(num_examples, generator=rng, dtype=torch.int32) for rng in rngs]
        epoch = torch.stack(orders).to(device, non_blocking=True)  # (N, n)
        for start in range(0, num_examples - batch_size + 1, batch_size):
            yield epoch[:, start : start + batch_size]
