"""How many steps does an optimizer need to train a small GPT to a fixed validation loss?

    python -m scripts.bench.speedrun [--size 0.5M] [--contestants 'Muon .8' ...] [--record]
    python -m scripts.bench.speedrun --contestants mine --make my_module:make_optimizer --rates 1e-3 3.2e-3 1e-2

Network, text (the bytes of Python's standard library), batch and, for each seed, initial weights and minibatches are
fixed; only the optimizer may change. The entry is a number of steps T: the runs of T steps must reach the target by the
rule (target - mean) * sqrt(n) >= bound, and those of STRIDE steps less must not. Learning rates are swept on seed 0 at
the course's length, in factors of sqrt(10), until the best has worse neighbours; steps are counted on other seeds.
`--make` names a function (model, learning rate, T) -> optimizer, so that anyone can add a row; its rate then decays
along a cosine as that of the other contestants does, unless `--constant` is given. Runs are kept in `--folder`, so
that the same command resumes. About 10 CPU-seconds a run of the smaller size, half an hour in all; 45 a run of the
larger one, whose target is a little below what Muon .8 reached at the course's length on the tuning seed: there
`--rate 0.01` takes the rate of a recorded sweep and saves another.
"""

from __future__ import annotations

import logging
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.devices import resolve_device
from zoo.networks.architectures import ByteTransformer
from zoo.tasks.dataset import Dataset, Split
from zoo.tasks.datasets import get_dataset

from ..rows import Row
from ..studies.optimizers.outside.methods import RATE_STEP, OutsideMethod, learned, outside_rivals
from ..studies.optimizers.outside.problems import Problem
from ..studies.optimizers.outside.tasks import OutsideTask
from ..studies.optimizers.outside.training import Swept, Trainings
from .command import bench

TUNING_SEED: Final = 0
SEEDS: Final = (1, 2, 3)
STRIDE: Final = 8  # steps between entries that are told apart
SLOPE: Final = 0.35  # nats by which a loss falls for a factor e of steps, to guess by
CONTEXT: Final = 64
BATCH: Final = 12
HOPELESS: Final = 0.05  # nats above the target after which no other seeds are tried
RIVALS: Final = ("AdamW", "Muon .95", "Muon .8", "NorMuon", "SOAP")
LEARNED: Final = ("mulo-norm", "mulo-wide")


@dataclass(frozen=True)
class Course:
    """What is to be done: the loss, in nats a byte, that a network of this shape must reach on held-out text.

    Args:
        width, num_blocks, num_heads: of the transformer.
        num_steps: at which learning rates are swept, and the search for T begins.
        target: mean validation loss to reach.
        bound: of (target - mean) * sqrt(n); runs differ by standard deviations of .005 (Muon .8) to .023 (NorMuon).
    """

    width: int
    num_blocks: int
    num_heads: int
    num_steps: int
    target: float
    bound: float

    def margin(self, losses: list[float]) -> float:
        """Nats by which the mean of runs with these losses is below what passes; negative where they do not pass."""
        return self.target - statistics.fmean(losses) - self.bound / math.sqrt(len(losses))

    def problem(self, device: torch.device) -> Problem:
        """An untrained network by torch's global generator, trained on the text and judged on its held-out files."""
        text = _text(device)
        model = ByteTransformer(text.num_classes, CONTEXT, self.width, self.num_blocks, self.num_heads).to(device)

        def loss(rng: torch.Generator, split: Split) -> Tensor:
            index = torch.randint(len(split), (BATCH,), generator=rng).to(device)
            return F.cross_entropy(model(split.inputs[index]).flatten(0, 1), split.targets[index].flatten())

        return Problem(model, partial(loss, split=text.train), 24, torch.no_grad()(partial(loss, split=text.val)))


@lru_cache(maxsize=1)
def _text(device: torch.device) -> Dataset:
    return get_dataset("python_source", size=4_000_000, context=CONTEXT).to(device)


COURSES: Final = {
    "0.5M": Course(96, 4, 4, num_steps=256, target=2.0, bound=0.02),
    "4M": Course(256, 5, 8, num_steps=128, target=2.2, bound=0.02),
}


