"""Text by domain, one folder or file each: the next byte of the sources of one module, of one author, of one year.

Legend: M domains, N members, B windows, L symbols.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from zoo.storage.splits import SplitRule
from zoo.tasks.dataset import SPLIT_NAMES, Dataset, Split
from zoo.tasks.task import Batch

_SHARES: Final = (0.8, 0.9)  # ends of the training and the validation part of a domain's text


class TextDomains:
    """A family: member m is the m-th domain by name.

    The first 80% of a domain's text are for training, the next 10% for validation, the rest for test. Each part gives
    the same number of windows, evenly spaced, which overlap where the text is short.

    Args:
        texts: the text of each domain by name.
        context: L.
        num_windows: of the training part; of the others a quarter. None for 512, of pooled text 16,384.
        vocabulary: number of symbols; bytes from there on become the last.
        pooled: every member is all training text of the members of the train split, on which frozen networks can be
            trained that have not seen the held-out domains.
        min_bytes: domains with less text are left out, which a warning says.
        name: of the whole.

    Raises:
        ValueError: for fewer than two domains, and settings out of range.
    """

    objective: Final = "cross_entropy"
    split_key: Final = "domain"

    def __init__(
        self,
        texts: Mapping[str, bytes],
        *,
        context: int = 64,
        num_windows: int | None = None,
        vocabulary: int = 256,
        pooled: bool = False,
        min_bytes: int = 8192,
        split_fractions: Mapping[str, float] | None = None,
        name: str = "text_domains",
    ) -> None:
        if num_windows is None:
            num_windows = 16_384 if pooled else 512  # a network on fewer windows of pooled text learns them by heart
        if context < 1 or num_windows < 8 or min_bytes < 20 * (context + 1):
            raise ValueError(
                "expected context >= 1, num_windows >= 8 and min_bytes >= 20 * (context + 1), so that each part of a "
                f"domain holds a window, got {context}, {num_windows} and {min_bytes}"
            )
        long_enough = {name: text for name, text in sorted(texts.items()) if len(text) >= min_bytes}
        if len(long_enough) < 2:
            raise ValueError(
                f"{name}: expected two domains or more with {min_bytes:,} bytes of text, got {len(long_enough)} of "
                f"{len(texts)}; bring more text, or lower min_bytes"
            )
        if len(long_enough) < len(texts):
            warnings.warn(
                f"{name}: {len(texts) - len(long_enough)} of {len(texts)} domains have less than {min_bytes:,} bytes "
                "and are left out",
                stacklevel=3,
            )
        self.names = tuple(long_enough)
        self.context, self.pooled = context, pooled
        digests = [hashlib.sha256(one.encode()).digest() for one in self.names]
        self.domains = torch.tensor([int.from_bytes(digest[:8], "big") >> 1 for digest in digests])
        rule = SplitRule(split_fractions) if split_fractions else SplitRule()
        is_train = rule.members("train", self.domains.numpy())
        order = sorted(range(len(self.names)), key=lambda i: not is_train[i])  # what is pooled is in one piece
        self._texts = {}
        for side, split in enumerate(SPLIT_NAMES):
            parts = [_part(long_enough[self.names[i]], side) for i in order]
            sizes = np.array([len(part) for part in parts])
            starts, lengths = np.zeros_like(sizes), np.zeros_like(sizes)
            starts[order], lengths[order] = np.cumsum(sizes) - sizes, sizes
            if pooled:  # members of train were put first
                starts, lengths = np.zeros_like(sizes), np.full_like(sizes, lengths[is_train].sum())
            symbols = np.minimum(np.frombuffer(b"".join(parts), np.uint8), vocabulary - 1)
            count = num_windows if side == 0 else num_windows // 4
            spans = (torch.from_numpy(starts), torch.from_numpy(lengths))
            self._texts[split] = _Text(torch.from_numpy(symbols), *spans, count, context)
        digest = hashlib.sha256(b"".join(self._texts[split].symbols.numpy().tobytes() for split in SPLIT_NAMES))
        first = self.bind(torch.zeros(1, dtype=torch.int64))
        batches = (first.examples(torch.arange(self._texts[split].num_windows), split) for split in SPLIT_NAMES)
        train, val, test = (Split(batch.inputs[0], batch.targets[0]) for batch in batches)
        self.dataset = Dataset(name, train, val, test, vocabulary, f"sha256:{digest.hexdigest()}")

    @property
    def num_members(self) -> int:
        return len(self.names)

    def attributes(self, members: Tensor) -> dict[str, Tensor]:
        """Number, and a hash of the domain's name, so that other domains beside it leave it in its split."""
        return {"member": members, "domain": self.domains[members]}

    def describe(self, members: Tensor) -> Tensor:
        """Nothing short describes a domain: (N, 0)."""
        return torch.zeros(len(members), 0)

    def bind(self, members: Tensor) -> _Domains:
        return _Domains({split: text.of(members) for split, text in self._texts.items()})

    def to(self, device: torch.device | str) -> TextDomains:
        moved = copy.copy(self)
        moved.dataset = self.dataset.to(device)
        moved._texts = {split: text.to(device) for split, text in self._texts.items()}
        return moved


@dataclass(frozen=True)
class _Text:
    """The text of one split, and where in it each domain's, or member's, lies."""

    symbols: Tensor
    starts: Tensor  # (N,)
    lengths: Tensor  # (N,)
    num_windows: int
    context: int

    def of(self, members: Tensor) -> _Text:
        numbers = members.to(self.symbols.device, non_blocking=True)
        return replace(self, starts=self.starts[numbers], lengths=self.lengths[numbers])

    def to(self, device: torch.device | str) -> _Text:
        symbols, starts, lengths = (part.to(device) for part in (self.symbols, self.starts, self.lengths))
        return replace(self, symbols=symbols, starts=starts, lengths=lengths)


@dataclass(frozen=True)
class _Domains:
    texts: dict[str, _Text]

    def __getitem__(self, some: slice) -> _Domains:
        parts = self.texts.items()
        return _Domains(
            {split: replace(text, starts=text.starts[some], lengths=text.lengths[some]) for split, text in parts}
        )

    def examples(self, indices: Tensor, split: str = "train") -> Batch:
        text = self.texts[split]
        room = (text.lengths - text.context - 1)[:, None]
        first = text.starts[:, None] + indices * room // (text.num_windows - 1)  # (N, B)
        places = first[..., None] + torch.arange(text.context + 1, device=first.device)
        windows = text.symbols[places].long()  # (N, B, L + 1)
        return Batch(windows[..., :-1], windows[..., 1:])


def _part(text: bytes, side: int) -> bytes:
    ends = [0, *(int(share * len(text)) for share in _SHARES), len(text)]
    return text[ends[side] : ends[side + 1]]
