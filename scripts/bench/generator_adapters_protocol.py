"""Are generated adapters new, and do they differ as own adapters of two seeds do?

    python -m scripts.bench.generator_adapters_protocol out/cnn0 out/cnn1 --zoo out/zoos/lora_images_cnn \\
      --base "a CNN" [--record]

Tests (A) and (B) of the protocol, and its measures of diversity, for adapters, whose weights mean something only as the
products B A. A generated adapter is compared with the training adapters, and with a second one of the same prompt, of
other examples, or of another generator; the reference are the zoo's own adapters of the tasks and a second set, trained
in the same way on other batches. Last, losses are asked for beside the examples, and it is measured how many adapters a
minute of one core makes. The folders differ in the seed of the generator. Five minutes of one core.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from generator import ParameterPipeline
from generator.evaluation.neighbours import nearest
from generator.evaluation.unseen_tasks import shown_examples
from zoo import Zoo
from zoo.networks import low_rank
from zoo.networks.metrics import log_prob_distance, r2_log, wrong_prediction_iou

from ..rows import Row, over_seeds
from .command import bench
from .generator_adapters import Tasks, generated, means, ranked, trained
from .generator_table import PACKAGES

NUM_NEAREST = 4  # training adapters whose errors are compared with a network's
NUM_ASKED = 5  # losses
EXAMPLES_AT_ONCE = 64
NUM_TIMED = 512
Prompt = tuple[Tensor, Tensor]


def rows(*generators: str, zoo: str, base: str, device: torch.device | str = "cpu") -> Iterator[Row]:
    """Novelty, diversity, prompted losses, speed.

    Args:
        generators: folders, of several seeds
        zoo: of adapters
        base: what they adapt, such as "a CNN"
        device: where to
    """
    adapters = Zoo.open(zoo)
    test = Tasks(adapters, "test", device)
    pipes = [ParameterPipeline.from_pretrained(folder).to(device) for folder in generators]
    train = torch.from_numpy(adapters.params[adapters.split("train")][:, -1]).to(device)
    steps, rate = adapters.attributes["extra"]["training"]["num_steps"], adapters.attributes["optimizer"]["lr"]
    own = [test.own, trained(test, rate, steps)]
    shown = (test.shown.inputs, test.shown.targets)
    others = shown_examples(test.task, len(test.runs), torch.Generator().manual_seed(1))
    made = [generated(pipe, shown, test) for pipe in pipes]
    best = ranked(test, train)

    # (A) and (B): new?
    pool = Pool(test, train)
    found = {
        "own adapters": [pool.figures(test.own)],
        "own adapters, second seed": [pool.figures(own[1])],
        "generated from 64 examples": [pool.figures(params) for params in made],
        "nearest of the zoo, by the examples": [pool.figures(train[best[:, 0]])],
        "mean of the 2 nearest": [pool.figures(means(test, train[best[:, :2]]))],
    }
    note = f"{len(test.runs)} tasks never seen; mean and range over generators. "
    for name, figures in found.items():
        yield Row(
            question=f"Are adapters of {base} that were generated from examples new?",
            setting={"adapters": name},
            **over_seeds(figures),
            note=note + "Distances are of products B A, in units of how far own adapters are from where they began. "
            f"Overlap: largest IoU of wrong predictions with one of the {NUM_NEAREST} nearest training adapters.",
        )

    # Do two of one task differ?
    pairs = {
        "own adapters of two seeds": [(own[0], own[1])],
        "generated, other noise": [
            (params, generated(pipe, shown, test, seed=1)) for pipe, params in zip(pipes, made, strict=True)
        ],
        "generated, 64 other examples": [
            (params, generated(pipe, others, test)) for pipe, params in zip(pipes, made, strict=True)
        ],
        "generated, generators of two seeds": [(made[0], params) for params in made[1:]],
        "generated and own": [(params, test.own) for params in made],
        "own adapters of two tasks": [(test.own, test.own.roll(1, 0))],
    }
    for name, compared in pairs.items():
        yield Row(
            question=f"Do two adapters of {base} for one task differ as own adapters of two seeds do?",
            setting={"pair": name},
            **over_seeds([difference(test, *pair, unit=pool.unit) for pair in compared]),
            note=note + "Distances as above; log-probabilities and errors on the test images of the task.",
        )
    yield from prompted(pipes, adapters, test, shown, base)


class Pool:
    """The training adapters, with which those of the test tasks are compared.

    Args:
        tasks: of the test runs.
        train: (M, P) adapters.
    """

    def __init__(self, tasks: Tasks, train: Tensor) -> None:
        self.tasks, self.train = tasks, train
        self.unit = low_rank.distances(tasks.task.layout, tasks.own, tasks.start).diagonal().mean()

    def figures(self, params: Tensor) -> dict[str, float]:
        """Of adapters (N, P), one for each task."""
        found = nearest(self.tasks.task.layout, params, self.train, k=NUM_NEAREST)
        mine, targets = log_probs(self.tasks, params), test_targets(self.tasks)
        overlaps = []
        for place, others in enumerate(found.index):
            theirs = log_probs(self.tasks, self.train[others], place).argmax(-1)
            overlap = wrong_prediction_iou(mine[place, None].argmax(-1), targets[place], theirs)
            overlaps.append(overlap.max().item())
        return {
            "accuracy, %": 100 * (mine.argmax(-1) == targets).float().mean().item(),
            "distance to the nearest": (found.distances[:, 0].mean() / self.unit).item(),
            "overlap of errors": statistics.fmean(overlaps),
        }


def difference(tasks: Tasks, params: Tensor, others: Tensor, *, unit: Tensor) -> dict[str, float]:
    """Between adapters (N, P) and others (N, P), task by task; the mean over tasks."""
    targets = test_targets(tasks)
    mine, theirs = (log_probs(tasks, some) for some in (params, others))
    by_task = [
        (
            log_prob_distance(one[None], other[None]).item(),
            wrong_prediction_iou(one.argmax(-1)[None], wanted, other.argmax(-1)[None]).item(),
        )
        for one, other, wanted in zip(mine, theirs, targets, strict=True)
    ]
    distances = low_rank.distances(tasks.task.layout, params, others).diagonal()
    apart, overlap = (statistics.fmean(values) for values in zip(*by_task, strict=True))
    return {
        "distance": (distances.mean() / unit).item(),
        "log-prob distance": apart,
        "overlap of errors": overlap,
    }


@torch.no_grad()
def log_probs(tasks: Tasks, params: Tensor, place: int | None = None) -> Tensor:
    """Log-probabilities (N, E, K) of adapters (N, P) on the test examples of their tasks, or all of task `place`."""
    task = tasks.task if place is None else tasks.task.for_runs([int(tasks.runs[place])])
    parts = []
    for some in torch.arange(len(task.dataset.test)).split(EXAMPLES_AT_ONCE):
        inputs = task.batch(some.to(params.device), len(tasks.runs) if place is None else 1, "test").inputs
        parts.append(F.log_softmax(task.predict(params, inputs if place is None else inputs[0]), -1))
    return torch.cat(parts, dim=1)


def test_targets(tasks: Tasks) -> Tensor:
    """True classes (N, E) of the test examples of the tasks."""
    every = torch.arange(len(tasks.task.dataset.test), device=tasks.own.device)
    return tasks.task.batch(every, len(tasks.runs), "test").targets


def prompted(pipes: Sequence[ParameterPipeline], zoo: Zoo, tasks: Tasks, shown: Prompt, base: str) -> Iterator[Row]:
    """Losses asked for beside the examples, from the mean of own adapters to that of where they began; then speed."""
    begun, ended = zoo.metric("val_loss")[zoo.split("train")][:, [0, -1]].mean(0).tolist()
    asked = torch.linspace(torch.tensor(ended).log(), torch.tensor(begun).log(), NUM_ASKED).exp()
    met, minutes = [], []
    for pipe in pipes:
        achieved = torch.stack([reached(pipe, loss, shown, tasks) for loss in asked.tolist()])  # (K, N)
        met.append(
            {
                "R² of log loss": r2_log(achieved, asked[:, None]).item(),
                "at the lowest": achieved[0].mean().item(),
                "at the highest": achieved[-1].mean().item(),
            }
        )
        minutes.append({"adapters a minute": adapters_a_minute(pipe, shown, tasks)})
    yield Row(
        question=f"Do adapters of {base} have the loss that was asked for beside the examples?",
        setting={"asked, nats": f"{NUM_ASKED} losses, {ended:.2g} to {begun:.2g}"},
        **over_seeds(met),
        note="Validation losses; asked for are those between the mean of own adapters and that of where they began.",
    )
    yield Row(
        question="How many adapters does a generator make in a minute of one core?",
        setting={
            "adapters": f"of {base}, {tasks.task.layout.num_params:,} numbers, from {shown[0].shape[1]} examples each",
            "numbers of the generator": sum(weight.numel() for weight in pipes[0].model.parameters()),
        },
        **over_seeds(minutes),
        note=f"{len(tasks.runs)} prompts at once; CPU seconds, two corrections and the check of losses on the prompts "
        "included.",
    )


def reached(pipe: ParameterPipeline, loss: float, shown: Prompt, tasks: Tasks) -> Tensor:
    """Validation losses (N,) of adapters of which a loss was asked for, too."""
    prompt = {"loss": loss, "examples": shown}
    rng = torch.Generator().manual_seed(0)
    params = pipe(prompt=prompt, num_samples=len(tasks.runs), task=tasks.task, generator=rng).params
    return tasks.task.evaluate(params, "val")["loss"]


def adapters_a_minute(pipe: ParameterPipeline, shown: Prompt, tasks: Tasks) -> float:
    rounds = NUM_TIMED // len(tasks.runs) + 1
    begun = time.process_time()
    for _ in range(rounds):
        generated(pipe, shown, tasks)
    return 60 * rounds * len(tasks.runs) / (time.process_time() - begun)


if __name__ == "__main__":
    bench("examples", rows, packages=PACKAGES, num_threads=1)
