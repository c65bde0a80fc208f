"""Figures of a comparison of optimizers, as rows.

Legend: S seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from scipy import stats

from learned_opt.evaluation.comparison import Result, Results
from learned_opt.evaluation.learned_methods import UNTRAINED_FRAME
from learned_opt.evaluation.statistics import Interval, accuracy_points, compare, diverged

from ...rows import Row
from .comparison import ONE_CONSTANT, REFERENCE, TUNED_MUON, Comparison
from .goals import NORM, SCALARS, STATIC, WIDE_SCALARS, WIDE_STATIC

HOW_TO_READ: Final = """How to read it:

- Every method sees the same initialisations and minibatches of a seed. Ratios are geometric means over tasks and seeds,
  with 95% bootstrap intervals over both. Final loss: last 5% of the steps, + 0.001 nats.
- A rival with a learning rate is tuned on each task. Training losses stand at the setting that is best for that very
  loss: the most that tuning can give. **Test accuracy stands at the setting of the best validation accuracy**, so it is
  chosen and reported on different examples; "in hindsight" takes the best test accuracy itself, which nobody can know.
- "Muon, lr and momentum tuned" takes the better of momentum .95 and .8 as well. Prodigy (lr 1, cosine) and
  Schedule-Free AdamW (lr 2.5e-3) are at their defaults. Lion is tried at a tenth of the learning rates. Celo2, if
  it stands in the tables: the weights that PyLO released (BSD-3), tuned rates, cosine, without weight decay.
- "untrained frame" is the hand-made part of `mulo-norm` with its controller off, at the best of five multiples a task;
  "one constant" is the single best setting for all tasks of a table. `mulo-norm-scalars` has learned constants and no
  layer of feedback; `mulo-norm` is trained on from there, so the scalars alone were trained for less.
  `mulo-norm-static` is trained on for as long, with a layer that sees nothing of the gradients. Only what `mulo-norm`
  gains over these is owed to its layer. `mulo-wide-scalars` and `mulo-wide-static` are these two with the noise power
  of `mulo-wide` and without decay, but without its gate; `mulo-wide-gate` is the former with the gate.
- `mulo` knows no horizon and its step stays as large as it is. `mulo-wsd` is the same with its multiplier decayed to
  zero in the last fifth, as a user who knows the horizon would do; the fifth was chosen on other tasks.
- Meta-training draws the digits too, but no MNIST and no MNIST-1D. Inputs are standardised, MLPs begin with He's
  initialisation; AdamW has weight decay .01, Muon .1. Muon is that of torch.optim, which takes
  matrices alone, outputs left to AdamW: on the CNN, whose kernels are none, it is AdamW throughout.
- CPU time of a step and network, gradients included: AdamW, Muon and the learned rules run batched, the others network
  by network. The record of step costs compares what users run.
