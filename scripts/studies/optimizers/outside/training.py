"""One training of a task by a method, and sweeps of its learning rate, kept in files.

All methods see the same initial weights and minibatches of a seed. What counts is the training loss of what a user
would keep, on minibatches that are the same for all: after `optimizer.eval()` where there is such a thing, with
BatchNorm on the statistics of the minibatch.

Legend: T steps of a run.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch.optim import Optimizer

from learned_opt.rules.registry import rules_digest
from zoo.settings import digest
from zoo.storage.durable import write_file

from .methods import RATE_STEP, OutsideMethod
from .problems import Problem
from .tasks import OutsideTask

FIRST_LOOK: Final = 64
MAX_RATES: Final = 9
_VERSION: Final = 1


@dataclass(frozen=True)
class Run:
    """What one training reached.

    Args:
        start: loss before the first step.
        losses: step -> loss of what would be kept then, no more than ten times `start`.
        seconds: CPU time of a step.
    """

    start: float
    losses: dict[int, float]
    seconds: float


def looks(num_steps: int) -> list[int]:
    """Powers of two from FIRST_LOOK on, up to and with T, which is one."""
    return [FIRST_LOOK << i for i in range((num_steps // FIRST_LOOK).bit_length())]


def train(task: OutsideTask, method: OutsideMethod, rate: float, num_steps: int, seed: int) -> Run:
    """Train once."""
    torch.manual_seed(seed)
    problem = task.make()
    optimizer = method.make(problem.model, rate, num_steps)
    base = [group["lr"] for group in optimizer.param_groups]
    rng, start, losses = torch.Generator().manual_seed(1000 + seed), measure(problem), {}
    is_looked_at = set(looks(num_steps)) if method.is_anytime else {num_steps}
    seconds = 0.0
    _call(optimizer, "train")
    for step in range(num_steps):
        before = time.process_time()
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * method.factor(step, num_steps)
        optimizer.zero_grad()
        loss = problem.loss(rng)
        loss.backward()
        optimizer.step()
        seconds += time.process_time() - before
        if step + 1 in is_looked_at:
            _call(optimizer, "eval")
            losses[step + 1] = min(measure(problem), 10 * start)
            _call(optimizer, "train")
    return Run(start, losses, seconds / num_steps)


def measure(problem: Problem) -> float:
    """Loss to be judged by, on minibatches that are always the same; infinite where it is no number."""
    rng, loss = torch.Generator().manual_seed(0), problem.measured or problem.loss
    losses = torch.stack([loss(rng).detach() for _ in range(problem.num_measured)])
    return float(losses.mean().nan_to_num(float("inf"), float("inf")))


def _call(optimizer: Optimizer, mode: str) -> None:
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


@dataclass(frozen=True)
class Swept:
    """The best of the learning rates that were tried."""

    rate: float
    rates: tuple[float, ...]
    runs: tuple[Run, ...]  # at the best rate, of each seed

    @property
    def is_inside(self) -> bool:
        """Whether lower and higher rates were worse."""
        return len(self.rates) == 1 or min(self.rates) < self.rate < max(self.rates)


class Trainings:
    """Trainings that are kept in a folder, so that only what is missing is run.

    Args:
        folder: for the files, one a training.
        seeds: the first decides on the learning rate, the others are trained at it alone.
        train_missing: False leaves out what the folder lacks.
    """

    def __init__(self, folder: Path, seeds: tuple[int, ...] = (0,), *, train_missing: bool = True) -> None:
        self.folder = folder
        self.seeds = seeds
        self.train_missing = train_missing
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, task: OutsideTask, method: OutsideMethod, rate: float, num_steps: int, seed: int) -> Run | None:
        """One training, from its file if there is one."""
        settings = {
            "version": _VERSION,
            "task": task.name,
            "method": f"{rules_digest()} {method.identity}" if method.identity else method.name,
            "rate": f"{rate:.4g}",
            "num_steps": num_steps,
            "seed": seed,
        }
        path = self.folder / f"{task.name}-{digest(settings)[:20]}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            return Run(kept["start"], {int(step): loss for step, loss in kept["losses"].items()}, kept["seconds"])
        if not self.train_missing:
            return None
        run = train(task, method, rate, num_steps, seed)
        write_file(path, [json.dumps(asdict(run) | settings).encode()])
        return run

    def sweep(self, task: OutsideTask, method: OutsideMethod, num_steps: int) -> Swept | None:
        """Rates are added below and above until the best one has worse neighbours; None if a training is missing."""
        tried: dict[float, Run] = {}
        wanted = list(method.rates)
        while wanted:
            for rate in wanted:
                if (run := self.run(task, method, rate, num_steps, self.seeds[0])) is None:
                    return None
                tried[rate] = run
            best = min(tried, key=lambda rate: tried[rate].losses[num_steps])
            wanted = [] if len(method.rates) == 1 or len(tried) >= MAX_RATES else _beyond(best, tried)
        others = [self.run(task, method, best, num_steps, seed) for seed in self.seeds[1:]]
        if None in others:
            return None
        return Swept(best, tuple(sorted(tried)), (tried[best], *(run for run in others if run)))


def _beyond(best: float, tried: dict[float, Run]) -> list[float]:
    """The next rate where the best is the lowest or highest of those tried."""
    if best == min(tried):
        return [best / RATE_STEP]
    return [best * RATE_STEP] if best == max(tried) else []
