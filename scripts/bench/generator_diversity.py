"""Do generated networks differ as real ones do, and at what cost? Diversity, novelty and accuracy by the protocol.

    python -m scripts.bench.generator_diversity ZOO PIPELINE [PIPELINE ...] [--name defaults] [--also METRIC] [--record]

Pipelines of several seeds that were trained on the zoo, from noise and, where they know starts, from starts; at the
lowest prompt and at the one nearest .3. Real networks are what the same starts became at equal loss. With `--also` the
pipelines, trained on it, too, are asked for a further metric, drawn for each network as training runs have it.

Legend: B networks, N training networks of which a metric is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from generator import EvaluationConfig, ParameterPipeline, PipelineSampler, Testbed
from generator.evaluation import evaluate
from generator.evaluation.novelty import GENERATED, HELD_OUT, NoveltyReport
from generator.evaluation.protocol import Evaluation
from generator.evaluation.testbed import METRIC, Sampler
from generator.trajectories import log_gap
from zoo.storage.zoo import Zoo

from ..rows import Row, over_seeds
from .command import bench

_NUM_NEAREST: Final = 256  # training networks of about the loss that is asked for


@dataclass(frozen=True)
class AsksFurther:
    """A sampler that is also asked for a further metric, that of a training network of about the loss asked for.

    Attributes:
        sampler: of a generator that knows both.
        metric: the further one.
        values: (N,) of it, of training networks.
        losses: (N,) of these.
    """

    sampler: Sampler
    metric: str
    values: Tensor
    losses: Tensor

    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        asked, index = prompt[METRIC].unique(return_inverse=True)
        nearest = log_gap(self.losses, asked[:, None]).topk(_NUM_NEAREST, largest=False).indices[index]  # (B, 256)
        drawn = nearest.gather(1, torch.randint(_NUM_NEAREST, (len(index), 1), generator=rng))[:, 0]
        return self.sampler(start, {**prompt, self.metric: self.values[drawn]}, rng)


def rows(
    zoo: str,
    *pipelines: str,
    name: str = "defaults",
    also: str = "",
    num_starts: int = 128,
    num_novelty_starts: int = 64,
) -> Iterator[Row]:
    """A row for each mode and prompt.

    Args:
        zoo: that the pipelines were trained on
        pipelines: folders, of several seeds
        name: of the recipe
        also: metric that is asked for, too
        num_starts: unseen ones
        num_novelty_starts: of them, for the distance to the training set
    """
    opened = Zoo.open(zoo)
    testbed = Testbed.from_zoo(opened)
    pipes = [ParameterPipeline.from_pretrained(folder) for folder in pipelines]
    knows_starts = all(pipe.model.config["use_start"] for pipe in pipes)
    for use_start in (False, True) if knows_starts else (False,):
        config = EvaluationConfig(
            num_starts=num_starts,
            num_novelty_starts=num_novelty_starts,
            uses_start=use_start,
            num_updates=1,
            baselines=False,
        )
        samplers: list[Sampler] = [PipelineSampler(pipe, testbed.task, use_start) for pipe in pipes]
        if also:
            training = opened.split("train")
            known = [torch.from_numpy(opened.metric(one)[training]).flatten() for one in (also, METRIC)]
            samplers = [AsksFurther(sampler, also, *known) for sampler in samplers]
        found = [evaluate(sampler, testbed, config=config) for sampler in samplers]
        for place in range(len(found[0].novelty)):
            prompt = found[0].novelty[place].prompt
            setting: dict[str, str | float] = {
                "zoo": Path(zoo).name,
                "recipe": name,
                "mode": "start" if use_start else "noise",
                "prompt": "floor" if place == 0 else round(prompt, 2),
            }
            yield Row(
                question=str(__doc__).splitlines()[0],
                setting=setting,
                **over_seeds([figures(one, place) for one in found]),
                seeds=tuple(range(len(pipelines))),
                note=f"Networks of {num_starts} unseen starts at most, {num_novelty_starts} for the distance to the "
                "training set. Real: what the same starts became at equal loss. Mean and range over generator seeds.",
            )


def figures(evaluation: Evaluation, place: int) -> dict[str, float]:
    """Of one evaluation, at one of the prompts where diversity is measured."""
    result, novelty = evaluation.results["generator"], evaluation.novelty[place]
    measures = result.collapse[place].measures
    found = {
        "val loss": measures["val loss"].generated,
        "accuracy, %": 100 * measures["test accuracy"].generated,
        "accuracy, real": 100 * measures["test accuracy"].real,
        "log-prob distance to real": measures["log-prob distance"].generated / measures["log-prob distance"].real,
    }
    for name in ("log-prob distance", "wrong-prediction IoU", "loss correlation", "norm"):
        found |= {name: measures[name].generated, f"{name}, real": measures[name].real}
    return found | {
        "distance to the nearest, to held-out runs'": distance_to_nearest(novelty),
        "R²": result.alignment.r2,
    }


def distance_to_nearest(novelty: NoveltyReport) -> float:
    """Matched distance of generated networks to the nearest training network, to that of held-out runs."""
    mean = {name: novelty.sets[name].distances.mean().item() for name in (GENERATED, HELD_OUT)}
    return mean[GENERATED] / mean[HELD_OUT]


if __name__ == "__main__":
    bench("generator", rows, num_threads=1)
