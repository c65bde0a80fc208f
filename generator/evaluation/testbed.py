"""What every evaluation works with: samplers of networks, and the unseen starts and real runs that they are judged by.

A sampler is any callable that makes networks from starts and prompts. The pipeline is one, every baseline is another,
and all go through the same functions.

Legend: B networks asked for, N unseen starts, R runs, S snapshots, P numbers of one network.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import torch
from torch import Tensor

from generator.alignment import measured, prompt_grid
from generator.evaluation.generalization import RealCurves
from generator.pipeline import ParameterPipeline
from generator.training.tasks import task_of
from generator.trajectories import Trajectories, nearest_snapshots
from zoo.ambient import torch_defaults
from zoo.devices import resolve_device
from zoo.storage.zoo import Zoo
from zoo.tasks.task import Task

METRIC: Final = "val_loss"  # prompts are on validation data, reports on test data


class Sampler(Protocol):
    """Makes networks. What a sampler does not need, it ignores."""

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Networks (B, P).

        Args:
            start: (B, P) networks to update.
            prompt: asked values by metric, each (B,).
            rng: of all randomness, on the CPU.
        """
        ...


@dataclass(frozen=True)
class PipelineSampler:
    """A trained pipeline as a sampler.

    Attributes:
        pipeline: to sample from.
        task: that the networks are for; generators that look at what networks compute need it, the others its layout.
        use_start: False to generate from noise although the model knows starts.
        num_inference_steps: denoising steps.
        eta: 0 deterministic, 1 ancestral.
    """

    pipeline: ParameterPipeline
    task: Task
    use_start: bool = True
    num_inference_steps: int = 8
    eta: float = 0.0

    @property
    def uses_start(self) -> bool:
        """Whether networks depend on the start at all."""
        return self.use_start and bool(self.pipeline.model.config["use_start"])

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        num_networks = len(next(iter(prompt.values())))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*outside the range of the training runs")  # asked on purpose
            return self.pipeline(
                start if self.uses_start else None,
                prompt,
                num_samples=num_networks,
                layout=self.task.layout,
                task=self.task,
                num_inference_steps=self.num_inference_steps,
                eta=self.eta,
                generator=rng,
            ).params


@dataclass(frozen=True)
class Testbed:
    """What a generator is evaluated on.

    Attributes:
        task: that the networks are for.
        train: runs that the generator was trained on, the only ones that baselines may use.
        unseen: held-out runs; their initial networks are the starts, their snapshots the real networks.
    """

    __test__ = False  # no test case, whatever its name suggests

    task: Task
    train: Trajectories
    unseen: Trajectories

    def __post_init__(self) -> None:
        for name, runs in (("train", self.train), ("unseen", self.unseen)):
            if METRIC not in runs.metrics:
                raise ValueError(f"{name} must have the metric {METRIC!r}, got {list(runs.metrics)}")
            if runs.layout != self.task.layout:
                raise ValueError(f"{name} runs are of another architecture than the task's; was the zoo built for it?")

    @classmethod
    @torch_defaults()
    def from_zoo(cls, zoo: Zoo, *, max_runs: int | None = None, device: str | torch.device = "cpu") -> Testbed:
        """The task that the zoo records, on a device, its (first) training runs, and its test runs as unseen ones."""
        if METRIC not in zoo.spec.metric_names:
            raise ValueError(
                f"the protocol compares networks by {METRIC}, the zoo records {list(zoo.spec.metric_names)}; prompt "
                "alignment on other metrics is measured by alignment_report, at the end of scripts.train_generator"
            )
        task = task_of(zoo).to(resolve_device(device))
        train = Trajectories.from_zoo(zoo, "train", (METRIC,), max_runs=max_runs)
        unseen = Trajectories.from_zoo(zoo, "test", (METRIC,))
        return cls(task, train, unseen)

    @property
    def floor(self) -> float:
        """Median over training runs of the lowest loss a run reaches: what can fairly be asked for."""
        return self.train.best(METRIC)

    def prompts(self, num_prompts: int) -> Tensor:
        """Prompts (K,), log-spaced from the floor upwards."""
        return prompt_grid(self.train, METRIC, num_prompts=num_prompts)

    def starts(self, num_starts: int) -> Tensor:
        """Initial networks (N, P) of the first unseen runs; fewer if there are not that many."""
        rows = torch.arange(min(num_starts, len(self.unseen)))
        return self.unseen.read(rows, torch.zeros_like(rows))

    def real_at(self, losses: Tensor) -> Tensor:
        """Real networks (N, P): what start i became, at the snapshot whose val loss is nearest to `losses[i]` (N,)."""
        rows = torch.arange(len(losses))
        return self.unseen.read(rows, nearest_snapshots(self.unseen.metrics[METRIC][rows], losses))

    @cached_property
    def real_curves(self) -> RealCurves:
        """Training loss and test accuracy of the unseen runs at all their snapshots."""
        shape = self.unseen.metrics[METRIC].shape
        rows, snapshots = torch.where(torch.arange(shape[1]) < self.unseen.counts[:, None])
        networks = self.unseen.read(rows, snapshots)
        losses, accuracies = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
        losses[rows, snapshots] = measured(self.task, networks, "train")["loss"]
        accuracies[rows, snapshots] = 1 - measured(self.task, networks, "test")["error"]
        return RealCurves(losses, accuracies)

    def val_loss(self, params: Tensor) -> Tensor:
        """Val losses (N,) of networks (N, P), on the CPU."""
        return measured(self.task, params, "val")["loss"]
