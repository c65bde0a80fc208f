"""Prompt alignment: do generated networks have the loss or return that was asked for, on starts never seen?

Legend: N starts, K prompts, P numbers of one network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from generator.prompts.prompt import is_lower_better, log_floor
from generator.trajectories import Trajectories
from zoo.ambient import torch_defaults
from zoo.networks.metrics import r2, r2_log, spearman
from zoo.tasks.task import Task

HIGHEST_LOSS: Final = 2.2  # nats; just below what an untrained classifier of ten classes has


@dataclass(frozen=True)
class Alignment:
    """Prompted against achieved values.

    Attributes:
        prompts: (K,) prompted values of the metric, the best first.
        val, test: {"loss": (N, K), "error": (N, K)} of the generated networks on two splits, or what the task measures.
        metric: one of these names.
    """

    prompts: Tensor
    val: dict[str, Tensor]
    test: dict[str, Tensor]
    metric: str = "loss"

    @property
    def r2(self) -> float:
        """R^2 of achieved val values against the identity, of their logarithms if the metric is a loss or an error."""
        return self.r2_log if is_lower_better(self.metric) else r2(self.val[self.metric], self.prompts).item()

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

    def at(self, chosen: slice) -> Alignment:
        """The alignment at some of the prompts."""
        val, test = ({name: values[:, chosen] for name, values in split.items()} for split in (self.val, self.test))
        return Alignment(self.prompts[chosen], val, test, self.metric)


@torch_defaults()
def prompt_grid(trajectories: Trajectories, metric: str = "val_loss", *, num_prompts: int = 16) -> Tensor:
    """Prompts (K,) from the median over runs of the best value a run reaches, to what initial networks have.

    Losses and errors are log-spaced, losses up to HIGHEST_LOSS at most; returns are spaced evenly. Losses floor far
    above zero on validation data: lower prompts would ask for what no run has.
    """
    best, worst = trajectories.best(metric), trajectories.metrics[metric][:, 0].nanmedian().item()
    if not is_lower_better(metric):
        return torch.linspace(best, worst, num_prompts)
    worst = min(worst, HIGHEST_LOSS) if metric.endswith("loss") else worst
    return torch.logspace(math.log10(max(best, log_floor(metric))), math.log10(worst), num_prompts)


def measure_alignment(
    generate: Callable[[Tensor, Tensor], Tensor], task: Task, starts: Tensor, prompts: Tensor, *, metric: str = "loss"
) -> Alignment:
    """Alignment of a generator on all pairs of starts and prompts.

    Args:
        generate: (M, P) starts and (M,) prompts -> (M, P) networks.
        task: that the metric belongs to.
        starts: (N, P).
        prompts: (K,).
        metric: what the prompts are of, a name that `task.evaluate` gives.
    """
    return alignment_of(
        generate(starts.repeat_interleave(len(prompts), dim=0), prompts.repeat(len(starts))),
        task,
        prompts,
        metric=metric,
    )


def measured(task: Task, networks: Tensor, split: str) -> dict[str, Tensor]:
    """What the task measures of networks (N, P) on a split, each (N,) on the CPU, wherever networks and task are."""
    return {name: values.cpu() for name, values in task.evaluate(networks.to(task.device), split).items()}


def alignment_of(networks: Tensor, task: Task, prompts: Tensor, *, metric: str = "loss") -> Alignment:
    """Alignment of networks (N * K, P), which answer the K prompts for each of N starts in turn."""
    val, test = (
        {name: values.view(-1, len(prompts)) for name, values in measured(task, networks, split).items()}
        for split in ("val", "test")
    )
    return Alignment(prompts.cpu(), val, test, metric)
