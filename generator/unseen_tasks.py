"""Networks generated for tasks of a family that no training run had: accuracy by task.

Legend: R runs of a split, T task bits.
"""

from __future__ import annotations

import torch

from generator.dataset import Trajectories
from generator.pipeline import ParameterPipeline
from generator.train import GeneratorConfig, task_of
from zoo.store import Zoo

_NUM_INFERENCE_STEPS = 8


def unseen_tasks_report(
    pipe: ParameterPipeline, zoo: Zoo, config: GeneratorConfig, *, split: str = "test", seed: int = 0
) -> dict[str, float]:
    """Test accuracy on the tasks of a held-out split, one network from noise for each of its runs.

    Networks are prompted with the bits of the run's task and the median over training runs of the lowest metric.

    Returns:
        "mean" over tasks, "worst" task, "trained": the mean of the last networks of those runs, "num_tasks".
    """
    metric = config.metric_names[0]
    seen = Trajectories.from_zoo(zoo, "train", (metric,), memory_budget=0)
    held_out = Trajectories.from_zoo(
        zoo, split, (metric,), mask_column=config.task_bits, num_task_bits=config.num_task_bits, memory_budget=0
    )
    task = task_of(zoo).for_runs(held_out.runs.tolist())
    generated = pipe(
        prompt={metric: seen.lowest(metric)},
        task_bits=held_out.task_bits,
        num_samples=len(held_out),
        num_inference_steps=_NUM_INFERENCE_STEPS,
        layout=zoo.layout,
        generator=torch.Generator().manual_seed(seed),
    )
    accuracy = 1 - task.evaluate(generated.params, "test")["error"].cpu()  # (R,)
    _, which = held_out.task_bits.unique(dim=0, return_inverse=True)
    num_tasks = int(which.max()) + 1
    by_task = torch.zeros(num_tasks).index_add_(0, which, accuracy) / torch.bincount(which)
    trained = 1 - torch.from_numpy(zoo.metric("test_error")[held_out.runs.numpy(), -1]).mean()
    return {
        "mean": by_task.mean().item(),
        "worst": by_task.min().item(),
        "trained": trained.item(),
        "num_tasks": float(num_tasks),
    }
