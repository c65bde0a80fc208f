"""A family of tasks, trained on as one population.

Legend: N networks, B examples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from zoo.networks.counter_rng import CounterRng, at
from zoo.tasks.augmentation import Augmentation, Sampler
from zoo.tasks.dataset import AUGMENTATION_PART
from zoo.tasks.evaluation import even_indices
from zoo.tasks.families.family import Family, HasWords, Members
from zoo.tasks.objectives import Objective
from zoo.tasks.task import Batch, Task


class FamilyTask(Task):
    """Network j of a population trains on member j, unless `for_runs` or `for_members` say which.

    Run i of a zoo has member i, or i modulo their number where the family has an end.

    Args:
        family: of tasks.
        augmentations: of training examples; networks that share a minibatch share what is drawn for it.
        Others: as for Task.
    """

    def __init__(
        self,
        name: str,
        family: Family,
        build: Callable[[], nn.Module],
        objective: Objective | str | Mapping[str, object],
        *,
        augmentations: Sequence[Augmentation] = (),
        parametrization: str = "sp",
        config: Mapping[str, object] | None = None,
    ) -> None:
        if any(isinstance(one, Sampler) for one in augmentations):
            raise ValueError(f"task {name!r}: members give examples by number, so none can be drawn anew by augment")
        self.family = family
        self._numbers: tuple[int, ...] | None = None
        self._bound: tuple[int, Members] | None = None  # how many, and which
        dataset = replace(family.dataset, augmentations=tuple(augmentations))
        super().__init__(name, dataset, build, objective, parametrization=parametrization, config=config)

    @property
    def split_key(self) -> str:
        return self.family.split_key

    @cached_property
    def has_own_inputs(self) -> bool:
        one = torch.zeros(1, dtype=torch.int64)
        inputs = self.family.bind(one).examples(one.to(self.device, non_blocking=True)).inputs
        return inputs.ndim > self.dataset.train.inputs.ndim

    def to(self, device: torch.device | str) -> FamilyTask:
        moved = super().to(device)
        assert isinstance(moved, FamilyTask)
        moved.family = self.family.to(device)
        moved.dataset = replace(moved.family.dataset, augmentations=self.dataset.augmentations)
        moved._bound = None
        return moved if self._numbers is None else moved.for_members(self._numbers)

    def for_runs(self, runs: Sequence[int]) -> FamilyTask:
        return self.for_members(self._members_of(runs))

    def for_members(self, members: Sequence[int]) -> FamilyTask:
        """The task whose network j is to solve member `members[j]`."""
        bound = copy.copy(self)
        bound._numbers = tuple(int(member) for member in members)
        bound._bound = len(bound._numbers), self.family.bind(torch.tensor(bound._numbers))
        return bound

    def run_attributes(self, runs: Sequence[int]) -> dict[str, Tensor]:
        return self.family.attributes(torch.tensor(self._members_of(runs)))

    def describe(self, runs: Sequence[int]) -> Tensor:
        return self.family.describe(torch.tensor(self._members_of(runs)))

    def in_words(self, runs: Sequence[int]) -> list[list[str]]:
        """What the task of each run is in words, in several ways.

        Raises:
            ValueError: for a family that has no words.
        """
        if not isinstance(self.family, HasWords):
            raise ValueError(f"members of task {self.name!r} are not known in words: say what they are, describe=...")
        return self.family.in_words(torch.tensor(self._members_of(runs)))

    def batch(self, indices: Tensor, num_networks: int, split: str = "train", *, stream: Tensor | None = None) -> Batch:
        inputs, targets, _ = self._members(num_networks).examples(indices, split)
        if stream is not None and self.dataset.augmentations:
            has_own = inputs.ndim > self.dataset.train.inputs.ndim
            of_each = torch.vmap(self._augmented, in_dims=(0, 0 if stream.ndim > 1 else None))
            inputs = (of_each if has_own else self._augmented)(inputs, stream)
        return Batch(inputs, targets, stream)

    def draw_examples(self, num_examples: int, rng: torch.Generator, splits: Sequence[str] = ("train",)) -> Batch:
        """Random examples of some splits together; runs that see inputs of their own see other images or rows, too."""
        if self._numbers is None or not self.has_own_inputs:
            return super().draw_examples(num_examples, rng, splits)
        sizes = torch.tensor([len(self.dataset.split(name)) for name in splits])
        chosen = torch.randint(int(sizes.sum()), (num_examples,), generator=rng)
        counts = torch.bincount(torch.bucketize(chosen, sizes.cumsum(0), right=True), minlength=len(splits))
        members, parts = self._members(len(self._numbers)), []
        for name, size, count in zip(splits, sizes.tolist(), counts.tolist(), strict=True):
            indices = torch.randint(size, (len(self._numbers), count), generator=rng)
            parts.append(members.examples(indices.to(self.device, non_blocking=True), name))
        inputs, targets, _ = zip(*parts, strict=True)
        return Batch(torch.cat(inputs, dim=1), torch.cat(targets, dim=1))

    def trial_batch(self, num_networks: int = 2, *, own: bool = False) -> Batch:
        batch = super().trial_batch(num_networks, own=own)
        return batch if own or not self.has_own_inputs else batch._replace(inputs=batch.inputs[0])

    def _augmented(self, inputs: Tensor, stream: Tensor) -> Tensor:
        """Inputs (B, ...) as a training step with that stream (4,) sees them."""
        return self.dataset.augment(inputs, CounterRng(at(stream, part=AUGMENTATION_PART)))

    def _members_of(self, runs: Sequence[int]) -> list[int]:
        count = self.family.num_members
        return [int(run) if count is None else int(run) % count for run in runs]

    def _members(self, num_networks: int) -> Members:
        if self._numbers is not None and len(self._numbers) != num_networks:
            raise ValueError(f"the task is bound to {len(self._numbers)} runs, got {num_networks} networks")
        if self._bound is None or self._bound[0] != num_networks:  # once: a recorded step copies nothing from the host
            members = torch.tensor(self._members_of(range(num_networks)))
            self._bound = num_networks, self.family.bind(members)
        return self._bound[1]

    def _targets_to_fit(self, split: str) -> Tensor:
        everything = torch.arange(len(self.dataset.split(split)), device=self.device)
        return self.batch(everything, 1 if self._numbers is None else len(self._numbers), split).targets[0]

    def _drawn(self, indices: Tensor, split: str) -> Batch:
        if self._numbers is None:
            return super().batch(indices, 1, split)
        return self._members(len(self._numbers)).examples(indices, split)

    def _evaluated_batch(self, split: str, examples: slice, networks: slice, num_networks: int) -> Batch:
        count = len(self.dataset.split(split))
        indices = even_indices(count, self.max_train_evaluated if split == "train" else count, self.device)
        return self._members(num_networks)[networks].examples(indices[examples], split)
