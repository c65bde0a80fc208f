"""What a family of tasks is: members by number, of which many train, and are read by a generator, at once.

A member is a task of its own, with train, val and test examples. Families are split by member: a network, or a
generator, that is tested on members of the test split has seen no example of theirs.

Legend: N members, B examples, T numbers that describe a member.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from zoo.networks.initialization import derive_seed
from zoo.storage.splits import SplitRule
from zoo.tasks.dataset import Dataset
from zoo.tasks.task import Batch


class Members(Protocol):
    """N members of a family on one device."""

    def __getitem__(self, some: slice) -> Members:
        """Some of them."""
        ...

    def examples(self, indices: Tensor, split: str = "train") -> Batch:
        """Inputs (N, B, ...), or (B, ...) where members share them, and targets (N, B, ...).

        Args:
            indices: (B,) the same for all members, or (N, B), below the size of the split.
            split: "train", "val" or "test".
        """
        ...


class Family(Protocol):
    """Tasks by number, from 0 on; member i is the same whichever members it is asked for with."""

    @property
    def dataset(self) -> Dataset:
        """Shapes, kinds and numbers of examples of every member, and the hash of what all are made from."""
        ...

    @property
    def objective(self) -> str:
        """Name of the objective that suits it."""
        ...

    @property
    def num_members(self) -> int | None:
        """How many there are; None without end."""
        ...

    @property
    def split_key(self) -> str:
        """The attribute by whose hash members are split; those that must not be parted share its value."""
        ...

    def attributes(self, members: Tensor) -> dict[str, Tensor]:
        """What tells members (N,) apart, by name, each (N,) on the CPU: the columns that a zoo records."""
        ...

    def describe(self, members: Tensor) -> Tensor:
        """Numbers (N, T) around -1 to 1 that say what members (N,) ask for, on the CPU; T is 0 where none would do."""
        ...

    def bind(self, members: Tensor) -> Members:
        """Members of those numbers (N,), which are on the CPU, on the device of the family's data."""
        ...

    def to(self, device: torch.device | str) -> Family:
        """The same family with its data on another device."""
        ...


@runtime_checkable
class HasWords(Protocol):
    """A family whose members can be said in words."""

    def in_words(self, members: Tensor) -> list[list[str]]:
        """What tells each of members (N,) from others, in several ways."""
        ...


def members_of(family: Family, split: str, num_candidates: int | None = None, rule: SplitRule | None = None) -> Tensor:
    """Numbers of the members in a split, which are those of a zoo's runs in its split of that name.

    Args:
        family: of tasks.
        split: "train", "val" or "test".
        num_candidates: members 0, 1, ... from which they are taken; None for all there are.
        rule: shares of the splits; by default 90, 5 and 5%, as of zoos.

    Raises:
        ValueError: for a family without end and no number of candidates.
    """
    count = family.num_members if num_candidates is None else num_candidates
    if count is None:
        raise ValueError("this family has no end: say among how many members to look, num_candidates=...")
    numbers = torch.arange(count)
    keys = family.attributes(numbers)[family.split_key].numpy()
    return numbers[torch.from_numpy((rule or SplitRule()).members(split, keys))]


def member_draws(seed: int, members: Tensor, num_uniform: int, num_normal: int = 0, *, stream: str = "") -> Tensor:
    """Random numbers (N, num_uniform + num_normal) on the CPU: first uniform ones in [0, 1), then normal ones.

    Row i is a function of `seed`, `stream`, the two counts and `members[i]` alone. What is drawn on the CPU is the same
    on every device.
    """
    drawn = torch.empty(len(members), num_uniform + num_normal)
    rng = torch.Generator()
    for row, member in zip(drawn, members.tolist(), strict=True):
        rng.manual_seed(derive_seed(seed, "member", stream, member))
        row[:num_uniform].uniform_(generator=rng)
        row[num_uniform:].normal_(generator=rng)
    return drawn