def rows(
    *,
    size: str = "0.5M",
    contestants: Sequence[str] = (),
    make: str = "",
    rates: Sequence[float] = (1e-3, 10**-2.5, 1e-2),
    rate: float = 0.0,
    constant: bool = False,
    sweep_only: bool = False,
    device: str | torch.device = "auto",
    folder: str = "out/speedrun",
) -> Iterator[Row]:
    """Two rows for each contestant: its sweep, and the steps that it needs.

    Args:
        size: 0.5M or 4M
        contestants: only these; of one of your own the name
        make: module:function (model, learning rate, T) -> optimizer of a contestant of your own
        rates: that its sweep begins with, in factors of sqrt(10)
        rate: the one that was swept before; 0 sweeps
        constant: its rate does not decay along a cosine
        sweep_only: leave out how many steps are needed
        device: auto, cpu, cuda, mps
        folder: of the runs
    """
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    course, trainings = COURSES[size], Trainings(Path(folder))
    task = OutsideTask(f"speedrun-{size}", "speed-run", "none", partial(course.problem, resolve_device(device)))
    for method in [_own(contestants, make, rates, constant=constant)] if make else _known(contestants):
        best = rate
        if not best:
            swept = trainings.sweep(task, method, course.num_steps)
            assert swept is not None
            yield _sweep_row(size, method, swept)
            best = swept.rate
        if sweep_only:
            continue

        def losses(num_steps: int, method: OutsideMethod = method, rate: float = best) -> list[float]:
            found: list[float] = []
            for seed in SEEDS:
                if (run := trainings.run(task, method, rate, num_steps, seed)) is not None:
                    found.append(run.losses[num_steps])
                if found[-1] > course.target + HOPELESS:
                    break
            return found

        num_steps = fewest_steps(course, losses)
        yield _row(size, method, best, num_steps, losses(num_steps))


def _own(names: Sequence[str], make: str, rates: Sequence[float], *, constant: bool) -> OutsideMethod:
    (name,) = names
    return OutsideMethod(name, resolve_name(make), tuple(rates), not constant, identity=make)


def _known(names: Sequence[str]) -> list[OutsideMethod]:
    """Those made by hand and the learned ones, as they are and with their multipliers swept."""
    ours = [learned(name)[0] for name in LEARNED]
    tuned = [replace(method, name=f"{method.name}, tuned", rates=(RATE_STEP**-1, 1.0, RATE_STEP)) for method in ours]
    known = [*(method for method in outside_rivals() if method.name in RIVALS), *ours, *tuned]
    known_names = [method.name for method in known]
    if unknown := sorted(set(names) - set(known_names)):
        raise ValueError(f"contestants are {known_names}, got {unknown}; one of your own needs --make")
    return [method for method in known if method.name in (names or known_names)]


def fewest_steps(course: Course, losses: Callable[[int], list[float]]) -> int:
    """The multiple of STRIDE whose runs pass while those of STRIDE steps less do not.

    The next T to try is where a loss that is linear in log T would just pass: between the longest runs that failed and
    the shortest that passed, or falling by SLOPE for each factor e of steps.

    Args:
        course: whose `num_steps` the search begins at.
        losses: of the runs of that many steps.

    Raises:
        ValueError: if runs of eight times as many steps do not pass.
    """
    failing, passing, num_steps = 0, 16 * course.num_steps, course.num_steps
    margins: dict[int, float] = {}
    while passing - failing > STRIDE:
        margin = margins[num_steps] = course.margin(losses(num_steps))
        if margin >= 0:
            passing = num_steps
        elif num_steps >= 8 * course.num_steps:
            raise ValueError(f"the target of {course.target} is not reached in {num_steps} steps")
        else:
            failing = num_steps
        if failing in margins and passing in margins:
            guess = failing * (passing / failing) ** (margins[failing] / (margins[failing] - margins[passing]))
        else:
            guess = num_steps * math.exp(max(-1.0, min(1.0, -margin / SLOPE)))
        guess = STRIDE * math.ceil(guess / STRIDE)
        num_steps = min(max(guess, failing + STRIDE), passing - STRIDE, 8 * course.num_steps)
    return passing


def _sweep_row(size: str, method: OutsideMethod, swept: Swept) -> Row:
    num_steps = COURSES[size].num_steps
    return Row(
        question=f"Which loss on held-out files does a GPT of {size} parameters reach in {num_steps} steps?",
        setting={"optimizer": method.name},
        figures={
            "validation loss": swept.runs[0].losses[num_steps],
            "learning rate": swept.rate,
            "rates tried": len(swept.rates),
        },
        seeds=(TUNING_SEED,),
        note="In nats a byte, at the best learning rate of the sweep: one seed, the one that was tuned on.",
    )


def _row(size: str, method: OutsideMethod, rate: float, num_steps: int, losses: list[float]) -> Row:
    course = COURSES[size]
    return Row(
        question=f"How many steps bring a GPT of {size} parameters to {course.target} nats a byte on held-out files?",
        setting={"optimizer": method.name},
        figures={
            "steps": num_steps,
            "validation loss": statistics.fmean(losses),
            "standard deviation": statistics.stdev(losses),
            "(target - mean) sqrt(n)": (course.target - statistics.fmean(losses)) * math.sqrt(len(losses)),
            "learning rate": rate,
        },
        seeds=SEEDS,
        note=(
            f"Batches of {BATCH} windows of {CONTEXT} bytes. Entries are multiples of {STRIDE} steps that meet "
            f"(target - mean) sqrt(n) >= {course.bound:g}, those of {STRIDE} steps less do not. Rates were swept on "
            f"seed {TUNING_SEED} at {course.num_steps} steps, weight decay 0.01, cosine to zero; "
            "the learned rule has nothing to choose and is told the number of steps."
        ),
    )


if __name__ == "__main__":
    bench("speedrun", rows, packages=("torch", "pytorch_optimizer"), num_threads=1)
