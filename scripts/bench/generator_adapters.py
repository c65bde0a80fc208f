"""What are adapters worth that were generated from a few examples of a task never seen?

    python -m scripts.bench.generator_adapters NAME=FOLDER,FOLDER,... [NAME=...] --zoo out/zoos/lora_images [--record]
    python -m scripts.bench.generator_adapters NAME=... --zoo out/zoos/lora_images_rank6 --rank 6 --no-controls ...
    python -m scripts.bench.generator_adapters NAME=... --zoo out/zoos/lora_images_cnn --base "a CNN" ...

Each folder is the output of one `scripts.train_generator experiment=generator_adapters`; the folders of a name differ
in the seed alone. The tasks are those of the zoo's test runs, the examples of prompts training examples of theirs, and
accuracy is on their test examples. *Recovered* is (accuracy - multi-task) / (own - multi-task), where the multi-task
adapter is one for all training tasks, and own adapters are the zoo's, trained on all examples of their task. Settings
of the controls are chosen on the tasks of the validation runs. With --rank the zoo, and its multi-task adapter, are of
that rank, and prompts of 64 examples alone are asked; with --base the table is one of its own. About four minutes of
one core; with --frugal, for a base that is slow to run, controls have fewer settings.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from generator import ParameterPipeline
from generator.evaluation.unseen_tasks import NUM_EXAMPLES, shown_examples
from generator.training.tasks import task_of
from zoo import Zoo
from zoo.networks import low_rank
from zoo.tasks.task import Batch, Task

from ..rows import Row, over_seeds
from .command import bench
from .generator_table import PACKAGES

QUESTION = __doc__.splitlines()[0]
FEW = 8
FURTHER = ((1e-3, 20), (3e-3, 20), (3e-3, 60), (1e-2, 60))  # the same, of adapters that are good already
LONGER = 4  # times the steps of the zoo's adapters, and a rate that is best of these times theirs
LONGER_RATES = (1, 2)
TUNINGS = ((3e-3, 60), (1e-2, 40), (1e-2, 120), (3e-2, 80))  # learning rate and steps
FRUGAL_FURTHER, FRUGAL_TUNINGS = ((1e-3, 20), (3e-3, 20)), ((3e-3, 30), (1e-2, 30))
NEIGHBOURS = (2, 4, 8)
MULTI_TASK_RATES, MULTI_TASK_STEPS = (1e-3, 3e-3, 1e-2), 800


class Tasks:
    """The tasks of a split of runs, with the examples that a prompt shows of each.

    Args:
        zoo: of adapters.
        split: of its runs.
        device: where to.
    """

    def __init__(self, zoo: Zoo, split: str, device: torch.device | str = "cpu") -> None:
        self.runs = zoo.split(split)
        self.task = task_of(zoo).to(device).for_runs(self.runs.tolist())
        self.shown = Batch(*shown_examples(self.task, len(self.runs), torch.Generator().manual_seed(0)))
        self.start, self.own = (torch.from_numpy(zoo.params[self.runs][:, i]).to(device) for i in (0, -1))

    def accuracy(self, params: Tensor, split: str = "test") -> float:
        return 1 - self.task.evaluate(params, split)["error"].mean().item()


def rows(
    *generators: str,
    zoo: str,
    base: str = "",
    rank: str = "",
    no_controls: bool = False,
    frugal: bool = False,
    device: torch.device | str = "cpu",
) -> Iterator[Row]:
    """Controls, then generators.

    Args:
        generators: NAME=FOLDER,FOLDER,...
        zoo: of adapters
        base: what they adapt, for a table of its own, such as "a CNN"
        rank: of the zoo, for a row of its own: one that the generators were not trained on
        no_controls: the rows of the generators alone
        device: where to
        frugal: fewer settings of controls; that all tasks share is where the zoo's runs began
    """
    adapters = Zoo.open(zoo)
    test, val = (Tasks(adapters, split, device) for split in ("test", "val"))
    candidates = [test.start[:1]]
    if not frugal:
        candidates = [multi_task_adapter(adapters, rate, device) for rate in MULTI_TASK_RATES]
    shared = max(candidates, key=lambda one: val.accuracy(one.expand(len(val.runs), -1), "val"))
    scale = test.accuracy(shared.expand(len(test.runs), -1)), test.accuracy(test.own)

    def row(method: str, values: list[float]) -> Row:
        low, high = scale
        found = [{"accuracy, %": 100 * value, "recovered": (value - low) / (high - low)} for value in values]
        return Row(
            question=QUESTION.replace("adapters", f"adapters of {base}") if base else QUESTION,
            setting={"method": method},
            **over_seeds(found),
            note=f"{len(test.runs)} tasks never seen, {NUM_EXAMPLES} examples of each. Generators of "
            "experiment=generator_adapters; mean and range where there are several seeds, else one.",
        )

    for method, networks in () if no_controls else controls(adapters, test, val, shared, frugal=frugal):
        yield row(method, [test.accuracy(networks)])
    for name, folders in (argument.split("=", maxsplit=1) for argument in generators):
        pipes = [ParameterPipeline.from_pretrained(folder).to(device) for folder in folders.split(",")]
        asked = prompts(test.shown)
        first = next(iter(asked))
        if rank:
            of_rank = f"{name}, adapters of rank {rank}, never trained: {first}, {len(test.runs)} of the tasks"
            yield row(of_rank, [test.accuracy(generated(pipe, asked[first], test)) for pipe in pipes])
            continue
        for kind, prompt in asked.items():
            yield row(f"{name}: {kind}", [test.accuracy(generated(pipe, prompt, test)) for pipe in pipes])
        yield row(*finetuned(pipes, test, val, f"{name}: {first}", FRUGAL_FURTHER if frugal else FURTHER))


def finetuned(
    pipes: Sequence[ParameterPipeline], test: Tasks, val: Tasks, name: str, settings: Sequence[tuple[float, int]]
) -> tuple[str, list[float]]:
    """A row of generated adapters that were tuned on the examples of their prompts, as is best on validation tasks."""

    def accuracy(tasks: Tasks, split: str, rate: float, steps: int) -> list[float]:
        starts = (generated(pipe, (tasks.shown.inputs, tasks.shown.targets), tasks) for pipe in pipes)
        return [tasks.accuracy(tuned(tasks, rate, steps, start), split) for start in starts]

    rate, steps = max(settings, key=lambda setting: statistics.fmean(accuracy(val, "val", *setting)))
    return f"{name}, then tuned on them: Adam {rate:g}, {steps} steps", accuracy(test, "test", rate, steps)


def controls(zoo: Zoo, test: Tasks, val: Tasks, shared: Tensor, *, frugal: bool) -> Iterator[tuple[str, Tensor]]:
    """Adapters (N, P) for the test tasks by method; `shared` (1, P) is the one for all tasks."""
    train = torch.from_numpy(zoo.params[zoo.split("train")][:, -1]).to(test.own.device)
    yield "base alone", torch.zeros_like(test.own)
    yield "one adapter for all tasks", shared.expand(len(test.runs), -1)
    yield "own adapter, all examples", test.own
    if not frugal:
        steps = zoo.attributes["extra"]["training"]["num_steps"]
        rates = [factor * zoo.attributes["optimizer"]["lr"] for factor in LONGER_RATES]
        rate = max(rates, key=lambda rate: val.accuracy(trained(val, rate, steps), "val"))
        yield f"own adapter, all examples, Adam {rate:g}, {LONGER * steps} steps", trained(test, rate, LONGER * steps)
    of_test = ranked(test, train)
    yield "nearest adapter of the zoo, by the examples", train[of_test[:, 0]]
    best = NEIGHBOURS[0]
    ways = [(", from the one for all", shared, shared, FRUGAL_TUNINGS if frugal else TUNINGS)]
    if not frugal:
        of_val = ranked(val, train)
        best = max(NEIGHBOURS, key=lambda count: val.accuracy(means(val, train[of_val[:, :count]]), "val"))
        nearest = (", from the nearest", train[of_val[:, 0]], train[of_test[:, 0]], FURTHER)
        ways = [("", val.start, test.start, TUNINGS), *ways, nearest]
    yield f"mean of the {best} nearest", means(test, train[of_test[:, :best]])
    for name, of_val_tasks, of_test_tasks, settings in ways:
        rate, steps = max(settings, key=lambda setting: val.accuracy(tuned(val, *setting, of_val_tasks), "val"))
        yield f"tuned on the examples{name}: Adam {rate:g}, {steps} steps", tuned(test, rate, steps, of_test_tasks)


def prompts(shown: Batch) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Examples of each task as (inputs, targets), in the ways in which they are shown."""
    inputs, targets, _ = shown
    return {
        f"{NUM_EXAMPLES} examples": (inputs, targets),
        f"{FEW} examples": (inputs[:, :FEW], targets[:, :FEW]),
        "without labels": (inputs, None),
        "of another task": (inputs.roll(1, 0), targets.roll(1, 0)),
    }


