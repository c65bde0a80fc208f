"""Prompt alignment of a trained pipeline on initial networks that no run of the zoo began with.

Legend: N starts, K prompts, P numbers of one network.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from generator.alignment import Alignment, alignment_of, prompt_grid
from generator.evaluation.testbed import PipelineSampler
from generator.evaluation.unseen_tasks import unseen_tasks_report
from generator.pipeline import ParameterPipeline
from generator.prompts.prompt import ALIASES, is_lower_better
from generator.training.config import GeneratorConfig
from generator.training.tasks import task_of, with_splits
from generator.trajectories import Trajectories
from zoo.networks.metrics import r2
from zoo.storage.zoo import Zoo
from zoo.tasks.task import Task

_START_SEED: Final = 2**40  # far from the seeds of zoos


def alignment_report(
    pipe: ParameterPipeline, zoo: Zoo, config: GeneratorConfig, *, num_starts: int = 128
) -> dict[str, dict[str, float]]:
    """Figures of one update from unseen starts ("start") and of networks from noise ("noise").

    Prompts are on validation data, from the median over training runs of the best value a run reaches; test figures
    stand beside. "finals" is the test accuracy, or return, of the last networks of held-out runs. A generator of a task
    family is measured on unseen tasks instead, see `unseen_tasks_report`. Empty where nothing can be measured: without
    prompts, without a task (imported checkpoints), without initial networks.
    """
    if config.num_task_bits or config.pairs.num_examples is not None:
        return unseen_tasks_report(pipe, zoo) if num_starts else {}
    zoo = with_splits(zoo, pipe.splits)
    metric = next((name for name in ALIASES.values() if name in config.metric_names), None)
    if metric is None or not num_starts or not zoo.task_config:
        return {}
    runs = Trajectories.from_zoo(zoo, "train", (metric,), min_snapshots=1, memory_budget=0)
    if not runs.has_updates:
        return {}
    prompts = prompt_grid(runs, metric)
    reported = "test_error" if is_lower_better(metric) else metric.replace("val_", "test_")
    finals = {}
    if len(held_out := zoo.split("test")) and reported in zoo.spec.metric_names:
        mean = zoo.metric(reported)[held_out, -1].mean().item()
        finals = {"finals": 1 - mean if is_lower_better(metric) else mean}
    report = {}
    for mode in config.pairs.modes:
        (alignment,) = unseen_alignments(
            pipe,
            task_of(zoo).to(pipe.device),
            prompts,
            use_start=mode == "start",
            metric=metric,
            num_starts=num_starts,
        )
        report[mode] = alignment_figures(alignment) | finals
    return report


def unseen_alignments(
    pipe: ParameterPipeline,
    task: Task,
    prompts: Tensor,
    *,
    use_start: bool = True,
    metric: str = "val_loss",
    num_starts: int = 128,
    num_updates: int = 1,
    num_inference_steps: int = 8,
) -> list[Alignment]:
    """Alignment after each update of random initial networks of a task, whatever its architecture.

    Args:
        pipe: trained, on this architecture or on others.
        task: that the networks are for.
        prompts: (K,).
        use_start: False for networks from noise, which are not updated again.
        metric: one of the prompt's ALIASES, "val_loss" for instance.
        num_starts: N.
        num_updates: how often networks are fed back with the same prompt.
        num_inference_steps: denoising steps of each update.
    """
    sample = PipelineSampler(pipe, task, use_start, num_inference_steps)
    networks = task.init(torch.Generator().manual_seed(_START_SEED), num_starts).repeat_interleave(len(prompts), dim=0)
    rng = torch.Generator().manual_seed(0)
    results = []
    for _ in range(num_updates if use_start else 1):
        networks = sample(networks, {metric: prompts.repeat(num_starts)}, rng)
        results.append(alignment_of(networks, task, prompts, metric=metric.removeprefix("val_")))
    return results


def alignment_figures(alignment: Alignment) -> dict[str, float]:
    """The figures of an alignment that tables show."""
    if not is_lower_better(alignment.metric):
        val, test = alignment.val[alignment.metric], alignment.test[alignment.metric]
        return {
            "spearman": alignment.spearman,
            "r2": alignment.r2,
            "test_r2": r2(test, alignment.prompts).item(),
            "best_prompt": alignment.prompts[0].item(),
            "best_achieved": val[:, 0].mean().item(),
            f"test_{alignment.metric}": test[:, 0].mean().item(),
        }
    return {
        "spearman": alignment.spearman,
        "r2_log": alignment.r2_log,
        "test_r2_log": alignment.test_r2_log,
        "lowest_prompt": alignment.prompts[0].item(),
        "lowest_achieved": alignment.val[alignment.metric][:, 0].log().mean().exp().item(),
        "accuracy": alignment.lowest_accuracy,
    }
