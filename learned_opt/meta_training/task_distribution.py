"""Distributions over what a rule is meta-trained on: data, shape, batch size, horizon, scales.

MNIST in any form, MNIST-1D itself, and the seeds from `HELD_OUT_SEED` on are never drawn here, so that an evaluation on
them is one on unseen data. A rule fails where its meta-training was narrow (batch size, number of inputs), so the
default distribution is wide.

Legend: G groups of networks, B examples, P numbers of one network, T horizon in inner steps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import torch
from torch import nn

from learned_opt.meta_training import synthetic_data
from learned_opt.meta_training.task_family import TaskFamily
from learned_opt.meta_training.truncated_step import LogUniformHorizon
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.tasks.dataset import SPLIT_NAMES, Dataset
from zoo.tasks.datasets import get_dataset
from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.task import Task

HELD_OUT_SEED: Final = 1000  # synthetic data sets from this seed on are for validation and evaluation
KINDS: Final = ("mlp", "wide_input", "cnn", "language", "regression", "reconstruction", "denoising")
_CROSS_ENTROPY: Final = OBJECTIVES["cross_entropy"]
_SQUARED_ERROR: Final = OBJECTIVES["squared_error"]
_ACTIVATIONS: Final = ("tanh", "tanh", "silu", "gelu", "relu")  # of networks for real numbers
_REFERENCE_WIDTH: Final = 32  # from this width on, outputs start at 1 / fan_in instead of 1 / sqrt(fan_in), as in µP


@dataclass(frozen=True, kw_only=True)
class TaskDistributionConfig:
    """Ranges of the distribution.

    Args:
        families: weights of "mlp", "wide_input" (MLPs on 128 to 400 inputs), "cnn", "language", and of MLPs for real
            numbers: "regression" (smooth functions, with noise or without), "reconstruction", "denoising".
        horizon: shortest and longest training; expensive tasks get shorter ones, see `max_work`.
        max_work: bound on T x (multiply-adds of a network's step), in millions.
        transformers: (width, blocks) of "language", with equal chances.
        max_language_work: as `max_work`, for "language".
        batch_sizes: drawn with equal chances, except that half of all tasks have 64.
        init_scale, input_scale, param_scale: largest factor up or down, log-uniform; 1 for none.
        jitter_share: share of tasks that each of the three applies to.
    """

    families: dict[str, float]
    horizon: tuple[int, int] = (80, 1600)
    max_work: float = 900.0
    transformers: Sequence[tuple[int, int]] = ((16, 1), (24, 1), (24, 2))
    max_language_work: float = 900.0
    batch_sizes: tuple[int, ...] = (8, 16, 16, 32, 128, 256)
    init_scale: float = 2.0
    input_scale: float = 2.0
    param_scale: float = 2.0
    jitter_share: float = 0.3

    def __post_init__(self) -> None:
        unknown = sorted(set(self.families) - set(KINDS))
        if unknown or not self.families:
            raise ValueError(f"families must name some of {KINDS}, got {sorted(self.families)}")


class TaskDistribution:
    """Draws a family of one task, and its horizon: `distribution(rng)`."""

    def __init__(self, config: TaskDistributionConfig) -> None:
        self.config = config
        self._draws: dict[str, Callable[[torch.Generator, int, float], _Drawn]] = {
            "mlp": _mlp,
            "wide_input": _wide_input,
            "cnn": _cnn,
            "language": partial(_language, config.transformers),
            "regression": _regression,
            "reconstruction": _reconstruction,
            "denoising": _denoising,
        }

    def __call__(self, rng: torch.Generator) -> tuple[TaskFamily, int]:
        config = self.config
        names = list(config.families)
        weights = torch.tensor([config.families[name] for name in names])
        name = names[int(torch.multinomial(weights, 1, generator=rng))]
        batch_size = 64 if _chance(rng, 0.5) else _choice(rng, config.batch_sizes)
        task, batch_size, work = self._draws[name](rng, batch_size, self._jitter(rng, config.input_scale))
        max_work = config.max_language_work if name == "language" else config.max_work
        longest = max(config.horizon[0], min(config.horizon[1], int(max_work * 1e6 / work)))
        num_steps = int(LogUniformHorizon(config.horizon[0], longest).sample(rng, 1))
        family = TaskFamily(
            [task],
            batch_size=batch_size,
            init_scale=self._jitter(rng, config.init_scale),
            param_scale=self._jitter(rng, config.param_scale),
        )
        return family, num_steps

    def _jitter(self, rng: torch.Generator, largest: float) -> float:
        if largest == 1 or not _chance(rng, self.config.jitter_share):
            return 1.0
        return math.exp(_uniform(rng, -math.log(largest), math.log(largest)))


def mlp_task(dataset: Dataset, hidden: Sequence[int], *, init: str = "he") -> Task:
    """Classification by a ReLU network.

    Args:
        dataset: inputs are flattened.
        hidden: width of each hidden layer.
        init: "he" (normal, variance 2 / fan_in; outputs as in µP; no biases) or "torch" (that of nn.Linear).
    """
    old = map(dataset.split, SPLIT_NAMES)
    train, val, test = (replace(split, inputs=split.inputs.flatten(1)) for split in old)
    dataset = replace(dataset, train=train, val=val, test=test)
    num_inputs = dataset.train.inputs.shape[1]

    def build() -> nn.Module:
        model = MLP(num_inputs, hidden, dataset.num_classes)
        return he_normal_(model) if init == "he" else model

    return Task(f"{dataset.name}-{'-'.join(map(str, hidden))}", dataset, build, _CROSS_ENTROPY)


def regression_task(dataset: Dataset, hidden: Sequence[int], activation: str = "tanh") -> Task:
    """Squared error of an MLP as torch initialises it, on real targets (n, K)."""
    num_inputs, num_outputs = dataset.train.inputs.shape[1], dataset.train.targets.shape[1]
    name = f"{dataset.name}-{'-'.join(map(str, hidden))}"
    return Task(name, dataset, lambda: MLP(num_inputs, hidden, num_outputs, activation), _SQUARED_ERROR)


@torch.no_grad()
def he_normal_(model: MLP) -> MLP:
    """Redraw in place: variance 2 / fan_in below, at most 1 / fan_in and 32 / fan_in^2 in the output layer, no bias."""
    *below, last = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    for layer in below:
        nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        nn.init.zeros_(layer.bias)
    width = last.in_features
    nn.init.normal_(last.weight, std=width**-0.5 * min(1.0, (_REFERENCE_WIDTH / width) ** 0.5))
    nn.init.zeros_(last.bias)
    return model


def cnn_task(dataset: Dataset, channels: Sequence[int]) -> Task:
    """Classification of images (C, h, w) by a CNN with BatchNorm."""
    num_channels = dataset.train.inputs.shape[1]
    name = f"{dataset.name}-conv{'-'.join(map(str, channels))}"
    return Task(name, dataset, lambda: CNN(num_channels, channels, dataset.num_classes), _CROSS_ENTROPY)


def language_task(*, width: int, num_blocks: int, context: int, size: int = 1_000_000) -> Task:
    """Next-byte prediction on Python source by a transformer."""
    dataset = get_dataset("python_source", size=size, context=context)

    def build() -> nn.Module:
        return ByteTransformer(dataset.num_classes, context, width, num_blocks)

    return Task(f"python_source-{width}x{num_blocks}", dataset, build, _CROSS_ENTROPY)


def bucket_families() -> list[TaskFamily]:
    """Families whose networks are trained on from one truncation to the next, one for each shape."""
    teacher, patterns = synthetic_data.teacher_student, synthetic_data.placed_patterns
    digits, digits14 = synthetic_data.digits_images(8), synthetic_data.digits_images(14)
    like_digits = [teacher(seed, 64, 6 + 6 * seed, 0.1 * seed, 1796) for seed in range(3)]
    narrow = [teacher(seed, 32, 10, 0.1 * (seed - 3)) for seed in range(3, 6)]
    sequences = [patterns(50 + seed, 0.5) for seed in range(3)]
    return [
        TaskFamily([mlp_task(d, [16]) for d in (digits, *like_digits)], batch_size=64),
        TaskFamily([mlp_task(d, [32, 32]) for d in (digits, *like_digits)], batch_size=32),
        TaskFamily([mlp_task(d, [24, 24]) for d in sequences], batch_size=64, init_scale=0.7),
        TaskFamily([mlp_task(d, [20, 20, 20]) for d in narrow], batch_size=16),
        TaskFamily([mlp_task(digits14, [24])], batch_size=64, init_scale=1.4),
        TaskFamily([mlp_task(digits, [48], init="torch")], batch_size=128),
    ]


def data_hash() -> str:
    """Digest of a sample of each kind of data that meta-training draws; Python's version changes its source."""
    samples = (
        synthetic_data.digits_images(8),
        synthetic_data.digits_images(14),
        synthetic_data.teacher_student(0, 24, 6, 0.0),
        synthetic_data.placed_patterns(50, 0.2),
        get_dataset("python_source", context=32),
        synthetic_data.smooth_function(0, 2, 2.0),
        synthetic_data.noisy_curve(0),
    )
    joined = "".join(dataset.data_hash for dataset in samples)
    return f"sha256:{hashlib.sha256(joined.encode()).hexdigest()}"


_Item = TypeVar("_Item")
_Drawn = tuple[Task, int, float]  # task, batch size, multiply-adds of one network's step


def _mlp(rng: torch.Generator, batch_size: int, input_scale: float) -> _Drawn:
    depth = _choice(rng, (1, 1, 1, 2, 2, 2, 3, 4, 6))
    width = _log_uniform_int(rng, 10, {1: 192, 2: 96}.get(depth, 40))
    return _drawn_mlp(rng, _small_dataset(rng), [width] * depth, batch_size, input_scale)


def _wide_input(rng: torch.Generator, batch_size: int, input_scale: float) -> _Drawn:
    depth = _choice(rng, (1, 1, 2, 2, 3))
    width = _log_uniform_int(rng, 10, 56)
    kind = _choice(rng, (0, 1, 2, 3))
    if kind < 2:
        dataset = synthetic_data.digits_images((14, 20)[kind])
    else:
        num_inputs, num_hidden, noise = ((128, 16, 0.0), (300, 10, 0.2))[kind - 2]
        dataset = synthetic_data.teacher_student(30 + kind, num_inputs, num_hidden, noise)
    return _drawn_mlp(rng, dataset, [width] * depth, batch_size, input_scale)


def _cnn(rng: torch.Generator, batch_size: int, input_scale: float) -> _Drawn:
    channels = _choice(rng, ((8, 16), (8, 16, 16), (12, 24)))
    dataset = synthetic_data.digits_images(_choice(rng, (8, 14)))
    if input_scale != 1:
        dataset = synthetic_data.standardised(dataset, input_scale)
    batch_size = min(batch_size, 64)
    return cnn_task(dataset, channels), batch_size, _CNN_WORK * batch_size


def _language(
    transformers: Sequence[tuple[int, int]], rng: torch.Generator, batch_size: int, input_scale: float
) -> _Drawn:
    width, num_blocks = _choice(rng, transformers)
    task = language_task(width=width, num_blocks=num_blocks, context=32)
    batch_size = min(batch_size, 8)
    return task, batch_size, _LANGUAGE_WORK * batch_size * num_blocks


def _regression(rng: torch.Generator, batch_size: int, input_scale: float) -> _Drawn:
    seed, num_inputs = int(torch.randint(HELD_OUT_SEED, (), generator=rng)), _choice(rng, (1, 2, 2, 4, 8))
    noise = _choice(rng, (0.0, 0.0, 0.0, 0.1, 0.5))
    scale = _choice(rng, (0.3, 1.0, 1.0, 3.0))
    dataset = synthetic_data.smooth_function(seed, num_inputs, _choice(rng, (1.0, 2.0, 4.0)), noise=noise, scale=scale)
    batch_size = _choice(rng, (batch_size, 256, 512))
    return _drawn_regression(rng, dataset, batch_size, input_scale)


def _reconstruction(rng: torch.Generator, batch_size: int, input_scale: float) -> _Drawn:
    dataset = synthetic_data.reconstruction(_small_dataset(rng))
    width, narrow = _log_uniform_int(rng, 16, 64), _log_uniform_int(rng, 4, 16)
    hidden = _choice(rng, ([narrow], [width, narrow, width]))
    return _drawn_regression(rng, dataset, batch_size, input_scale, hidden)


def _denoising(rng: torch.Generator, batch_size: int, input_scale: float) -> _Drawn:
    dataset = synthetic_data.noisy_curve(int(torch.randint(HELD_OUT_SEED, (), generator=rng)))
    return _drawn_regression(rng, dataset, batch_size, input_scale)


def _drawn_regression(
    rng: torch.Generator, dataset: Dataset, batch_size: int, input_scale: float, hidden: Sequence[int] | None = None
) -> _Drawn:
    if input_scale != 1:
        dataset = synthetic_data.standardised(dataset, input_scale)
    hidden = hidden or [_log_uniform_int(rng, 16, 64)] * _choice(rng, (1, 2, 2, 3))
    task = regression_task(dataset, hidden, _choice(rng, _ACTIVATIONS))
    return task, batch_size, task.layout.num_params * (3 * batch_size + _RULE_WORK)


# Cost of an example in units in which an MLP's is 3 P: convolutions and attention on small tensors run far below peak.
_CNN_WORK: Final = 80_000.0
_LANGUAGE_WORK: Final = 350_000.0
_RULE_WORK: Final = 200.0  # multiply-adds per parameter that a rule spends whatever the batch


def _drawn_mlp(
    rng: torch.Generator, dataset: Dataset, hidden: Sequence[int], batch_size: int, input_scale: float
) -> _Drawn:
    if input_scale != 1:
        dataset = synthetic_data.standardised(dataset, input_scale)
    task = mlp_task(dataset, hidden, init="torch" if _chance(rng, 0.25) else "he")
    return task, batch_size, task.layout.num_params * (3 * batch_size + _RULE_WORK)


def _small_dataset(rng: torch.Generator) -> Dataset:
    kind = _choice(rng, ("digits", "subset", "teacher", "teacher", "patterns"))
    if kind == "digits":
        return synthetic_data.digits_images(8)
    if kind == "subset":
        size = 1 + int(torch.randint(5, (), generator=rng))
        return synthetic_data.label_subset(
            synthetic_data.digits_images(8), torch.randperm(10, generator=rng)[:size].tolist()
        )
    seed = int(torch.randint(6, (), generator=rng))
    if kind == "teacher":
        return synthetic_data.teacher_student(
            seed, (24, 32, 48, 64)[seed % 4], (6, 10, 16, 24)[seed % 4], (0.0, 0.1, 0.3)[seed % 3]
        )
    return synthetic_data.placed_patterns(50 + seed, (0.2, 0.5, 1.0)[seed % 3])


def _chance(rng: torch.Generator, probability: float) -> bool:
    return bool(torch.rand((), generator=rng) < probability)


def _choice(rng: torch.Generator, items: Sequence[_Item]) -> _Item:
    return items[int(torch.randint(len(items), (), generator=rng))]


def _uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def _log_uniform_int(rng: torch.Generator, low: int, high: int) -> int:
    return round(math.exp(_uniform(rng, math.log(low), math.log(high))))
