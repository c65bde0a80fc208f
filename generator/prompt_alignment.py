"""Prompt alignment: do generated networks have the loss that was asked for, on starts the generator never saw?

Legend: N starts, K prompts, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from generator.dataset import Trajectories
from zoo.metrics import r2_log, spearman
from zoo.tasks import Task

HIGHEST_LOSS: Final = 2.2  # nats; just below what an untrained classifier of ten classes has


@dataclass(frozen=True)
class Alignment:
    """Prompted against achieved values.

    Attributes:
        prompts: (K,) prompted values of the metric, ascending.
        val, test: {"loss": (N, K), "error": (N, K)} of the generated networks on two splits.
        metric: "loss" or "error".
    """

    prompts: Tensor
    val: dict[str, Tensor]
    test: dict[str, Tensor]
    metric: str = "loss"

    @property
    def r2_log(self) -> float:
        """R^2 of log achieved val values against the identity."""
        return r2_log(self.val[self.metric], self.prompts).item()

    @property
    def test_r2_log(self) -> float:
        return r2_log(self.test[self.metric], self.prompts).item()

    @property
    def spearman(self) -> float:
        achieved = self.val[self.metric]
        return spearman(achieved, self.prompts.expand_as(achieved)).item()

    @property
    def lowest_accuracy(self) -> float:
        """Mean test accuracy at the lowest prompt."""
        return 1 - self.test["error"][:, 0].mean().item()


def prompt_grid(trajectories: Trajectories, metric: str = "val_loss", *, num_prompts: int = 16) -> Tensor:
    """Prompts (K,), log-spaced from the median over runs of the lowest value a run reaches, to HIGHEST_LOSS.

    Losses floor far above zero on validation data: lower prompts would ask for what no run has.
    """
    low = torch.tensor(trajectories.lowest(metric))
    return torch.logspace(low.log10().item(), torch.tensor(HIGHEST_LOSS).log10().item(), num_prompts)


def measure_alignment(
    generate: Callable[[Tensor, Tensor], Tensor], task: Task, starts: Tensor, prompts: Tensor, *, metric: str = "loss"
) -> Alignment:
    """Alignment of a generator on all pairs of starts and prompts.

    Args:
        generate: (M, P) starts and (M,) prompts -> (M, P) networks.
        task: that the metric belongs to.
        starts: (N, P).
        prompts: (K,).
        metric: "loss" or "error".
    """
    return alignment_of(
        generate(starts.repeat_interleave(len(prompts), dim=0), prompts.repeat(len(starts))),
        task,
        prompts,
        metric=metric,
    )


def alignment_of(networks: Tensor, task: Task, prompts: Tensor, *, metric: str = "loss") -> Alignment:
    """Alignment of networks (N * K, P), which answer the K prompts for each of N starts in turn."""
    val, test = (
        {name: values.view(-1, len(prompts)).cpu() for name, values in task.evaluate(networks, split).items()}
        for split in ("val", "test")
    )
    return Alignment(prompts.cpu(), val, test, metric)