def generated(
    pipe: ParameterPipeline, examples: tuple[Tensor, Tensor | None], tasks: Tasks, *, seed: int = 0
) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return pipe(prompt={"examples": examples}, num_samples=len(tasks.runs), task=tasks.task, generator=rng).params


def multi_task_adapter(zoo: Zoo, rate: float, device: torch.device | str = "cpu") -> Tensor:
    """One adapter (1, P), trained on the tasks of all training runs, 16 at a time."""
    task, runs = task_of(zoo).to(device), torch.from_numpy(zoo.split("train"))
    rng = torch.Generator().manual_seed(0)
    params = torch.from_numpy(zoo.params[runs[:1].numpy()][:, 0]).to(device)

    def loss(params: Tensor) -> Tensor:
        bound = task.for_runs(runs[torch.randint(len(runs), (16,), generator=rng)].tolist())
        return bound.loss(params.expand(16, -1), bound.draw_examples(32, rng)).mean()

    return minimized(loss, params, rate, MULTI_TASK_STEPS)


def tuned(tasks: Tasks, rate: float, steps: int, start: Tensor) -> Tensor:
    """Adapters (N, P) tuned on the examples of the prompts, from `start` (N, P) or (1, P)."""
    params = start.expand(len(tasks.runs), -1)
    return minimized(lambda params: tasks.task.loss(params, tasks.shown).sum(), params, rate, steps)


