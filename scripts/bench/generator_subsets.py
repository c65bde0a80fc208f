"""What are whole networks worth that were generated from a few examples of a task never seen?

    python -m scripts.bench.generator_subsets NAME=FOLDER,FOLDER,... --zoo out/zoos/subset_examples [--record]

Each folder is the output of one `scripts.train_generator experiment=generator_subset_examples`; the folders of a name
differ in the seed alone. The tasks are those of the zoo's test runs, the examples of prompts training examples of
theirs, and accuracy is on their test examples; the worst task is the mean over its runs. Tuned networks are trained by
AdamW on the 64 examples of the prompt, with the setting that is best on the tasks of the validation runs. Two minutes
of one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from generator import ParameterPipeline
from generator.evaluation.unseen_tasks import NUM_EXAMPLES, task_figures
from zoo import Zoo
from zoo.tasks.task import Task

from ..rows import Row, over_seeds
from .command import bench
from .generator_adapters import Tasks, generated, minimized, ranked
from .generator_table import PACKAGES

FEW = (32, 16, 8)
TUNINGS = ((3e-3, 1e-2, 3e-2), (60, 200), (0.0, 0.1, 1.0))  # learning rates, steps, weight decays


def rows(*generators: str, zoo: str, no_controls: bool = False) -> Iterator[Row]:
    """Controls, then generators.

    Args:
        generators: NAME=FOLDER,FOLDER,...
        zoo: of label subsets
        no_controls: the rows of the generators alone
    """
    subsets = Zoo.open(zoo)
    test, val = Tasks(subsets, "test"), Tasks(subsets, "val")
    _, which = torch.from_numpy(subsets.runs["mask"])[test.runs].unique(return_inverse=True)

    def row(method: str, *networks: Tensor) -> Row:
        return accuracies(str(__doc__), method, networks, test.task, which)

    for method, networks in () if no_controls else controls(subsets, test, val):
        yield row(method, networks)
    inputs, targets, _ = test.shown
    prompts = {f"{few} examples": (inputs[:, :few], targets[:, :few]) for few in (NUM_EXAMPLES, *FEW)}
    other = len(test.runs) // 3  # the tasks of neighbours are alike
    prompts["of another task"] = inputs.roll(other, 0), targets.roll(other, 0)
    for name, folders in (argument.split("=", maxsplit=1) for argument in generators):
        pipes = [ParameterPipeline.from_pretrained(folder) for folder in folders.split(",")]
        for kind, prompt in prompts.items():
            yield row(f"{name}: {kind}", *(generated(pipe, prompt, test) for pipe in pipes))


def accuracies(title: str, method: str, networks: Sequence[Tensor], task: Task, which: Tensor) -> Row:
    """The row of a method: mean accuracy and worst task of networks (N, P) of one or several seeds.

    Args:
        title: a text whose first line is the question.
        method: its name.
        networks: of each seed.
        task: bound to their runs.
        which: (N,) task of each, counted from 0.
    """
    seeds = [task_figures(task, one, which) for one in networks]
    return Row(
        question=title.splitlines()[0],
        setting={"method": method},
        **over_seeds([{"accuracy, %": 100 * one["mean"], "worst task, %": 100 * one["worst"]} for one in seeds]),
        note=f"digits_subset, 64-16-1, {int(which.max()) + 1} tasks never seen; mean and range of several seeds, "
        "else one.",
    )


def controls(zoo: Zoo, test: Tasks, val: Tasks) -> Iterator[tuple[str, Tensor]]:
    """Networks (N, P) for the test tasks by method."""
    train = torch.from_numpy(zoo.params[zoo.split("train")][:, -1])
    yield "own runs", test.own
    yield f"best training network on the {NUM_EXAMPLES} examples", train[ranked(test, train)[:, 0]]
    rate, steps, decay = max(product(*TUNINGS), key=lambda setting: val.accuracy(tuned(val, *setting), "val"))
    name = f"trained on the {NUM_EXAMPLES} examples: AdamW {rate:g}, {steps} steps, decay {decay:g}"
    yield name, tuned(test, rate, steps, decay)


def tuned(tasks: Tasks, rate: float, steps: int, decay: float) -> Tensor:
    """Networks (N, P) trained on the examples of the prompts, from their initialisation."""
    start = tasks.task.init_runs(range(len(tasks.runs)))
    return minimized(lambda params: tasks.task.loss(params, tasks.shown).sum(), start, rate, steps, decay)


if __name__ == "__main__":
    bench("examples", rows, packages=PACKAGES, num_threads=1)
