"""Tables of the panel: each method against tuned AdamW, all losses, and what is kept at every power of two steps.

Ratios are of losses to which a ten-thousandth of the loss before training is added, so that a task that is solved does
not decide a mean.

Legend: K tasks, T steps of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from ....rows import Row
from .methods import OutsideMethod
from .tasks import OutsideTask
from .training import Run, Swept, Trainings, looks

REFERENCE: Final = "AdamW"
FLOOR: Final = 1e-4  # of the loss before training
SUMMARY: Final = "Final training loss on other people's tasks, to AdamW + cosine tuned for each task"
LOSSES: Final = "Final training losses on other people's tasks"
ANYTIME: Final = "Training loss of what is kept after so many steps, to AdamW + cosine tuned for exactly that many"


def panel_rows(
    trainings: Trainings,
    tasks: Sequence[OutsideTask],
    rivals: Sequence[OutsideMethod],
    learned: Sequence[OutsideMethod],
) -> Iterator[Row]:
    """Rows of all tables; what was not trained is left out."""
    swept: dict[str, dict[str, Swept]] = {}
    for task in tasks:
        found = {method.name: trainings.sweep(task, method, task.num_steps) for method in (*rivals, *learned)}
        swept[task.name] = with_tuned_muon({name: result for name, result in found.items() if result})
        yield from loss_rows(task, swept[task.name], trainings.seeds)
    names = list(dict.fromkeys(name for found in swept.values() for name in found))
    for panel in dict.fromkeys(task.panel for task in tasks):
        inside = [task.name for task in tasks if task.panel == panel and REFERENCE in swept[task.name]]
        yield from summary_rows(panel, {name: swept[name] for name in inside}, names, trainings.seeds)
    adamw = [method for method in rivals if method.name == REFERENCE]
    for method in (method for method in (*rivals, *learned) if method.is_anytime):
        for reference in (*adamw, *(method for method in learned if not method.is_anytime)):
            yield from anytime_rows(trainings, tasks, method, reference)


def with_tuned_muon(swept: Mapping[str, Swept]) -> dict[str, Swept]:
    """With one more method: Muon at the better of its momenta."""
    variants = [result for name, result in swept.items() if name.startswith("Muon ")]
    if len(variants) < 2:
        return dict(swept)
    return {**swept, "Muon, momentum tuned": min(variants, key=lambda result: final(result.runs[0]))}


def final(run: Run) -> float:
    """Loss after the last step."""
    return run.losses[max(run.losses)]


def log_loss(runs: Sequence[Run], step: int | None = None) -> float:
    """Mean over seeds of the logarithm of the loss, at the end or after `step` steps, with the floor."""
    values = [(final(run) if step is None else run.losses[step]) + FLOOR * run.start for run in runs]
    return float(np.log(values).mean())


def loss_rows(task: OutsideTask, swept: Mapping[str, Swept], seeds: Sequence[int]) -> Iterator[Row]:
    """Median loss over seeds of each method, its range and rate."""
    for name, result in swept.items():
        losses = [final(run) for run in result.runs]
        yield Row(
            question=LOSSES,
            setting={"panel": task.panel, "task": task.name, "steps": task.num_steps, "method": name},
            figures={
                "final loss": float(np.median(losses)),
                "loss at first": result.runs[0].start,
                "learning rate": result.rate,
                "rates tried": len(result.rates),
                "best inside": result.is_inside,
            },
            spread={"final loss": (min(losses), max(losses))},
            seeds=seeds,
            note="Median and range over seeds; the learning rate was chosen on the first.",
        )


def summary_rows(
    panel: str, swept: Mapping[str, Mapping[str, Swept]], names: Sequence[str], seeds: Sequence[int]
) -> Iterator[Row]:
    """Geometric mean, median and worst ratio of each method, and the share of tasks on which it is the better one."""
    for name in names:
        logs = {
            task: log_loss(found[name].runs) - log_loss(found[REFERENCE].runs)
            for task, found in swept.items()
            if name in found
        }
        if not logs:
            continue
        worst = max(logs, key=lambda task: logs[task])
        values = np.array(list(logs.values()))
        yield Row(
            question=SUMMARY,
            setting={"panel": panel, "method": name},
            figures={
                "tasks": len(logs),
                "geometric mean": float(np.exp(values.mean())),
                "median": float(np.exp(np.median(values))),
                "worst": float(np.exp(values.max())),
                "worst task": worst,
                "better than AdamW, % of tasks": 100 * float((values < 0).mean()),
            },
            seeds=seeds,
            note="Hand-made optimizers were swept in steps of 10^.5 on the first seed.",
        )


def anytime_rows(
    trainings: Trainings, tasks: Sequence[OutsideTask], method: OutsideMethod, reference: OutsideMethod
) -> Iterator[Row]:
    """A method that knows no horizon after every power of two steps, against one that is made for so many."""
    ratios: dict[tuple[str, int], dict[str, float]] = {}
    for task in tasks:
        ours = trainings.sweep(task, method, task.num_steps)
        for step in looks(task.num_steps):
            theirs = trainings.sweep(task, reference, step)
            if ours and theirs:
                found = ratios.setdefault((task.panel, step), {})
                found[task.name] = log_loss(ours.runs, step) - log_loss(theirs.runs)
    for (panel, step), logs in sorted(ratios.items()):
        worst, values = max(logs, key=lambda task: logs[task]), np.array(list(logs.values()))
        yield Row(
            question=ANYTIME if reference.name == REFERENCE else f"The same, to {reference.name}",
            setting={"panel": panel, "method": method.name, "steps": step},
            figures={
                "tasks": len(logs),
                "geometric mean": float(np.exp(values.mean())),
                "worst": float(np.exp(values.max())),
                "worst task": worst,
            },
            seeds=trainings.seeds,
        )