def trained(tasks: Tasks, rate: float, steps: int) -> Tensor:
    """Adapters (N, P) trained on all examples of their tasks, 32 in each step, from where the zoo's began."""
    rng = torch.Generator().manual_seed(0)
    return minimized(
        lambda params: tasks.task.loss(params, tasks.task.draw_examples(32, rng)).sum(), tasks.start, rate, steps
    )


def minimized(loss: Callable[[Tensor], Tensor], params: Tensor, rate: float, steps: int, decay: float = 0.0) -> Tensor:
    """Parameters after steps of AdamW, whose rate falls along a cosine."""
    params = params.clone().requires_grad_()
    optimizer = torch.optim.AdamW([params], rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(params).backward()
        optimizer.step()
        schedule.step()
    return params.detach()


@torch.no_grad()
def ranked(tasks: Tasks, train: Tensor) -> Tensor:
    """Numbers (N, M) of the training adapters (M, P), those of the lowest loss on the examples of each task first."""
    task: Task = tasks.task
    parts = train.split(task.networks_at_once(NUM_EXAMPLES))

    def losses(inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.cat([task.objective.loss(task.predict(part, inputs), targets) for part in parts])

    return torch.stack(
        [losses(*shown).argsort() for shown in zip(tasks.shown.inputs, tasks.shown.targets, strict=True)]
    )


def means(tasks: Tasks, adapters: Tensor) -> Tensor:
    """Means (N, P) of adapters (N, count, P) of each task."""
    return torch.stack([low_rank.mean(tasks.task.layout, some) for some in adapters])


if __name__ == "__main__":
    bench("examples", rows, packages=PACKAGES, num_threads=1)
