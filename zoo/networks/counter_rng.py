"""Random numbers that follow from a key and a counter alone: the same on every device, whatever was drawn before.

A stream is int64 (4,): two words of a key, and the step and the part of it for which numbers are drawn. N networks with
numbers of their own have streams (N, 4), to be mapped over by `torch.vmap`.

Source: Philox 4x32-10: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.

Legend: N networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from zoo.networks.initialization import derive_seed

_WORD: Final = 2**32 - 1
# Products of 32-bit words exceed int64, so the multipliers are taken less 2**32, which is added to the upper word.
_MULTIPLIERS: Final = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
_KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10


def streams_of(seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Streams (N, 4) at step 0, row i a function of `seeds[i]` alone."""
    keys = [derive_seed(seed, "random numbers") for seed in seeds]
    return torch.tensor([[key & _WORD, key >> 32, 0, 0] for key in keys]).to(device, non_blocking=True)


def at(streams: Tensor, *, step: int | Tensor = 0, part: int | Tensor = 0) -> Tensor:
    """Streams (..., 4) moved on by a number of steps and parts."""
    places = torch.arange(4, device=streams.device)
    return streams + (places == 2) * step + (places == 3) * part


class CounterRng:
    """Random numbers of one stream: each call draws other ones, and depends on how many calls there were before.

    Args:
        stream: (4,).
    """

    def __init__(self, stream: Tensor) -> None:
        self._stream = stream
        self.num_calls = 0

    def words(self, shape: Sequence[int]) -> Tensor:
        """Integers from 0 to 2**32 - 1, as int64."""
        key_low, key_high, step, part = self._stream.unbind()
        size = math.prod(shape)
        # The index is in a word that is not multiplied in the first round: inductor multiplies indices in 32 bits.
        index = torch.arange(-(-size // 4), device=self._stream.device)
        call = torch.full_like(step, self.num_calls)
        self.num_calls += 1
        words = torch.broadcast_tensors(*philox((step, index, part, call), (key_low, key_high)))
        return torch.stack(words, -1).flatten()[:size].view(tuple(shape))

    def keeps(self, probability: float, shape: Sequence[int]) -> Tensor:
        """Booleans, true with that probability."""
        return self.words(shape) < round(probability * 2**32)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """float32 in [0, 1), multiples of 2**-24."""
        return (self.words(shape) >> 8).float() * 2**-24

    def normal(self, shape: Sequence[int]) -> Tensor:
        """float32 of mean 0 and deviation 1. Source: Box and Muller 1958."""
        radius, angle = self.uniform((2, *shape)).unbind()
        return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        """int64 from 0 to `high` - 1, which is less than 2**31."""
        return (self.words(shape) * high) >> 32


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Four words of random bits, of a counter of four words and a key of two, all int64 that can be broadcast."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (((p1 >> 32) + c2) ^ c1 ^ k0) & _WORD,
            p1 & _WORD,
            (((p0 >> 32) + c0) ^ c3 ^ k1) & _WORD,
            p0 & _WORD,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return [c0, c1, c2, c3]
