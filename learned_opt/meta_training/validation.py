"""Tasks on which meta-parameters are selected: neither trained on nor evaluated on.

Legend: N networks, T horizon in inner steps, M meta-parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from learned_opt.meta_training import synthetic_data
from learned_opt.meta_training.estimators import whole_unroll
from learned_opt.meta_training.objective import Objective
from learned_opt.meta_training.task_distribution import (
    HELD_OUT_SEED,
    cnn_task,
    language_task,
    mlp_task,
    regression_task,
)
from learned_opt.meta_training.task_family import TaskFamily
from learned_opt.meta_training.truncated_step import LogUniformHorizon, TruncatedStep
from learned_opt.rules.rule import UpdateRule

_SEED: Final = 20_000


@dataclass(frozen=True)
class Validation:
    """Mean meta-loss of a theta over tasks, always with the same initialisations and minibatches.

    Args:
        rule: the learned update rule.
        tasks: each with its horizon.
        objective: meta-loss (N,) of capped losses (T, N) and a function that evaluates the final networks.
        num_seeds: networks of each task.
    """

    rule: UpdateRule
    tasks: Sequence[tuple[TaskFamily, int]]
    objective: Objective
    num_seeds: int = 2

    def __call__(self, theta: Tensor) -> float:
        return float(self.by_task(theta.detach()).mean())

    @torch.no_grad()
    def by_task(self, theta: Tensor) -> Tensor:
        """Meta-loss of each task, averaged over seeds."""
        meta_losses = []
        for family, num_steps in self.tasks:
            rng, horizon = torch.Generator().manual_seed(_SEED), LogUniformHorizon(num_steps, num_steps)
            step = TruncatedStep(self.rule, family, horizon, num_groups=self.num_seeds, num_copies=1)
            meta_losses.append(whole_unroll(step, theta, num_steps, self.objective, rng).mean())
        return torch.stack(meta_losses)


def validation_tasks() -> list[tuple[TaskFamily, int]]:
    """Unseen teachers and patterns, other widths and batches, a CNN, a language model, and four with real targets."""
    teacher, patterns = synthetic_data.teacher_student, synthetic_data.placed_patterns
    smooth, itself = synthetic_data.smooth_function, synthetic_data.reconstruction
    seed = HELD_OUT_SEED
    digits14 = synthetic_data.digits_images(14)
    subset = synthetic_data.label_subset(synthetic_data.digits_images(8), [1, 4, 6, 8])
    return [
        (TaskFamily([mlp_task(teacher(seed, 40, 12, 0.1), [32, 32])], batch_size=16), 500),
        (TaskFamily([mlp_task(teacher(seed + 1, 196, 12, 0.1), [40])], batch_size=64), 300),
        (TaskFamily([mlp_task(teacher(seed + 2, 48, 16, 0.3), [24] * 6)], batch_size=64), 300),
        (TaskFamily([mlp_task(patterns(seed + 3, 0.7), [64, 64], init="torch")], batch_size=64), 400),
        (TaskFamily([mlp_task(digits14, [32, 32])], batch_size=64), 300),
        (TaskFamily([mlp_task(subset, [96])], batch_size=128), 150),
        (TaskFamily([mlp_task(digits14, [48])], batch_size=32, init_scale=2.0), 800),
        (TaskFamily([cnn_task(digits14, (8, 16, 24))], batch_size=32), 150),
        (TaskFamily([language_task(width=24, num_blocks=2, context=32)], batch_size=8), 120),
        (TaskFamily([regression_task(smooth(seed, 2, 2.0), [48, 48])], batch_size=256), 600),
        (TaskFamily([regression_task(smooth(seed + 1, 4, 2.0, noise=0.2), [32, 32], "gelu")], batch_size=64), 400),
        (TaskFamily([regression_task(itself(teacher(seed, 40, 12, 0.1)), [32, 8, 32], "relu")], batch_size=32), 500),
        (TaskFamily([regression_task(synthetic_data.noisy_curve(seed), [48, 48], "silu")], batch_size=128), 800),
    ]
