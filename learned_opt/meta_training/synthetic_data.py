"""Data sets made for meta-training: cheap, without end, and none that an evaluation uses.

Every function is deterministic in its arguments and returns standardised inputs. Splits are those of
`zoo.tasks.datasets`.

Legend: n examples, D inputs, H hidden units of a teacher, L points of a sequence.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.tasks.dataset import SPLIT_NAMES, Dataset, Split
from zoo.tasks.datasets import get_dataset

NUM_CLASSES: Final = 10
_SEQUENCE_POINTS: Final = 40
_TEMPLATE_POINTS: Final = 12
_SHARES: Final = (0.7, 0.85)  # ends of the training and the validation split


@lru_cache(maxsize=64)
def teacher_student(
    seed: int, num_inputs: int, num_hidden: int, label_noise: float, num_examples: int = 5000
) -> Dataset:
    """Classes given by a random ReLU network; inputs correlated, their scales falling off by a factor e^2.

    Args:
        seed: of teacher and inputs.
        num_inputs: D.
        num_hidden: H, how crooked the class boundaries are.
        label_noise: standard deviation added to the teacher's logits, which have 1.
        num_examples: n, of all splits.
    """
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, num_inputs, generator=rng) * torch.linspace(0, -2, num_inputs).exp()
    inputs = inputs @ torch.linalg.qr(torch.randn(num_inputs, num_inputs, generator=rng))[0]
    bias = 0.5 * torch.randn(num_hidden, generator=rng)
    hidden = torch.relu(inputs @ torch.randn(num_inputs, num_hidden, generator=rng) + bias)
    logits = hidden @ torch.randn(num_hidden, NUM_CLASSES, generator=rng)
    logits = (logits - logits.mean(0)) / logits.std(0)
    noise = label_noise * torch.randn(logits.shape, generator=rng)
    return _split(f"teacher{seed}", inputs, (logits + noise).argmax(1))


@lru_cache(maxsize=64)
def placed_patterns(seed: int, noise: float, num_examples: int = 5000) -> Dataset:
    """Sequences (40,) in which one of ten random patterns stands at a random place, in correlated noise.

    A relative of MNIST-1D with other patterns for every seed.
    """
    rng = np.random.RandomState(seed)
    patterns = 3 * rng.standard_normal((NUM_CLASSES, _TEMPLATE_POINTS))
    patterns = np.stack([np.convolve(np.pad(p, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid") for p in patterns])
    labels = rng.randint(0, NUM_CLASSES, num_examples)
    begins = rng.randint(0, _SEQUENCE_POINTS - _TEMPLATE_POINTS + 1, num_examples)
    heights = 1 + 0.4 * rng.standard_normal(num_examples)
    white = rng.standard_normal((num_examples, _SEQUENCE_POINTS + 4))
    sequences = 4 * noise * np.stack([np.convolve(row, np.full(5, 0.2), mode="valid") for row in white])
    columns = begins[:, None] + np.arange(_TEMPLATE_POINTS)
    sequences[np.arange(num_examples)[:, None], columns] += patterns[labels] * heights[:, None]
    return _split(f"patterns{seed}", torch.from_numpy(sequences.astype(np.float32)), torch.from_numpy(labels))


@lru_cache(maxsize=64)
def smooth_function(
    seed: int, num_inputs: int, frequency: float, *, noise: float = 0.0, scale: float = 1.0, num_examples: int = 1024
) -> Dataset:
    """Real numbers (n, 1) that depend smoothly on D inputs: a sum of eight waves.

    Args:
        seed: of waves and inputs.
        num_inputs: D.
        frequency: standard deviation of the waves' phase over the inputs.
        noise: standard deviation added to the function, which has 1.
        scale: of the targets in the end.
        num_examples: n, of all splits.
    """
    rng = torch.Generator().manual_seed(seed)
    inputs = (2 * torch.rand(num_examples, num_inputs, generator=rng) - 1) * 3**0.5
    waves = frequency * torch.randn(num_inputs, 8, generator=rng) / num_inputs**0.5
    values = (inputs @ waves + 6 * torch.rand(8, generator=rng)).sin() @ torch.randn(8, 1, generator=rng)
    values = (values - values.mean()) / values.std() + noise * torch.randn(values.shape, generator=rng)
    return _split(f"smooth{seed}", inputs, scale * values, num_classes=0)


@lru_cache(maxsize=64)
def noisy_curve(seed: int, num_examples: int = 5000) -> Dataset:
    """The noise (n, 2) in points of a random closed curve, from the noisy point and waves of the share of noise."""
    rng = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(num_examples, 1, generator=rng)
    points = torch.cat([angle.cos(), angle.sin()], 1) * (1 + 0.5 * ((1 + seed % 4) * angle).sin())
    t, noise = torch.rand(num_examples, 1, generator=rng), torch.randn(num_examples, 2, generator=rng)
    mixed = (t * math.pi / 2).cos() * points + (t * math.pi / 2).sin() * noise
    waves = t * math.pi * torch.arange(1, 5)
    return _split(f"curve{seed}", torch.cat([mixed, waves.cos()], 1), noise, num_classes=0)


def reconstruction(dataset: Dataset) -> Dataset:
    """The inputs of a data set, flattened, as its targets."""
    old = map(dataset.split, SPLIT_NAMES)
    train, val, test = (Split(split.inputs.flatten(1), split.inputs.flatten(1)) for split in old)
    return replace(dataset, name=f"{dataset.name}-itself", train=train, val=val, test=test, num_classes=0)


@lru_cache(maxsize=8)
def digits_images(size: int = 8) -> Dataset:
    """The 8x8 digits, bilinearly enlarged to (1, size, size)."""
    digits = get_dataset("digits")
    if size == 8:
        return standardised(digits)
    enlarged = mapped(digits, inputs=lambda x: F.interpolate(x, size=(size, size), mode="bilinear"))
    return standardised(replace(enlarged, name=f"digits{size}x{size}"))


def label_subset(dataset: Dataset, members: Sequence[int]) -> Dataset:
    """Two classes: whether an example's class is one of `members`."""
    chosen = torch.tensor(sorted(members))
    subset = mapped(dataset, targets=lambda targets: torch.isin(targets, chosen).long())
    return replace(subset, name=f"{dataset.name}-in{''.join(map(str, sorted(members)))}", num_classes=2)