- With several meta-seeds a claim is judged by their median; the interval is that of the median seed."""

_OVER_TASKS: Final = "How do the optimizers compare over all tasks of a group?"
_SINGLE: Final = "How do they compare on a CNN and on a transformer?"
_BY_TASK: Final = "Mean training loss, {} tasks: AdamW cosine in nats, the others as a ratio to it"
_DIVERGED: Final = "How many tasks have networks that ended above the loss they began with?"
_OTHERS: Final = (
    REFERENCE,
    ONE_CONSTANT.format(REFERENCE),
    TUNED_MUON,
    "Muon .8 cosine",
    "Celo2 cosine",
    "Prodigy cosine",
    "Schedule-Free AdamW",
    "AdamW 1e-3 untuned",
    ONE_CONSTANT.format(UNTRAINED_FRAME),
    NORM,
    SCALARS,
    STATIC,
    WIDE_SCALARS,
    WIDE_STATIC,
)


def comparison_rows(comparison: Comparison) -> list[Row]:
    """All methods against the reference, group by group and task by task, and what diverged."""
    rows: list[Row] = []
    for title, tasks in comparison.groups().items():
        shown = comparison.completed(tasks)
        if REFERENCE not in shown:
            continue
        if len(tasks) == 1:
            rows += [single_task_row(method, by_task[tasks[0]], tasks[0]) for method, by_task in shown.items()]
            continue
        rows += [ratio_row(title, tasks, method, REFERENCE, shown, with_cost=True) for method in shown]
        if "," not in title:  # the tasks of other titles have rows already
            rows += _rows_by_task(title, tasks, shown)
    for method, by_task in comparison.results.items():
        names = [task.name for task in comparison.tasks if task.name in by_task]
        figures = {"tasks with such networks": len(diverged(by_task, names)), "tasks": len(names)}
        rows.append(Row(question=_DIVERGED, setting={"method": method}, figures=figures))
    return rows


def card_rows(comparison: Comparison, method: str) -> list[Row]:
    """What one learned optimizer measures against the others, group by group.

    The learned ones among these are those of the same place in their groups, so of the same meta-seed.
    """
    place = next((list(group).index(method) for group in comparison.learned.values() if method in group), 0)
    others: list[str] = []
    for other in _OTHERS:
        group = comparison.learned.get(other)
        others += [other] if group is None else list(group[place : place + 1])
    rows: list[Row] = []
    for title, tasks in comparison.groups().items():
        shown = comparison.completed(tasks)
        rivals = [other for other in others if other in shown and other != method]
        if method not in shown or not rivals:
            continue
        if len(tasks) > 1:
            rows += [ratio_row(title, tasks, method, other, shown) for other in rivals]
        else:
            rows += [single_task_row(name, shown[name][tasks[0]], tasks[0]) for name in (method, *rivals)]
    return rows


def ratio_row(
    title: str, tasks: Sequence[str], method: str, reference: str, results: Results, *, with_cost: bool = False
) -> Row:
    """A method against another over all tasks of a group."""
    mine, theirs = results[method], results[reference]
    intervals: dict[str, Interval] = {
        "mean loss, ratio": compare(mine, theirs, tasks, "mean_loss"),
        "final loss, ratio": compare(mine, theirs, tasks, "final_loss"),
        "test accuracy, points": accuracy_points(mine, theirs, tasks),
        "test accuracy in hindsight, points": accuracy_points(mine, theirs, tasks, oracle=True),
    }
    figures = {name: interval.value for name, interval in intervals.items()}
    if with_cost:
        figures["CPU ms a step"] = float(1e3 * np.mean([np.mean(mine[task].seconds) for task in tasks]))
    return Row(
        question=_OVER_TASKS,
        setting={"tasks": f"{title}, {len(tasks)} tasks", "method": method, "against": reference},
        figures=figures,
        spread={name: (interval.low, interval.high) for name, interval in intervals.items()},
        note="Geometric means over tasks and seeds, with 95% bootstrap intervals over both.",
    )


def single_task_row(method: str, result: Result, task: str) -> Row:
    """What a method measures on one task, in nats, and the learning rate that it likes best."""
    losses = {f"{kind} loss": result.tuned(f"{kind}_loss") for kind in ("mean", "final", "val", "test")}
    rates, best = result.learning_rates, result.best("mean_loss")
    edge = ", at the edge" if len(rates) > 1 and rates[best] in (min(rates), max(rates)) else ""
    return Row(
        question=_SINGLE,
        setting={"task": task, "method": method},
        figures={
            **{name: float(values.mean()) for name, values in losses.items()},
            "test accuracy, %": 100 * float(1 - result.tuned("test_error").mean()),
            "test accuracy in hindsight, %": 100 * float(1 - result.oracle("test_error").mean()),
            "learning rate of the best mean loss": rates[best],
            "chosen among": f"{len(set(rates))}{edge}" if len(rates) > 1 else "no choice",
        },
        spread={name: seed_interval(values) for name, values in losses.items()},
        note="Mean over seeds, with its 95% interval by Student's t.",
    )


def seed_interval(values: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean over seeds (S,) by Student's t."""
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    return float(low), float(high)


def _rows_by_task(title: str, tasks: Sequence[str], results: Results) -> Iterator[Row]:
    def losses(by_task: Mapping[str, Result]) -> dict[str, float]:
        return {task: float(by_task[task].tuned("mean_loss").mean()) for task in tasks}

    base, question = losses(results[REFERENCE]), _BY_TASK.format(title)
    yield Row(question=question, setting={"method": f"{REFERENCE}, nats"}, figures=base)
    for method, by_task in results.items():
        if method != REFERENCE:
            ratios = {task: loss / base[task] for task, loss in losses(by_task).items()}
            yield Row(question=question, setting={"method": method}, figures=ratios)
