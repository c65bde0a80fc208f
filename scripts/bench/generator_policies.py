"""Do generated policies have the return that was asked for, and do they differ as real ones do?

    python -m scripts.bench.generator_policies PIPELINE ZOO [--num-starts 64] [--record]

Starts are initial networks of the zoo's test runs, prompts returns on its validation episodes, evenly spaced from what
runs reach in the end to what initial networks have. Two tables. Alignment: R² and rank correlation of the
return with the prompt, mean absolute error, test return at the highest prompt. Diversity, at the highest prompt and
near half of it: share of the updates' energy common to all starts, mean distance of two policies, of two policies'
outputs (RMS of log-probabilities, nats, in random states), and matched distance to the nearest policy of the training
runs. "real" is what the same starts became in the zoo, at the snapshot nearest to the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from generator import ParameterPipeline, prompt_grid
from generator.alignment import alignment_of
from generator.evaluation.baselines import MatchedAverage, MeanDelta, NoisyCopy, networks_at
from generator.evaluation.neighbours import nearest
from generator.evaluation.testbed import PipelineSampler, Sampler
from generator.training.tasks import task_of
from generator.trajectories import Trajectories
from zoo import Task, Zoo
from zoo.networks.metrics import euclidean_distances, log_prob_distance, mean_delta_share, mean_over_pairs

from ..rows import Row
from .command import bench
from .generator_table import PACKAGES

METRIC = "val_return"
NUM_PROMPTS = 16
NUM_STATES = 512


def rows(pipeline: str, zoo: str, *, num_starts: int = 64) -> Iterator[Row]:
    """Both tables.

    Args:
        pipeline: folder of a pipeline
        zoo: that it was trained on
    """
    opened = Zoo.open(zoo)
    pipe, task = ParameterPipeline.from_pretrained(pipeline), task_of(opened)
    train, unseen = (Trajectories.from_zoo(opened, split, (METRIC,)) for split in ("train", "test"))
    runs = torch.arange(min(num_starts, len(unseen)))
    starts = unseen.read(runs, torch.zeros_like(runs))
    prompts = prompt_grid(train, METRIC, num_prompts=NUM_PROMPTS)
    asked = prompts.repeat(len(starts))
    generators = {
        f"generator, {mode}": PipelineSampler(pipe, task, use_start=mode == "start") for mode in ("start", "noise")
    }
    samplers = {
        **generators,
        "start + mean update": MeanDelta(train, METRIC),
        "matched average of 4": MatchedAverage(train, 4, METRIC),
        "copy of a training run": NoisyCopy(train, 0.0, METRIC),
    }
    networks = {name: sample(sampler, starts, asked) for name, sampler in samplers.items()}
    again = sample(generators["generator, start"], networks["generator, start"], asked)
    networks = {"generator, start": networks.pop("generator, start"), "the same, fed back": again, **networks}
    networks["real"] = networks_at(unseen, runs.repeat_interleave(len(prompts)), asked, METRIC)
    for name, some in networks.items():
        yield alignment_row(name, some, task, prompts)
    yield from diversity_rows(networks, starts, prompts, task, train)


def sample(sampler: Sampler, starts: Tensor, asked: Tensor) -> Tensor:
    """Networks (N * K, P), for starts (N, P) or (N * K, P) and N * K prompts."""
    repeated = starts.repeat_interleave(len(asked) // len(starts), dim=0)
    return sampler(repeated, {METRIC: asked}, torch.Generator().manual_seed(0))


def alignment_row(name: str, networks: Tensor, task: Task, prompts: Tensor) -> Row:
    alignment = alignment_of(networks, task, prompts, metric="return")
    error = (alignment.val["return"] - prompts).abs().mean()
    best = alignment.test["return"][:, 0].mean()
    return Row(
        question="What do other ways of making policies give?",
        setting={"policies": name},
        figures={
            "R²": float(alignment.r2),
            "Spearman": float(alignment.spearman),
            "mean error": error.item(),
            "test return at the highest prompt": best.item(),
        },
        note="Initial policies of test runs; real: what these became at the snapshot nearest to the prompt.",
    )


def diversity_rows(
    networks: dict[str, Tensor], starts: Tensor, prompts: Tensor, task: Task, train: Trajectories
) -> Iterator[Row]:
    states = task.draw_examples(NUM_STATES, torch.Generator().manual_seed(0)).inputs
    seen = train.read(
        *(index.flatten() for index in torch.meshgrid(*map(torch.arange, train.metrics[METRIC].shape), indexing="ij"))
    )
    half = int((prompts - prompts[0] / 2).abs().argmin())
    for k in (0, half):
        for name, grid in networks.items():
            some = grid.view(len(starts), len(prompts), -1)[:, k]
            log_probs = task.predict(some, states).log_softmax(-1)
            yield Row(
                question="Do generated policies differ as real ones do?",
                setting={"policies": name, "prompt": round(prompts[k].item())},
                figures={
                    "common share": float(mean_delta_share(some - starts)),
                    "distance of two": float(mean_over_pairs(euclidean_distances(some))),
                    "outputs of two, nats": float(mean_over_pairs(log_prob_distance(log_probs))),
                    "nearest training policy": nearest(task.layout, some, seen, num_candidates=128)
                    .distances.mean()
                    .item(),
                },
            )


if __name__ == "__main__":
    bench("generator", rows, packages=PACKAGES, num_threads=1)
