"""What the project wants of its learned optimizers, against what was measured.

Each goal has a figure to reach and one to aim at. With several meta-seeds the verdict is that of their median, and each
is compared with its own twin of the same meta-seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from learned_opt.evaluation.comparison import Results
from learned_opt.evaluation.learned_methods import UNTRAINED_FRAME
from learned_opt.evaluation.statistics import Interval, accuracy_points, compare, diverged, nats_apart

from ...rows import Row
from .comparison import ONE_CONSTANT, REFERENCE, TUNED_MUON, Comparison

NORM: Final = "mulo-norm"
WIDE: Final = "mulo-wide"
SCALARS: Final = "mulo-norm-scalars"
STATIC: Final = "mulo-norm-static"
WIDE_SCALARS: Final = "mulo-wide-scalars"
WIDE_STATIC: Final = "mulo-wide-static"
_QUESTION: Final = "What is claimed of the learned optimizers, and does it hold?"
_WIDE_HIDDEN: Final = ("mnist14-768x3-T100",)
_STRETCHED: Final = ("digits-32-T12000", "mnist14-32x18-T400")
_LARGE_GROUPS: Final = ("main", "main and far, data never drawn")


@dataclass(frozen=True)
class Goal:
    """One line of the table; smaller is better.

    Args:
        learned: name of the optimizer.
        text: what is compared.
        reach, aim: figures.
        measure: "mean_loss" or "final_loss" as a ratio, "test points" or "val points" of accuracy lost, "val nats"
            of loss above, or "diverged" tasks.
        reference: method that is compared with; None for the twin.
        tasks: names or a group; default the main tasks, and once more those on unseen data.
        twin: learned optimizer whose method of the same meta-seed is the reference.
        surely: the whole interval must lie below 1 as well.
        worst: of the tasks, instead of their mean.
    """

    learned: str
    text: str
    reach: float
    aim: float
    measure: str
    reference: str | None = REFERENCE
    tasks: str | tuple[str, ...] | None = None
    twin: str | None = None
    surely: bool = False
    worst: bool = False


_AGAINST_TUNED: Final = (  # asked of mulo-norm and of mulo-wide
    Goal(NORM, "mean loss to tuned AdamW + cosine", 0.65, 0.5, "mean_loss"),
    Goal(NORM, "final loss to tuned AdamW + cosine", 0.3, 0.2, "final_loss"),
    Goal(NORM, "mean loss to tuned Muon + cosine", 0.95, 0.8, "mean_loss", TUNED_MUON),
    Goal(NORM, "final loss to tuned Muon + cosine", 1.0, 0.9, "final_loss", TUNED_MUON),
    *(
        Goal(NORM, f"loses accuracy to tuned Muon, points, {text}", 0.5, 0.0, measure, TUNED_MUON)
        for text, measure in (
            ("test split, both chosen on validation", "test points"),
            ("validation split, Muon at its best in hindsight", "val points"),
        )
    ),
    Goal(NORM, "worst far task, mean loss to tuned AdamW + cosine", 1.0, 0.8, "mean_loss", tasks="far", worst=True),
    Goal(NORM, "CNN with BatchNorm, mean loss to tuned AdamW + cosine", 0.7, 0.6, "mean_loss", tasks="conv"),
    Goal(
        NORM, "CNN with BatchNorm, accuracy lost to tuned AdamW + cosine, points", 0.0, 0.0, "test points", tasks="conv"
    ),
    Goal(NORM, "transformer, val loss to tuned AdamW, nats", -0.35, -0.35, "val nats", tasks="language"),
    Goal(NORM, "transformer, val loss to Muon .8, nats", 0.03, 0.0, "val nats", "Muon .8 cosine", "language"),
)
GOALS: Final = (
    Goal("mulo", "final loss to untuned AdamW 1e-3", 0.9, 0.6, "final_loss", "AdamW 1e-3 untuned"),
    Goal("mulo", "final loss to tuned AdamW + cosine", 1.15, 1.0, "final_loss"),
    Goal("mulo-wsd", "final loss to tuned AdamW + cosine", 1.15, 1.0, "final_loss"),
    *(replace(goal, learned=name) for name in (NORM, WIDE) for goal in _AGAINST_TUNED),
    Goal(NORM, "mean loss to Prodigy", 0.8, 0.6, "mean_loss", "Prodigy cosine"),
    Goal(NORM, "mean loss to Schedule-Free", 0.8, 0.6, "mean_loss", "Schedule-Free AdamW"),
    Goal(
        NORM,
        "mean loss to its untrained frame at one constant",
        0.7,
        0.5,
        "mean_loss",
        ONE_CONSTANT.format(UNTRAINED_FRAME),
        surely=True,
    ),
    *(
        Goal(learned, f"mean loss to {twin}", 1.0, 0.85, "mean_loss", None, twin=twin, surely=True)
        for learned, twins in ((NORM, (SCALARS, STATIC)), (WIDE, (WIDE_SCALARS, WIDE_STATIC)))
        for twin in twins
    ),
    Goal(NORM, "width 256 (from 16), mean loss to tuned AdamW", 1.15, 1.0, "mean_loss", tasks=("digits-256-T400",)),
    Goal(
        NORM,
        "16 times the widest trained (3072), mean loss to tuned AdamW",
        1.15,
        1.0,
        "mean_loss",
        tasks=("digits-3072-T100",),
    ),
    Goal(
        NORM,
        "hidden matrices 8 times as wide (768 x 3), mean loss to tuned AdamW",
        1.15,
        1.0,
        "mean_loss",
        tasks=_WIDE_HIDDEN,
    ),
    Goal(NORM, "horizon x5, depth x3: diverging tasks", 0, 0, "diverged", tasks=_STRETCHED),
    Goal("mulo", "horizon x5, depth x3: diverging tasks", 0, 0, "diverged", tasks=_STRETCHED),
)


def goal_rows(comparison: Comparison) -> list[Row]:
    """All goals that were measured: the figure of the median meta-seed, that of each, and whether it was reached."""
    rows, groups = [], comparison.groups()
    for goal in GOALS:
        if isinstance(goal.tasks, tuple):
            scopes = {"the tasks that the claim names": list(goal.tasks)}
        else:
            names = [goal.tasks] if goal.tasks else _LARGE_GROUPS
            scopes = {f"{name}, {len(groups[name])} tasks": groups[name] for name in names if name in groups}
        for title, tasks in scopes.items():
            if row := judge(goal, comparison, title, tasks):
                rows.append(row)
    return rows


def judge(goal: Goal, comparison: Comparison, title: str, tasks: Sequence[str]) -> Row | None:
    """What was measured on these tasks, and the verdict; None if it was not."""
    intervals = meta_seed_intervals(goal, comparison, tasks)
    if not intervals:
        return None
    ordered = sorted(intervals, key=lambda interval: interval.value)
    median = ordered[len(ordered) // 2]  # of an even number the worse one
    is_reached = median.value <= goal.reach and not (goal.surely and median.high >= 1)
    verdict = "aim reached" if median.value <= goal.aim else "reached"
    seeds = {f"meta-seed {seed}": interval.value for seed, interval in enumerate(intervals)}
    return Row(
        question=_QUESTION,
        setting={"claim": f"{goal.learned}: {goal.text}", "tasks": title},
        figures={
            "figure": median.value,
            "goal": goal.reach,
            "aim": goal.aim,
            "verdict": verdict if is_reached else "not reached",
            **(seeds if len(seeds) > 1 else {}),
        },
        spread={} if goal.measure == "diverged" else {"figure": (median.low, median.high)},
        note="Judged by the median of the meta-seeds, whose 95% bootstrap interval over tasks and seeds is given.",
    )


def meta_seed_intervals(goal: Goal, comparison: Comparison, tasks: Sequence[str]) -> list[Interval]:
    """The goal's figure for each meta-seed for which it was run."""
    methods = comparison.learned.get(goal.learned, ())
    references = comparison.learned.get(goal.twin, ()) if goal.twin else [goal.reference or ""] * len(methods)
    results, intervals = comparison.completed(tasks), []
    for method, reference in zip(methods, references, strict=False):
        with suppress(KeyError):  # not run
            parts = [[task] for task in tasks] if goal.worst else [tasks]
            measured = [measure(goal.measure, results, method, reference, part) for part in parts]
            intervals.append(max(measured, key=lambda interval: interval.value))
    return intervals


def measure(name: str, results: Results, method: str, reference: str, tasks: Sequence[str]) -> Interval:
    """A measure of `Goal` over tasks; KeyError if one of the methods was not run on them."""
    if name == "diverged":
        count = len(diverged(results[method], tasks))
        return Interval(count, count, count)
    if name.endswith(" points"):
        return accuracy_points(results[reference], results[method], tasks, name.removesuffix(" points"))
    if name == "val nats":
        return nats_apart(results[method], results[reference], tasks, "val_loss")
    return compare(results[method], results[reference], tasks, name)
