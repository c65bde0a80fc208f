"""What finished optimizers are compared on. No data set here but the digits is drawn in meta-training.

Groups: "main" (usual shapes and horizons), "far" (what meta-training has not shown: inputs, horizon, depth, scales of
initialisation, label noise, batch sizes, width), "stretch" (multiples of the most that meta-training has shown: 5 times
the horizon, 3 times the depth, 16 times the width, hidden matrices 8 times as wide), "conv" and "language".

Legend: T inner steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import torch
from torch.nn import functional as F

from learned_opt.meta_training import synthetic_data
from learned_opt.meta_training.task_distribution import cnn_task, language_task, mlp_task
from learned_opt.meta_training.task_family import TaskFamily
from zoo.tasks.dataset import Dataset
from zoo.tasks.datasets import get_dataset

GROUPS: Final = ("main", "far", "stretch", "conv", "language")
_LABEL_NOISE: Final = 0.2


@dataclass(frozen=True)
class EvaluationTask:
    """Networks of one shape trained for T steps; `seen_data` if meta-training draws the same data set."""

    name: str
    group: str
    family: TaskFamily
    num_steps: int
    seen_data: bool = False


def evaluation_tasks(groups: tuple[str, ...] = GROUPS) -> list[EvaluationTask]:
    """The tasks of these groups.

    Raises:
        ValueError: for an unknown group.
    """
    if unknown := sorted(set(groups) - set(GROUPS)):
        raise ValueError(f"groups must be among {GROUPS}, got {unknown}")
    makers = {"main": _main, "far": _far, "stretch": _stretch, "conv": _conv, "language": _language}
    return [task for group in GROUPS if group in groups for task in makers[group]()]


def _main() -> list[EvaluationTask]:
    digits, mnist = synthetic_data.digits_images(8), _mnist(14)
    mnist1d = synthetic_data.standardised(get_dataset("mnist1d"))
    tasks = [
        _mlp("main", digits, hidden, steps) for hidden, steps in (([16], 400), ([64], 200), ([64], 2000), ([256], 400))
    ]
    tasks = [replace(task, seen_data=True) for task in tasks]
    shapes = (([32], 400), ([64] * 2, 400), ([64] * 2, 2000), ([64] * 6, 400), ([128] * 2, 200))
    tasks += [_mlp("main", mnist, hidden, steps) for hidden, steps in shapes]
    return [*tasks, _mlp("main", mnist1d, [64] * 2, 1000)]


def _far() -> list[EvaluationTask]:
    digits, mnist, mnist28 = synthetic_data.digits_images(8), _mnist(14), _mnist(28)
    mnist1d = synthetic_data.standardised(get_dataset("mnist1d"))
    return [
        _mlp("far", mnist28, [64], 300),
        replace(_mlp("far", digits, [32], 4000), seen_data=True),
        _mlp("far", mnist, [32] * 8, 400),
        _mlp("far", mnist, [32] * 2, 400, init_scale=0.5),
        _mlp("far", mnist, [32] * 2, 400, init_scale=2.0),
        _mlp("far", _noisy_labels(mnist), [32], 600),
        _mlp("far", mnist, [32], 400, batch_size=16),
        _mlp("far", mnist, [32], 400, batch_size=256),
        _mlp("far", mnist1d, [24] * 3, 300),
        replace(_mlp("far", digits, [384], 100), seen_data=True),
        _mlp("far", mnist, [512], 100),
    ]


def _stretch() -> list[EvaluationTask]:
    digits, mnist = synthetic_data.digits_images(8), _mnist(14)
    seen = [_mlp("stretch", digits, [32], 12_000), _mlp("stretch", digits, [3072], 100)]
    unseen = [_mlp("stretch", mnist, [32] * 18, 400), _mlp("stretch", mnist, [768] * 3, 100)]
    return [*(replace(task, seen_data=True) for task in seen), *unseen]


def _conv() -> list[EvaluationTask]:
    family = TaskFamily([cnn_task(_mnist(28), (16, 32, 32))], batch_size=64)
    return [EvaluationTask("mnist28-cnn-T400", "conv", family, 400)]


def _language() -> list[EvaluationTask]:
    task = language_task(width=64, num_blocks=2, context=64, size=2_000_000)
    return [
        EvaluationTask("python_source-64x2-T300", "language", TaskFamily([task], batch_size=16), 300, seen_data=True)
    ]


def _mlp(
    group: str, dataset: Dataset, hidden: list[int], num_steps: int, *, batch_size: int = 64, init_scale: float = 1.0
) -> EvaluationTask:
    shape = f"{hidden[0]}" if len(hidden) == 1 else f"{hidden[0]}x{len(hidden)}"
    name = f"{dataset.name}-{shape}-T{num_steps}"
    name += f"-b{batch_size}" * (batch_size != 64) + f"-init{init_scale:g}" * (init_scale != 1)
    family = TaskFamily([mlp_task(dataset, hidden)], batch_size=batch_size, init_scale=init_scale)
    return EvaluationTask(name, group, family, num_steps)


@lru_cache(maxsize=4)
def _mnist(size: int) -> Dataset:
    """MNIST, 28x28 or averaged down to size x size."""
    dataset = get_dataset("mnist5k")
    if size == 28:
        return replace(synthetic_data.standardised(dataset), name="mnist28")
    smaller = synthetic_data.mapped(dataset, inputs=lambda x: F.adaptive_avg_pool2d(x, size))
    return synthetic_data.standardised(replace(smaller, name=f"mnist{size}"))


def _noisy_labels(dataset: Dataset) -> Dataset:
    """A fifth of the training labels replaced by random ones; validation stays clean."""
    rng = torch.Generator().manual_seed(5)
    targets = dataset.train.targets.clone()
    chosen = torch.rand(len(targets), generator=rng) < _LABEL_NOISE
    targets[chosen] = torch.randint(dataset.num_classes, (int(chosen.sum()),), generator=rng)
    return replace(dataset, name=f"{dataset.name}noisy", train=replace(dataset.train, targets=targets))
