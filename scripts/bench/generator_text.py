"""What are adapters worth that were generated from 4 kB of text of a domain never seen?

    python -m scripts.bench.generator_text NAME=FOLDER,FOLDER,... [NAME=...] --zoo out/zoos/text_adapters [--record]

Each folder is the output of one `scripts.train_generator experiment=generator_text`; the folders of a name differ in
the seed alone. The domains are those of the zoo's test runs, of which neither the base nor the generator has seen a
byte. A prompt is 64 windows of 64 bytes from the first 80% of a domain's text, and losses are on the last 10%. Settings
of the controls, and how many times the steps of their training generators take, are chosen on the domains of the
validation runs, the latter for the first seed alone. Five minutes of one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from generator import ParameterPipeline
from generator.training.tasks import task_of
from zoo import Zoo
from zoo.tasks.task import Batch

from ..rows import Row, over_seeds
from .command import bench
from .generator_adapters import Tasks, generated, means, minimized, ranked
from .generator_table import PACKAGES

QUESTION = str(__doc__).splitlines()[0]
FEW = 16
TUNINGS = ((3e-3, 10), (3e-3, 30), (1e-2, 10))  # learning rate and steps
FURTHER = (1e-3, 20)  # the same, after the pass; not chosen
PASSES = (0.75, 1.5, 3.0)  # over the text, after each correction; training takes the first over 4 kB
NEIGHBOURS = (1, 4, 16)
MULTI_TASK = (1e-2, 200)


def rows(*generators: str, zoo: str, no_controls: bool = False) -> Iterator[Row]:
    """Controls, then generators.

    Args:
        generators: NAME=FOLDER,FOLDER,...
        zoo: of adapters
        no_controls: the rows of the generators alone
    """
    adapters = Zoo.open(zoo)
    test, val = Tasks(adapters, "test"), Tasks(adapters, "val")
    base = losses(test, torch.zeros_like(test.own))

    def row(method: str, networks: list[Tensor]) -> Row:
        found = [
            {
                "loss, nats a byte": some.mean().item(),
                "gained over the base": (base - some).mean().item(),
                "domains better than the base": (some < base).sum().item(),
            }
            for some in (losses(test, params) for params in networks)  # (N,) each
        ]
        return Row(
            question=QUESTION,
            setting={"method": method},
            **over_seeds(found),
            note=f"{len(base)} modules of the standard library. Adapters of rank 4 in the last block of a byte "
            "transformer; mean and range where there are several seeds, else one.",
        )

    for method, networks in () if no_controls else controls(adapters, test, val):
        yield row(method, [networks])
    for name, folders in (argument.split("=", maxsplit=1) for argument in generators):
        pipes = [ParameterPipeline.from_pretrained(folder) for folder in folders.split(",")]
        method = f"{name}, {take_passes(pipes, val):g} passes along the gradient"
        for kind, prompt in prompts(test.shown).items():
            yield row(f"{method}: {kind}", [generated(pipe, prompt, test) for pipe in pipes])
        rate, steps = FURTHER
        networks = [tuned(test, rate, steps, generated(pipe, test.shown[:2], test)) for pipe in pipes]
        yield row(f"{method}: 4 kB of text, then tuned on it: Adam {rate:g}, {steps} steps", networks)


def controls(zoo: Zoo, test: Tasks, val: Tasks) -> Iterator[tuple[str, Tensor]]:
    """Adapters (N, P) for the test domains by method."""
    train = torch.from_numpy(zoo.params[zoo.split("train")][:, -1])
    shared = multi_task_adapter(zoo)
    yield "base alone", torch.zeros_like(test.own)
    yield "one adapter for all domains", shared.expand(len(test.runs), -1)
    yield "own adapter, all text of the domain", test.own
    order = ranked(test, train)
    for count in NEIGHBOURS:
        name = f"mean of the {count} nearest adapters" if count > 1 else "nearest adapter of the zoo, by the text"
        yield name, means(test, train[order[:, :count]])
    for name, start in {"": None, ", from the one for all": shared}.items():
        rate, steps = chosen(val, start, TUNINGS)
        yield f"tuned on the text{name}: Adam {rate:g}, {steps} steps", tuned(test, rate, steps, start)


def prompts(shown: Batch) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The text of each domain as (inputs, targets), in the ways in which it is shown."""
    inputs, targets, _ = shown
    return {
        "4 kB of text": (inputs, targets),
        "1 kB": (inputs[:, :FEW], targets[:, :FEW]),
        "4 kB of another domain": (inputs.roll(1, 0), targets.roll(1, 0)),
        "4 kB without targets": (inputs, None),
    }


def losses(tasks: Tasks, params: Tensor, split: str = "test") -> Tensor:
    """Losses (N,) of adapters (N, P)."""
    return tasks.task.evaluate(params, split)["loss"]


def take_passes(pipes: Sequence[ParameterPipeline], val: Tasks) -> float:
    """Let generators go over a text as often as is best on later text of the validation domains; how often in all."""

    def loss(passes: float) -> float:
        pipes[0].model.register_to_config(correction_passes=passes)
        return losses(val, generated(pipes[0], val.shown[:2], val), "val").mean().item()

    best = min(PASSES, key=loss)
    for pipe in pipes:
        pipe.model.register_to_config(correction_passes=best)
    return best * pipes[0].model.config["num_corrections"]


def chosen(val: Tasks, start: Tensor | None, settings: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """Learning rate and steps that are best on the later text of the validation domains."""
    return min(settings, key=lambda setting: losses(val, tuned(val, *setting, start), "val").mean().item())


def tuned(tasks: Tasks, rate: float, steps: int, start: Tensor | None) -> Tensor:
    """Adapters (N, P) tuned on the text of the prompts, from their initialisation, or starts (N, P) or (1, P)."""
    count, task = len(tasks.runs), tasks.task
    params = task.init_runs(range(count)) if start is None else start.expand(count, -1)
    return minimized(lambda params: task.loss(params, tasks.shown).sum(), params, rate, steps)


def multi_task_adapter(zoo: Zoo) -> Tensor:
    """One adapter (1, P), trained on all training domains, 16 at a time."""
    task, runs = task_of(zoo), torch.from_numpy(zoo.split("train"))
    rng = torch.Generator().manual_seed(0)

    def loss(params: Tensor) -> Tensor:
        bound = task.for_runs(runs[torch.randint(len(runs), (16,), generator=rng)].tolist())
        return bound.loss(params.expand(16, -1), bound.draw_examples(8, rng)).mean()

    return minimized(loss, task.init(rng, 1), *MULTI_TASK)


if __name__ == "__main__":
    bench("examples", rows, packages=PACKAGES, num_threads=1)
