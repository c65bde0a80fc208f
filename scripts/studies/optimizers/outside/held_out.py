"""What the hand-set numbers of `mulo-wide` are worth where they were not chosen: every family of tasks left out once.

`mulo-wide` is `mulo-norm` with a second layer, the gate, another noise power and no decay. For each family of the dev
and fragile panels these numbers are chosen anew, from a small grid and by the tasks of all other families, each family
with equal weight, and reported on the family left out. The form of the gate is not chosen again: it was found with all
of the dev panel in view, as the limits of steps were with the fragile one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np

from learned_opt import NormalizedRule, Pretrained
from learned_opt.meta_training.recipe import initial_theta
from learned_opt.rules.controller import NUM_MEMORY, encoded_scalars

from ....rows import Row
from .methods import OutsideMethod, learned
from .report import final, log_loss
from .tasks import OutsideTask
from .training import Run, Trainings

FAMILIES: Final = "Families that had no say in the gate's numbers: final training loss given T, to tuned AdamW + cosine"
GRID: Final = "Final training losses given T, by the gate's numbers"
NO_DECAY: Final = 1e-6

Logs = Mapping[str, float]  # task -> logarithm of the loss, to that of AdamW
SeedLogs = Mapping[str, np.ndarray]  # the same, of each seed


@dataclass(frozen=True)
class Numbers:
    """What is chosen: a multiplier of the second layer, and scalars, None for those of the base; as in `mulo-wide`."""

    gate: float = 1.0
    noise_power: float | None = 0.3
    weight_decay: float | None = NO_DECAY

    def __str__(self) -> str:
        noise = "" if self.noise_power is None else f", noise power {self.noise_power:g}"
        return f"gate {self.gate:g}{noise}" + ("" if self.weight_decay is None else ", no decay")

    def of(self, base: Pretrained) -> Pretrained:
        """The normalised rule of a base without second layer, with these numbers."""
        assert isinstance(base.rule, NormalizedRule)
        rule = NormalizedRule(embedding_offset=base.rule.embedding_offset, memory=True)
        theta = initial_theta(rule, 0, base.theta)
        theta[-NUM_MEMORY:] *= self.gate
        scalars = {"noise_power": self.noise_power, "weight_decay": self.weight_decay}
        for place, value in encoded_scalars({name: x for name, x in scalars.items() if x is not None}).items():
            theta[place] = value
        return replace(base, rule=rule, theta=theta, name=f"{base.name}, {self}")


NUMBERS: Final = tuple(Numbers(*numbers) for numbers in product((0.0, 0.5, 1.0), (None, 0.3), (None, NO_DECAY)))


def held_out_rows(
    trainings: Trainings, tasks: Sequence[OutsideTask], base: Pretrained, adamw: OutsideMethod
) -> Iterator[Row]:
    """All losses of the grid on the first seed, then each family by what the others chose, on all seeds."""
    first = Trainings(trainings.folder, trainings.seeds[:1], train_missing=trainings.train_missing)
    told = {numbers: learned(numbers.of(base))[0] for numbers in NUMBERS}
    logs: dict[Numbers, dict[str, float]] = {numbers: {} for numbers in NUMBERS}
    for task in tasks:
        reference = runs_of(first, task, adamw)
        found = {numbers: runs_of(first, task, method) for numbers, method in told.items()}
        for numbers, runs in found.items():
            logs[numbers][task.name] = log_loss(runs) - log_loss(reference)
        losses = {"AdamW": final(reference[0])} | {str(numbers): final(runs[0]) for numbers, runs in found.items()}
        yield Row(question=GRID, setting={"task": task.name}, figures=losses, seeds=first.seeds)
    families = {family: [task for task in tasks if task.family == family] for family in {task.family for task in tasks}}
    held_out: dict[str, SeedLogs] = {}
    for family, inside in sorted(families.items()):
        chosen = choice(logs, {name: group for name, group in families.items() if name != family})
        held_out[family] = {
            task.name: log_losses(runs_of(trainings, task, told[chosen])) - log_losses(runs_of(trainings, task, adamw))
            for task in inside
        }
        yield family_row(family, str(chosen), held_out[family], trainings.seeds)
    means = {family: np.mean(list(values.values()), axis=0) for family, values in held_out.items()}
    yield family_row("mean of the families", "", means, trainings.seeds)


def choice(logs: Mapping[Numbers, Logs], families: Mapping[str, Sequence[OutsideTask]]) -> Numbers:
    """The numbers of the lowest mean over these families, of each the mean over its tasks."""
    return min(
        logs,
        key=lambda numbers: np.mean(
            [np.mean([logs[numbers][task.name] for task in inside]) for inside in families.values()]
        ),
    )


def runs_of(trainings: Trainings, task: OutsideTask, method: OutsideMethod) -> tuple[Run, ...]:
    """Runs of all seeds at the best rate.

    Raises:
        ValueError: if one of them has not been trained and must not be.
    """
    if (swept := trainings.sweep(task, method, task.num_steps)) is None:
        raise ValueError(f"{method.name} on {task.name} has not been trained; leave out --report-only")
    return swept.runs


def log_losses(runs: Sequence[Run]) -> np.ndarray:
    """(seeds,) logarithms of the final losses."""
    return np.array([log_loss([run]) for run in runs])


def family_row(family: str, chosen: str, logs: SeedLogs, seeds: Sequence[int]) -> Row:
    mean = np.mean(list(logs.values()), axis=0)
    worst = max(logs, key=lambda name: logs[name].mean())
    ranges = {"geometric mean": mean, "worst": logs[worst]}
    return Row(
        question=FAMILIES,
        setting={"family left out": family, "chosen by the others": chosen},
        figures={
            "tasks": len(logs),
            "geometric mean": float(np.exp(mean.mean())),
            "worst": float(np.exp(logs[worst].mean())),
            "worst one": worst,
        },
        spread={name: (float(np.exp(one.min())), float(np.exp(one.max()))) for name, one in ranges.items()},
        seeds=seeds,
        note=(
            "Chosen on the first seed, reported on all: geometric means over seeds and their ranges; "
            "the last row is of the families, each as one."
        ),
    )
