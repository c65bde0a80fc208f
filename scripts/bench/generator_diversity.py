"""Do generated networks differ as real ones do, and at what cost? Diversity, novelty and accuracy by the protocol.

    python -m scripts.bench.generator_diversity ZOO PIPELINE [PIPELINE ...] [--name defaults] [--record]

Pipelines of several seeds that were trained on the zoo, from noise and, where they know starts, from starts; at the
lowest prompt and at the one nearest .3. Real networks are what the same starts became at equal loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from generator import EvaluationConfig, ParameterPipeline, PipelineSampler, Testbed
from generator.evaluation import evaluate
from generator.evaluation.novelty import GENERATED, HELD_OUT, NoveltyReport
from generator.evaluation.protocol import Evaluation
from zoo.storage.zoo import Zoo

from ..rows import Row, over_seeds
from .command import bench


def rows(
    zoo: str, *pipelines: str, name: str = "defaults", num_starts: int = 128, num_novelty_starts: int = 64
) -> Iterator[Row]:
    """A row for each mode and prompt.

    Args:
        zoo: that the pipelines were trained on
        pipelines: folders, of several seeds
        name: of the recipe
        num_starts: unseen ones
        num_novelty_starts: of them, for the distance to the training set
    """
    testbed = Testbed.from_zoo(Zoo.open(zoo))
    samplers = [ParameterPipeline.from_pretrained(folder) for folder in pipelines]
    knows_starts = all(pipe.model.config["use_start"] for pipe in samplers)
    for use_start in (False, True) if knows_starts else (False,):
        config = EvaluationConfig(
            num_starts=num_starts,
            num_novelty_starts=num_novelty_starts,
            uses_start=use_start,
            num_updates=1,
            baselines=False,
        )
        found = [evaluate(PipelineSampler(pipe, testbed.task, use_start), testbed, config=config) for pipe in samplers]
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
