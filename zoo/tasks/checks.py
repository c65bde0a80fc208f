"""Whether data and objective fit together: asked once, when a task is made.

Legend: n examples, B of them, K outputs.
"""

from __future__ import annotations

from dataclasses import is_dataclass

import torch
from torch import Tensor

from zoo.tasks.dataset import SPLIT_NAMES, Dataset
from zoo.tasks.objectives import ChecksTargets, Objective


def check_splits(dataset: Dataset) -> None:
    """Raise ValueError unless all splits have finite examples of one shape and kind, that can be augmented as asked."""
    for name in SPLIT_NAMES:
        split = dataset.split(name)
        if not all(isinstance(values, Tensor) and not values.requires_grad for values in (split.inputs, split.targets)):
            raise ValueError(
                f"{name} split of {dataset.name!r}: expected inputs and targets to be tensors without gradients; use "
                "torch.from_numpy(...) or .detach()"
            )
        if len(split.inputs) != len(split.targets) or not len(split):
            raise ValueError(
                f"{name} split of {dataset.name!r}: expected one example or more with one target each, got "
                f"{len(split.inputs)} inputs and {len(split.targets)} targets"
            )
        for kind, values, wanted in (
            ("inputs", split.inputs, dataset.train.inputs),
            ("targets", split.targets, dataset.train.targets),
        ):
            if values.shape[1:] != wanted.shape[1:] or values.dtype != wanted.dtype:
                raise ValueError(
                    f"{name} split of {dataset.name!r}: expected {kind} as in the train split, "
                    f"{described(wanted)}, got {described(values)}"
                )
            num_bad = sum(int((~part.isfinite()).sum()) for part in values.split(4096))  # what is mapped stays on disk
            if num_bad:
                raise ValueError(
                    f"{name} split of {dataset.name!r}: expected finite {kind}, got {num_bad:,} of {values.numel():,} "
                    "values NaN or infinite; fill them in, or leave those examples out"
                )
    for augmentation in dataset.augmentations:
        if not is_dataclass(augmentation):
            raise ValueError(f"augmentations must be dataclasses, whose fields are recorded, got {augmentation!r}")
        augmentation.check(dataset.train.inputs, dataset.train.targets)


def check_fit(objective: Objective, outputs: Tensor, targets: Tensor, num_classes: int) -> None:
    """Raise ValueError unless an objective can score outputs (B, ..., K) of one network on targets (n, ...).

    Of an objective that checks nothing itself, the loss of these examples must be the mean of their own losses, as
    evaluation in parts assumes; it is not where outputs and targets are broadcast against each other.
    """
    if isinstance(objective, ChecksTargets):
        objective.check_targets(outputs, targets, num_classes)
        return
    count = min(len(outputs), len(targets))
    outputs, targets = outputs[:count], targets[:count]
    whole = objective.loss(outputs[None], targets)
    if whole.shape != (1,):
        raise ValueError(f"objective {objective.name!r}: expected losses (N,), got {tuple(whole.shape)} for N = 1")
    pairs = zip(outputs.split(1), targets.split(1), strict=True)
    mean = torch.cat([objective.loss(output[None], target) for output, target in pairs]).mean()
    if not torch.allclose(whole, mean, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"objective {objective.name!r}: expected the mean of the losses of single examples, {mean:.6g}, got "
            f"{whole.item():.6g} for {count} together; are outputs {tuple(outputs.shape)} and targets "
            f"{tuple(targets.shape)} broadcast against each other?"
        )


def described(values: Tensor) -> str:
    """Dtype and shape of examples in words, such as "float32 (n, 8, 8)"."""
    return f"{str(values.dtype).removeprefix('torch.')} {('n', *values.shape[1:])}".replace("'n'", "n")
