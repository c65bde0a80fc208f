"""What of a network survives when it is edited to have another loss?

    python -m scripts.build_zoo out=out/zoo_unseen seed=1 num_runs=96
    python -m scripts.bench.generator_editing PIPELINE PIPELINE ... --zoo out/zoo --unseen out/zoo_unseen [--record]

Networks are the snapshots of runs of another zoo that are nearest to a loss. Edits invert them into noise and make them
again by another prompt; beside these one update from them as starts, new networks from noise, and what training made of
the same runs and of others. All are brought to equal loss: what is asked for is calibrated for each method on
validation runs. Matched distances are relative to those between different runs at the loss that is asked for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from generator import ParameterPipeline, prompt_grid
from generator.evaluation.collapse import Behaviour
from generator.evaluation.neighbours import paired_distances
from generator.evaluation.testbed import METRIC
from generator.prompts.calibration import Calibration
from generator.training.tasks import task_of
from generator.trajectories import Trajectories, nearest_snapshots
from zoo.networks.metrics import wrong_prediction_iou
from zoo.storage.zoo import Zoo
from zoo.tasks.task import Task

from ..rows import Row, over_seeds
from .command import bench
from .generator_table import PACKAGES

Method = Callable[[Tensor, Tensor, Tensor], Tensor]  # networks (N, P), their losses (N,), what is asked (N,) -> (N, P)
_NUM_ASKED = 12  # values by which a method is calibrated


def rows(
    *pipelines: str,
    zoo: str,
    unseen: str,
    level: float = 0.5,
    prompts: Sequence[float] = (0.3, 0.2, 1.0),
    number: int = 64,
) -> Iterator[Row]:
    """A row for each prompt and method, and one for the round trip.

    Args:
        pipelines: folders of pipelines that differ in their seed
        zoo: that they were trained on
        unseen: of the same task, whose runs they have not seen
        level: val loss of the networks to edit
        prompts: val losses to ask for
        number: of networks
    """
    task, runs = task_of(Zoo.open(zoo)), Trajectories.from_zoo(Zoo.open(unseen), "train", (METRIC,))
    val = Trajectories.from_zoo(Zoo.open(zoo), "val", (METRIC,))
    asked = prompt_grid(Trajectories.from_zoo(Zoo.open(zoo), "train", (METRIC,)), METRIC, num_prompts=_NUM_ASKED)
    networks, known = at_loss(runs, level, number), at_loss(val, level, number // 2)
    loss = task.evaluate(networks, "val")["loss"]
    results: dict[tuple[float, str], list[dict[str, float]]] = {}
    trips, seconds = [], []
    for seed, folder in enumerate(pipelines):
        pipe = ParameterPipeline.from_pretrained(folder)
        began = time.process_time()
        back = methods(pipe, seed)["edited"](networks, loss, loss)
        seconds.append((time.process_time() - began) / number)
        trips.append((back - networks).abs().max().item())
        made = {name: calibrated(method, task, known, asked) for name, method in methods(pipe, seed).items()}
        for prompt in prompts:
            later = at_loss(runs, prompt, number)
            between = paired_distances(task.layout, later.roll(1, dims=0), later).mean()
            answers = {name: method(networks, loss, torch.full_like(loss, prompt)) for name, method in made.items()}
            answers |= {"its own run at this loss": later, "another run at this loss": later.roll(1, dims=0)}
            for name, params in answers.items():
                found = kept(task, params, networks)
                found["distance moved, to that between runs"] = found.pop("distance") / between.item()
                results.setdefault((prompt, name), []).append(found)
    question = str(__doc__).splitlines()[0]
    note = f"{number} networks of loss {level:g}; mean and range over {len(pipelines)} generator seeds."
    for (prompt, name), found in results.items():
        yield Row(question=question, setting={"asked": prompt, "network": name}, **over_seeds(found), note=note)
    yield Row(
        question="Does a network come back from its noise?",
        setting={"network": "-".join(map(str, widths(task)))},
        figures={"largest change of a number": max(trips), "CPU seconds for one network": statistics.fmean(seconds)},
        note="Asked for the loss that it has; two copies in float64, the model in float32, 24 levels of noise.",
    )


def methods(pipe: ParameterPipeline, seed: int) -> dict[str, Method]:
    """What a pipeline can make of networks."""

    def rng() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    return {
        "edited": lambda params, loss, asked: (
            pipe.edit(params, {METRIC: asked}, own_prompt={METRIC: loss}, generator=rng()).params
        ),
        "edited as an update of itself": lambda params, loss, asked: (
            pipe.edit(params, {METRIC: asked}, own_prompt={METRIC: loss}, start=params, generator=rng()).params
        ),
        "one update from it": lambda params, loss, asked: pipe(params, {METRIC: asked}, generator=rng()).params,
        "new, from noise": lambda params, loss, asked: (
            pipe(prompt={METRIC: asked}, num_samples=len(params), generator=rng()).params
        ),
    }


def calibrated(method: Method, task: Task, known: Tensor, asked: Tensor) -> Method:
    """The method, asked for what gave the loss that is meant on networks (N, P) known."""
    repeated = known.repeat_interleave(len(asked), dim=0)
    answers = method(repeated, task.evaluate(repeated, "val")["loss"], asked.repeat(len(known)))
    achieved = task.evaluate(answers, "val")["loss"].view(len(known), len(asked))
    calibration = Calibration.fit(asked, achieved, METRIC)
    return lambda params, loss, meant: method(params, loss, calibration(meant))


def kept(task: Task, params: Tensor, networks: Tensor) -> dict[str, float]:
    """Loss and accuracy of networks (N, P), and what they share with those that they were made from (N, P)."""
    now, before = (Behaviour.of(task, some, ("val", "test")) for some in (params, networks))
    pairs = zip(now.predictions.split(1), before.predictions.split(1), strict=True)
    shared = [wrong_prediction_iou(one, now.targets, other).item() for one, other in pairs]
    return {
        "val loss": task.evaluate(params, "val")["loss"].log().mean().exp().item(),
        "test accuracy, %": 100 * Behaviour.of(task, params).accuracy.mean().item(),
        "distance": paired_distances(task.layout, params, networks).mean().item(),
        "errors shared (IoU)": statistics.fmean(shared),
    }


def at_loss(runs: Trajectories, loss: float, number: int) -> Tensor:
    """Networks (N, P) of the first N runs, at their snapshots nearest to a loss."""
    rows = torch.arange(min(number, len(runs)))
    return runs.read(rows, nearest_snapshots(runs.metrics[METRIC][rows], torch.full((len(rows),), loss)))


def widths(task: Task) -> list[int]:
    """Widths of an MLP's layers."""
    shapes = [slot.shape for slot in task.layout if len(slot.shape) == 2]
    return [shapes[0][1], *(shape[0] for shape in shapes)]


if __name__ == "__main__":
    bench("generator", rows, packages=PACKAGES, num_threads=1)
