"""Binary tasks "is the example in this subset of the classes?" on any data set of classes.

A subset is a mask whose bit c tells whether class c belongs to it. A mask and its complement are nearly the same task
(the sign of the logit), so no split may separate them.

Legend: N members, B examples, C classes, M masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from zoo.tasks.dataset import Dataset
from zoo.tasks.families.words import of_subset
from zoo.tasks.task import Batch

_MAX_LISTED: Final = 16  # classes of which all subsets are members
_MAX_CLASSES: Final = 62  # of one mask


class LabelSubsets:
    """A family: member m is `masks[m]`.

    Args:
        dataset: of C classes.
        masks: M masks; None for all subsets but the empty and the whole one, 2^C - 2.

    Raises:
        ValueError: for a data set without classes, or with too many, and masks that are none of its subsets.
    """

    objective: Final = "binary_cross_entropy"
    split_key: Final = "mask_pair"

    def __init__(self, dataset: Dataset, masks: Sequence[int] | None = None) -> None:
        count = dataset.num_classes
        if not 2 <= count <= (_MAX_CLASSES if masks is not None else _MAX_LISTED):
            raise ValueError(
                f"label subsets are of 2 to {_MAX_LISTED} classes, with masks of their own of 2 to {_MAX_CLASSES}; "
                f"{dataset.name!r} has {count}"
            )
        self.dataset = dataset
        self.whole = 2**count - 1
        if masks is None:
            self.masks = torch.arange(1, self.whole)
        else:
            values = [int(mask) for mask in masks] if isinstance(masks, Sequence) else []
            bad = [mask for mask in values if not 0 < mask < self.whole]
            if not values or bad:
                raise ValueError(f"masks must be numbers from 1 to {self.whole - 1}, got {bad or masks}")
            self.masks = torch.tensor(values)

    @property
    def num_members(self) -> int:
        return len(self.masks)

    def attributes(self, members: Tensor) -> dict[str, Tensor]:
        masks = self.masks[members]
        return {"mask": masks, "mask_pair": torch.minimum(masks, self.whole - masks)}

    def describe(self, members: Tensor) -> Tensor:
        """1 for each class in the subset, else -1: (N, C)."""
        is_member = (self.masks[members, None] >> torch.arange(self.dataset.num_classes)) & 1
        return 2.0 * is_member - 1

    def in_words(self, members: Tensor) -> list[list[str]]:
        count = self.dataset.num_classes
        assert count is not None
        return [
            of_subset([mask >> number & 1 == 1 for number in range(count)]) for mask in self.masks[members].tolist()
        ]

    def bind(self, members: Tensor) -> _Subsets:
        masks = self.masks[members].to(self.dataset.train.targets.device, non_blocking=True)
        return _Subsets(self.dataset, masks)

    def to(self, device: torch.device | str) -> LabelSubsets:
        return LabelSubsets(self.dataset.to(device), self.masks.tolist())


@dataclass(frozen=True)
class _Subsets:
    dataset: Dataset
    masks: Tensor  # (N,)

    def __getitem__(self, some: slice) -> _Subsets:
        return _Subsets(self.dataset, self.masks[some])

    def examples(self, indices: Tensor, split: str = "train") -> Batch:
        data = self.dataset.split(split)
        return Batch(data.inputs[indices], (self.masks[:, None] >> data.targets[indices]) & 1)
