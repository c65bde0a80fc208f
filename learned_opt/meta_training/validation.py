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
from learned_opt.meta_training.objective import Objective
from learned_opt.meta_training.task_problem import TaskProblem
from learned_opt.meta_training.tasks import HELD_OUT_SEED, cnn_task, language_task, mlp_task
from learned_opt.meta_training.truncated_step import InnerProblem, TruncatedStep
from learned_opt.meta_training.truncation import LogUniformHorizon
from learned_opt.rules.rule import UpdateRule

_SEED: Final = 20_000


@dataclass(frozen=True)
class Validation:
    """Mean meta-loss of a theta over problems, always with the same initialisations and minibatches.

    Args:
        rule: the learned update rule.
        problems: each with its horizon.
        objective: meta-loss (N,) of capped losses (T, N) and a function that evaluates the final networks.
        num_seeds: networks of each problem.
    """

    rule: UpdateRule
    problems: Sequence[tuple[InnerProblem, int]]
    objective: Objective
    num_seeds: int = 2

    def __call__(self, theta: Tensor) -> float:
        return float(self.by_problem(theta.detach()).mean())

    @torch.no_grad()
    def by_problem(self, theta: Tensor) -> Tensor:
        """Meta-loss of each problem, averaged over seeds."""
        return torch.stack([self._meta_loss(theta, problem, steps) for problem, steps in self.problems])

    def _meta_loss(self, theta: Tensor, problem: InnerProblem, num_steps: int) -> Tensor:
        rng = torch.Generator().manual_seed(_SEED)
        horizon = LogUniformHorizon(num_steps, num_steps)
        unroll = TruncatedStep(self.rule, problem, horizon, num_groups=self.num_seeds, num_copies=1)
        state = unroll.start(rng)
        losses = unroll.advance(theta, state, num_steps, rng).losses

        return self.objective(losses, lambda: unroll.evaluate(state)).mean()


def validation_problems() -> list[tuple[TaskProblem, int]]:
    """Nine problems: unseen teachers and patterns, other widths and batches, a CNN, a language model."""
    teacher, patterns = synthetic_data.teacher_student, synthetic_data.placed_patterns
    seed = HELD_OUT_SEED
    digits14 = synthetic_data.digits_images(14)
    subset = synthetic_data.label_subset(synthetic_data.digits_images(8), [1, 4, 6, 8])
    return [
        (TaskProblem([mlp_task(teacher(seed, 40, 12, 0.1), [32, 32])], batch_size=16), 500),
        (TaskProblem([mlp_task(teacher(seed + 1, 196, 12, 0.1), [40])], batch_size=64), 300),
        (TaskProblem([mlp_task(teacher(seed + 2, 48, 16, 0.3), [24] * 6)], batch_size=64), 300),
        (TaskProblem([mlp_task(patterns(seed + 3, 0.7), [64, 64], init="torch")], batch_size=64), 400),
        (TaskProblem([mlp_task(digits14, [32, 32])], batch_size=64), 300),
        (TaskProblem([mlp_task(subset, [96])], batch_size=128), 150),
        (TaskProblem([mlp_task(digits14, [48])], batch_size=32, init_scale=2.0), 800),
        (TaskProblem([cnn_task(digits14, (8, 16, 24))], batch_size=32), 150),
        (TaskProblem([language_task(width=24, num_blocks=2, context=32)], batch_size=8), 120),
    ]
