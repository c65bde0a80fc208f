"""Networks for tasks of a family that no training run had: accuracy by task, beside the tasks' own runs.

Legend: R runs of the held-out tasks, T task bits, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import torch
from torch import Tensor

from generator.alignment import measured
from generator.evaluation.testbed import METRIC
from generator.pipeline import ParameterPipeline
from generator.prompts.prompt import EXAMPLES, TASK_BITS
from generator.training.tasks import task_of, with_splits
from generator.trajectories import Trajectories
from zoo.ambient import torch_defaults
from zoo.storage.zoo import Zoo
from zoo.tasks.task import Task

GENERATOR: Final = "unseen tasks"
NUM_EXAMPLES: Final = 64
_NUM_INFERENCE_STEPS: Final = 8


class TaskSampler(Protocol):
    """Makes networks for tasks."""

    def __call__(self, task_bits: Tensor, asked: Tensor, rng: torch.Generator) -> Tensor:
        """Networks (B, P) for task bits (B, T) and val losses (B,)."""
        ...


@torch_defaults()
def unseen_tasks_report(
    pipe: ParameterPipeline,
    zoo: Zoo,
    *,
    rivals: Callable[[Trajectories], Mapping[str, TaskSampler]] = lambda train: {},
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Test accuracy on the tasks that the pipeline's training held out, one network for each of their runs.

    Tasks are told by their bits, and everyone is asked for the median over training runs of the lowest val loss; or by
    64 training examples of each, which ask for the best there is.

    Args:
        pipe: trained on a family of tasks.
        zoo: that it was trained on.
        rivals: makes further samplers by name from the training runs.
        seed: of the noise.

    Returns:
        By "unseen tasks" (the pipeline), rival, and "held-out runs" (their last snapshots): "mean" over tasks and
        "worst" task of the accuracy, mean "norm" of the networks, "num_tasks".

    Raises:
        ValueError: if the pipeline was not trained on a family of tasks.
    """
    column = pipe.config["task_bits_column"]
    if column is None and pipe.model.example_kind is None:
        raise ValueError("the pipeline was not trained on a family of tasks (generator.task_bits, or examples)")
    zoo = with_splits(zoo, pipe.splits)
    num_bits = pipe.model.config["num_task_bits"]
    train, held_out = (
        Trajectories.from_zoo(zoo, split, (METRIC,), mask_column=column, num_task_bits=num_bits)
        for split in ("train", "test")
    )
    task = task_of(zoo).to(pipe.device).for_runs(held_out.runs.tolist())

    def generated(task_bits: Tensor, asked: Tensor, rng: torch.Generator) -> Tensor:
        by_bits = {METRIC: asked, TASK_BITS: task_bits}
        return pipe(
            prompt={EXAMPLES: shown_examples(task, len(asked), rng)} if column is None else by_bits,
            num_samples=len(asked),
            task=None if column else task,
            num_inference_steps=_NUM_INFERENCE_STEPS,
            layout=zoo.layout,
            generator=rng,
        ).params

    samplers: dict[str, TaskSampler] = {
        GENERATOR: generated,
        **rivals(train),
        "held-out runs": lambda *_: held_out.read(torch.arange(len(held_out)), held_out.counts - 1),
    }
    asked = torch.full((len(held_out),), train.best(METRIC))
    if column is None:
        which = torch.from_numpy(zoo.runs[zoo.spec.splits.key])[held_out.runs].unique(return_inverse=True)[1]
    else:
        which = held_out.task_bits.unique(dim=0, return_inverse=True)[1]
    return {
        name: task_figures(task, sample(held_out.task_bits, asked, torch.Generator().manual_seed(seed)), which)
        for name, sample in samplers.items()
    }


def shown_examples(task: Task, num_runs: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets (R, E, ...) of different training examples of each of R runs' tasks, for a prompt."""
    size = len(task.dataset.train)
    indices = torch.stack([torch.randperm(size, generator=rng)[:NUM_EXAMPLES] for _ in range(num_runs)])
    inputs, targets, _ = task.batch(indices.to(task.device), num_runs)
    return inputs, targets


def task_figures(task: Task, networks: Tensor, which: Tensor) -> dict[str, float]:
    """Figures of one network (R, P) for each run, of tasks `which` (R,): accuracy by task, norm."""
    accuracy = 1 - measured(task, networks, "test")["error"]  # (R,)
    num_tasks = int(which.max()) + 1
    by_task = torch.zeros(num_tasks).index_add_(0, which, accuracy) / torch.bincount(which)
    return {
        "mean": by_task.mean().item(),
        "worst": by_task.min().item(),
        "norm": networks.norm(dim=1).mean().item(),
        "num_tasks": float(num_tasks),
    }