def standardised(dataset: Dataset, scale: float = 1.0) -> Dataset:
    """Inputs shifted and divided by mean and standard deviation of all training inputs together, then scaled."""
    mean, std = dataset.train.inputs.mean(), dataset.train.inputs.std()
    return mapped(dataset, inputs=lambda x: (x - mean) * (scale / std))


def mapped(
    dataset: Dataset,
    *,
    inputs: Callable[[Tensor], Tensor] = lambda x: x,
    targets: Callable[[Tensor], Tensor] = lambda x: x,
) -> Dataset:
    """A data set with functions applied to all inputs and targets, and the hash of what comes out."""
    old = map(dataset.split, SPLIT_NAMES)
    train, val, test = (Split(inputs(split.inputs), targets(split.targets)) for split in old)
    digest = hashlib.sha256()
    for split in (train, val, test):
        for tensor in (split.inputs, split.targets):
            digest.update(tensor.contiguous().numpy().tobytes())
    return replace(dataset, train=train, val=val, test=test, data_hash=f"sha256:{digest.hexdigest()}")


def _split(name: str, inputs: Tensor, targets: Tensor, num_classes: int = NUM_CLASSES) -> Dataset:
    ends = [round(share * len(inputs)) for share in _SHARES]
    parts = zip(inputs.tensor_split(ends), targets.tensor_split(ends), strict=True)
    train, val, test = (Split(x, y) for x, y in parts)
    return standardised(Dataset(name, train, val, test, num_classes, data_hash=""))
