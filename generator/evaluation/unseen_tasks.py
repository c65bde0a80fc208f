"""Networks for tasks of a family that no training run had: accuracy by task, beside regression and retrieval.

Legend: R runs of the held-out tasks, T task bits, P numbers of one network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from generator.evaluation.task_baselines import NearestTask, TaskRidge, TaskSampler
from generator.evaluation.testbed import METRIC
from generator.pipeline import ParameterPipeline
from generator.training.held_out_tasks import with_splits
from generator.training.inputs import task_of
from generator.trajectories import Trajectories
from zoo.storage.zoo import Zoo
from zoo.tasks.task import Task

GENERATOR: Final = "unseen tasks"
_NUM_INFERENCE_STEPS: Final = 8


@dataclass(frozen=True)
class PipelineTaskSampler:
    """A trained pipeline from noise, as a sampler for tasks."""

    pipeline: ParameterPipeline
    zoo: Zoo

    def __call__(self, task_bits: Tensor, asked: Tensor, rng: torch.Generator) -> Tensor:
        return self.pipeline(
            prompt={METRIC: asked},
            task_bits=task_bits,
            num_samples=len(task_bits),
            num_inference_steps=_NUM_INFERENCE_STEPS,
            layout=self.zoo.layout,
            generator=rng,
        ).params.cpu()


def unseen_tasks_report(pipe: ParameterPipeline, zoo: Zoo, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Test accuracy on the tasks that the pipeline's training held out, one network for each of their runs.

    Everyone is asked for the median over training runs of the lowest val loss.

    Returns:
        By "unseen tasks" (the pipeline), "matched ridge", "retrieval" and "held-out runs" (their last snapshots):
        "mean" over tasks and "worst" task of the accuracy, mean "norm" of the networks, "num_tasks".

    Raises:
        ValueError: if the pipeline was not trained on a family of tasks.
    """
    column = pipe.config["task_bits_column"]
    if column is None:
        raise ValueError("the pipeline was not trained on a family of tasks (generator.task_bits)")
    zoo = with_splits(zoo, pipe.splits)
    num_bits = pipe.model.config["num_task_bits"]
    train, held_out = (
        Trajectories.from_zoo(zoo, split, (METRIC,), mask_column=column, num_task_bits=num_bits)
        for split in ("train", "test")
    )
    task = task_of(zoo).for_runs(held_out.runs.tolist())
    floor = train.best(METRIC)
    asked = torch.full((len(held_out),), floor)
    samplers: dict[str, TaskSampler] = {
        GENERATOR: PipelineTaskSampler(pipe, zoo),
        "matched ridge": TaskRidge(train, floor),
        "retrieval": NearestTask(train),
        "held-out runs": lambda *_: held_out.read(torch.arange(len(held_out)), held_out.counts - 1),
    }
    return {
        name: task_figures(task, sample(held_out.task_bits, asked, torch.Generator().manual_seed(seed)), held_out)
        for name, sample in samplers.items()
    }


def task_figures(task: Task, networks: Tensor, runs: Trajectories) -> dict[str, float]:
    """Figures of one network (R, P) for each run: accuracy by task, norm."""
    accuracy = 1 - task.evaluate(networks, "test")["error"].cpu()  # (R,)
    _, which = runs.task_bits.unique(dim=0, return_inverse=True)
    num_tasks = int(which.max()) + 1
    by_task = torch.zeros(num_tasks).index_add_(0, which, accuracy) / torch.bincount(which)
    return {
        "mean": by_task.mean().item(),
        "worst": by_task.min().item(),
        "norm": networks.norm(dim=1).mean().item(),
        "num_tasks": float(num_tasks),
    }
