"""Tables (Markdown) of an evaluation.

Legend: K tasks, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from scipy import stats

from learned_opt.evaluation.comparison import Result, Results, joined
from learned_opt.evaluation.learned_methods import UNTRAINED_FRAME
from learned_opt.evaluation.statistics import Estimate, accuracy_points, compare, diverged
from learned_opt.evaluation.tasks import EvaluationTask

REFERENCE: Final = "AdamW cosine"
TUNED_MUON: Final = "Muon cosine, lr and momentum tuned"
ONE_CONSTANT: Final = "{}, one constant"
_MUON_PREFIX: Final = "Muon "
_SPREAD_GROUPS: Final = ("main", "far")  # of many tasks, over which ratios are averaged


@dataclass(frozen=True)
class Evaluation:
    """Finished results and what they are of.

    Args:
        results: of every method.
        tasks: all of them.
        learned: name of a learned optimizer -> its methods, one a meta-seed, in the same order for all names.
        shipped: name in the package -> the method among them that has its weights.
    """

    results: Results
    tasks: Sequence[EvaluationTask]
    learned: Mapping[str, Sequence[str]]
    shipped: Mapping[str, str] = field(default_factory=dict)

    def groups(self) -> dict[str, list[EvaluationTask]]:
        """Tasks by title of the table: each group, and what meta-training never drew of the large ones."""
        groups: dict[str, list[EvaluationTask]] = {}
        for task in self.tasks:
            groups.setdefault(task.group, []).append(task)
        if unseen := self.unseen():
            groups["main and far, data sets that meta-training never draws"] = unseen
        return groups

    def unseen(self) -> list[EvaluationTask]:
        """Tasks of the main and far groups on data that meta-training never draws."""
        return [task for task in self.tasks if task.group in _SPREAD_GROUPS and not task.seen_data]

    def completed(self, names: Sequence[str]) -> Results:
        """Methods that have all these tasks, with tuned Muon and single constants among them."""
        shown = with_tuned_muon(_complete(self.results, names))
        if len(names) > 1:
            for method in (UNTRAINED_FRAME, REFERENCE):
                if method in shown:
                    shown = with_one_constant(shown, method, names)
        return shown


def with_tuned_muon(results: Results) -> Results:
    """Results with one more method: Muon at the best of its momenta and learning rates for each task."""
    variants = [name for name in results if name.startswith(_MUON_PREFIX)]
    if len(variants) < 2:
        return results
    tasks = set.intersection(*(set(results[name]) for name in variants))
    merged = {task: joined([results[name][task] for name in variants]) for task in tasks}
    return {**results, TUNED_MUON: merged}


def with_one_constant(results: Results, method: str, tasks: Sequence[str]) -> Results:
    """Results with one more method: `method` at the single setting that is best over all tasks together."""
    by_task = results[method]
    logs = np.stack([np.log(by_task[task].measure("mean_loss")).mean(1) for task in tasks])  # (K, H)
    best = int(logs.mean(0).argmin())
    return {**results, ONE_CONSTANT.format(method): {task: by_task[task].setting(best) for task in tasks}}


def report(evaluation: Evaluation) -> str:
    """The whole evaluation: for each group a summary and every task, then what diverged."""
    parts = []
    for title, tasks in evaluation.groups().items():
        names = [task.name for task in tasks]
        shown = evaluation.completed(names)
        if REFERENCE not in shown:
            continue
        parts.append(f"### {title}: {len(tasks)} task{'s' * (len(tasks) > 1)}")
        if len(tasks) > 1:
            parts += [summary_table(shown, names, REFERENCE), task_table(shown, names, REFERENCE)]
        else:
            parts.append(single_task_table(shown, names[0]))
    parts += ["### Networks that ended above the loss they began with", divergence_list(evaluation)]
    return "\n\n".join(parts)


def summary_table(results: Results, tasks: Sequence[str], reference: str) -> str:
    """One line a method: geometric means of ratios to the reference, differences of accuracy, cost."""
    lines = [
        f"| method, against {reference} | mean loss, ratio | final loss, ratio | test accuracy, points "
        "| the same in hindsight | CPU ms a step |",
        "|---|---|---|---|---|---|",
    ]
    for method, by_task in results.items():
        milliseconds = 1e3 * np.mean([np.mean(by_task[task].seconds) for task in tasks])
        lines.append(f"| {method} | {_cells(by_task, results[reference], tasks)} | {milliseconds:.2f} |")
    return "\n".join(lines)


def against_table(results: Results, method: str, others: Sequence[str], tasks: Sequence[str]) -> str:
    """One line for each of the others: `method` relative to it."""
    lines = [
        f"| {method} against | mean loss, ratio | final loss, ratio | test accuracy, points | the same in hindsight |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {other} | {_cells(results[method], results[other], tasks)} |" for other in others if other in results]
    return "\n".join(lines)


def task_table(results: Results, tasks: Sequence[str], reference: str) -> str:
    """One line a task: mean training loss of the reference in nats, and the ratio of every method to it."""
    others = [method for method in results if method != reference]
    lines = [f"| task | {reference} | {' | '.join(others)} |", "|---|---" + "|---" * len(others) + "|"]
    for name in tasks:
        base = results[reference][name].tuned("mean_loss").mean()
        ratios = [f"{results[method][name].tuned('mean_loss').mean() / base:.2f}" for method in others]
        lines.append(f"| {name} | {base:.4f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def single_task_table(results: Results, task: str) -> str:
    """One line a method, in nats with 95% intervals over seeds, and the learning rate it likes best."""
    lines = [
        f"| {task} | mean loss | final loss | val loss | test loss | test accuracy % | the same in hindsight "
        "| learning rate of the best mean loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, by_task in results.items():
        result = by_task[task]
        losses = [seed_interval(result.tuned(name)) for name in ("mean_loss", "final_loss", "val_loss", "test_loss")]
        accuracies = [
            f"{100 * (1 - errors.mean()):.1f}" for errors in (result.tuned("test_error"), result.oracle("test_error"))
        ]
        lines.append(f"| {method} | {' | '.join([*losses, *accuracies])} | {_favourite(result)} |")
    return "\n".join(lines)


def divergence_list(evaluation: Evaluation) -> str:
    """One line a method: the tasks on which networks of its best setting ended above the loss they began with."""
    lines = []
    for method, by_task in evaluation.results.items():
        tasks = [task.name for task in evaluation.tasks if task.name in by_task]
        lines.append(f"- {method}: {', '.join(diverged(by_task, tasks)) or 'none'} (of {len(tasks)} tasks)")
    return "\n".join(lines)


def points(estimate: Estimate) -> str:
    """Signed percentage points with their interval."""
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def seed_interval(values: np.ndarray) -> str:
    """Mean over seeds (S,) with half the width of its 95% interval by Student's t."""
    half_width = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.4f} ± {half_width:.4f}"


def _cells(by_task: Mapping[str, Result], reference: Mapping[str, Result], tasks: Sequence[str]) -> str:
    mean, final = (compare(by_task, reference, tasks, measure) for measure in ("mean_loss", "final_loss"))
    chosen, hindsight = (accuracy_points(by_task, reference, tasks, oracle=oracle) for oracle in (False, True))
    return f"{mean} | {final} | {points(chosen)} | {points(hindsight)}"


def _favourite(result: Result) -> str:
    """The learning rate with the lowest mean loss, and whether it lies at the edge of several."""
    rates, best = result.learning_rates, result.best("mean_loss")
    if len(rates) == 1:
        return f"{rates[0]:g}, no choice"
    edge = ", at the edge" if rates[best] in (min(rates), max(rates)) else ""
    return f"{rates[best]:g} of {len(set(rates))}{edge}"


def _complete(results: Results, tasks: Sequence[str]) -> Results:
    return {method: by_task for method, by_task in results.items() if all(task in by_task for task in tasks)}
