"""One data set: three splits of examples, and a hash that tells whether two zoos have seen the same.

Splits are drawn by `numpy.random.RandomState`, whose stream NumPy guarantees never to change.

Legend: n examples, L symbols, K real numbers; N networks, B examples of a minibatch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from zoo.networks.counter_rng import CounterRng, at
from zoo.tasks.augmentation import Augmentation, Sampler
from zoo.tasks.files.examples import SPLIT_NAMES, Splits

AUGMENTATION_PART: Final = 2**31  # part of a step's stream that no minibatch has
_VAL_SHARE: Final = 0.15  # of all examples; the same again for test


@dataclass(frozen=True)
class Split:
    """Examples `inputs` (n, ...) with their `targets`: (n,) classes, (n, L) symbols or (n, K) real numbers.

    In control an example is an episode, see `zoo.tasks.policies`.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Dataset:
    """Three splits of one data set; `num_classes` is 0 if the targets are real numbers.

    Training examples are changed by `augmentations`, one after the other, each time that a step sees them. Zoos record
    the `data_hash`, by default that of all numbers, to tell whether they saw the same examples.
    """

    name: str
    train: Split
    val: Split
    test: Split
    num_classes: int
    data_hash: str = ""
    augmentations: tuple[Augmentation, ...] = ()

    def __post_init__(self) -> None:
        if not self.data_hash:
            tensors = [part for name in SPLIT_NAMES for part in (self.split(name).inputs, self.split(name).targets)]
            arrays = [(one.float() if one.dtype is torch.bfloat16 else one).cpu().numpy() for one in tensors]
            object.__setattr__(self, "data_hash", _hash_of(arrays))

    def split(self, name: str) -> Split:
        """Split of that name; ValueError if it is none of SPLIT_NAMES."""
        if name not in SPLIT_NAMES:
            raise ValueError(f"split must be one of {SPLIT_NAMES}, got {name!r}")
        return getattr(self, name)

    def augment(self, inputs: Tensor, rng: CounterRng) -> Tensor:
        """Inputs (B, ...) as a training step may see them."""
        for augmentation in self.augmentations:
            inputs = augmentation(inputs, rng)
        return inputs

    def training_examples(self, indices: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, augmented, of training examples (B,), or (N, B) with a stream for each row.

        Args:
            indices: (B,) or (N, B).
            stream: (4,) or (N, 4), see `zoo.networks.counter_rng`.
        """
        data = self.train
        if not self.augmentations:
            return data.inputs[indices], data.targets[indices]

        def augmented(indices: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
            rng = CounterRng(at(stream, part=AUGMENTATION_PART))
            inputs, targets = data.inputs[indices], data.targets[indices]
            for one in self.augmentations:
                if isinstance(one, Sampler):
                    inputs, targets = one.sample(data.inputs, data.targets, indices, rng)
            return self.augment(inputs, rng), targets

        return torch.vmap(augmented)(indices, stream) if indices.ndim > 1 else augmented(indices, stream)

    def to(self, device: torch.device | str) -> Dataset:
        train, val, test = (self.split(name).to(device) for name in SPLIT_NAMES)
        return replace(self, train=train, val=val, test=test)


def shuffled_dataset(name: str, inputs: np.ndarray, targets: np.ndarray) -> Dataset:
    """Data set of examples (n, ...) in an order that never changes, split into 70 / 15 / 15%."""
    num_examples = len(inputs)
    num_val = round(num_examples * _VAL_SHARE)
    if num_val < 1:
        raise ValueError(f"data set {name!r} needs at least 4 examples to be split in three, got {num_examples}")
    order = np.random.RandomState(0).permutation(num_examples)
    parts = np.split(order, [num_examples - 2 * num_val, num_examples - num_val])
    return dataset_of(name, [(inputs[part], targets[part]) for part in parts], count_classes([targets]))


def dataset_of(name: str, splits: Splits, num_classes: int) -> Dataset:
    """Data set of inputs and targets of train, val and test; `num_classes` is 0 for targets that are real numbers."""
    arrays: list[np.ndarray] = []
    tensors: list[Split] = []
    for inputs, targets in splits:
        x = np.ascontiguousarray(inputs, dtype="<f4" if inputs.dtype.kind == "f" else "<i8")
        y = np.ascontiguousarray(targets, dtype="<i8" if num_classes else "<f4")
        y = y.reshape(-1, 1) if y.ndim == 1 and not num_classes else y
        arrays += [x, y]
        tensors.append(Split(*(torch.from_numpy(v if v.flags.writeable else v.copy()) for v in (x, y))))
    train, val, test = tensors
    return Dataset(name, train, val, test, num_classes, _hash_of(arrays))


def count_classes(targets: Sequence[np.ndarray]) -> int:
    """Number of classes that integer targets (n, ...) of all splits name; 0 for real numbers."""
    is_class = all(array.dtype.kind in "iu" for array in targets)
    return max(int(array.max()) for array in targets) + 1 if is_class else 0


def _hash_of(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return f"sha256:{digest.hexdigest()}"
