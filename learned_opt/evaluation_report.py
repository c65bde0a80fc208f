"""Tables (Markdown) and plots of an evaluation.

Legend: K tasks, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from learned_opt.evaluate import Ratio, Result, Results, geometric_ratio, log_values, mean_difference
from learned_opt.evaluation_tasks import EvaluationTask
from learned_opt.rivals import UNTRAINED_FRAME

TUNED_MUON: Final = "Muon cosine, lr and momentum tuned"
_MUON_PREFIX: Final = "Muon "


def with_tuned_muon(results: Results) -> Results:
    """Results with one more method: Muon at the best of its momenta and learning rates for each task."""
    variants = [name for name in results if name.startswith(_MUON_PREFIX)]
    if len(variants) < 2:
        return results
    tasks = set.intersection(*(set(results[name]) for name in variants))
    merged = {task: _joined([results[name][task] for name in variants]) for task in tasks}
    return {**results, TUNED_MUON: merged}


def with_one_constant(results: Results, method: str, tasks: Sequence[str]) -> Results:
    """Results with one more method: `method` at the single setting that is best over all tasks together."""
    by_task = results[method]
    logs = np.stack([np.log(by_task[task].measure("mean_loss")).mean(1) for task in tasks])  # (K, H)
    best = int(logs.mean(0).argmin())
    return {**results, f"{method}, one constant": {task: _setting(by_task[task], best) for task in by_task}}


def report(results: Results, tasks: Sequence[EvaluationTask], reference: str) -> str:
    """The whole evaluation in Markdown: a summary for each group and for unseen data, and every task."""
    parts = []
    groups = list(dict.fromkeys(task.group for task in tasks))
    subsets = [(group, [task for task in tasks if task.group == group]) for group in groups]
    unseen = [task for task in tasks if task.group in ("main", "far") and not task.seen_data]
    if unseen:
        subsets.append(("main and far, data sets that meta-training never draws", unseen))
    for title, chosen in subsets:
        names = [task.name for task in chosen]
        shown = results
        for method in (UNTRAINED_FRAME, reference):
            if method in results and all(name in results[method] for name in names):
                shown = with_one_constant(shown, method, names)
        parts += [f"### {title}: {len(chosen)} tasks", summary_table(shown, chosen, reference)]
        parts.append(task_table(shown, chosen, reference))
    return "\n\n".join(parts)


def summary_table(results: Results, tasks: Sequence[EvaluationTask], reference: str) -> str:
    """One line a method: geometric means of ratios to the reference, and the difference of accuracy.

    Methods that lack one of the tasks are left out.
    """
    names = [task.name for task in tasks]
    lines = [
        f"| method, against {reference} | mean loss, ratio | final loss, ratio | accuracy, points |",
        "|---|---|---|---|",
    ]
    for method, by_task in _complete(results, names).items():
        mean = compare(by_task, results[reference], names, "mean_loss")
        final = compare(by_task, results[reference], names, "final_loss")
        accuracy = accuracy_difference(by_task, results[reference], names)
        points = f"{100 * accuracy.value:+.2f} [{100 * accuracy.low:+.2f}, {100 * accuracy.high:+.2f}]"
        lines.append(f"| {method} | {mean} | {final} | {points} |")
    return "\n".join(lines)


def task_table(results: Results, tasks: Sequence[EvaluationTask], reference: str) -> str:
    """One line a task: mean training loss of the reference in nats, and the ratio of every method to it."""
    names = [task.name for task in tasks]
    complete = _complete(results, names)
    others = [method for method in complete if method != reference]
    lines = [f"| task | {reference} | {' | '.join(others)} |", "|---|---" + "|---" * len(others) + "|"]
    for name in names:
        base = results[reference][name].tuned("mean_loss").mean()
        ratios = [f"{complete[method][name].tuned('mean_loss').mean() / base:.2f}" for method in others]
        lines.append(f"| {name} | {base:.4f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def compare(
    results: Mapping[str, Result], reference: Mapping[str, Result], tasks: Sequence[str], measure: str
) -> Ratio:
    """Geometric mean over tasks of a loss relative to the reference's, each at its best setting for each task."""
    return geometric_ratio(log_values(results, tasks, measure), log_values(reference, tasks, measure))


def accuracy_difference(results: Mapping[str, Result], reference: Mapping[str, Result], tasks: Sequence[str]) -> Ratio:
    """Mean over tasks of the difference in validation accuracy, a fraction."""
    return mean_difference(_errors(reference, tasks), _errors(results, tasks))


def diverged(results: Mapping[str, Result], tasks: Sequence[str]) -> list[str]:
    """Tasks on which a network of the best setting ended above the loss it began with."""
    return [task for task in tasks if results[task].tuned("final_loss").max() > results[task].curve[0][0]]


def plot_ratios(results: Results, tasks: Sequence[EvaluationTask], reference: str, path: Path) -> None:
    """Mean loss of every method relative to the reference, with intervals, as a picture."""
    import matplotlib.pyplot as plt

    names = [task.name for task in tasks]
    methods = _complete(results, names)
    ratios = {method: compare(by_task, results[reference], names, "mean_loss") for method, by_task in methods.items()}
    ordered = sorted(ratios, key=lambda method: -ratios[method].value)
    figure, axes = plt.subplots(figsize=(7, 0.35 * len(ordered) + 1), layout="constrained")
    for row, method in enumerate(ordered):
        ratio = ratios[method]
        axes.plot([ratio.low, ratio.high], [row, row], color="tab:blue")
        axes.plot(ratio.value, row, "o", color="tab:blue")
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(ordered)), ordered)
    axes.set_xlabel(f"mean training loss / {reference}: geometric mean over {len(names)} tasks, 95% interval")
    figure.savefig(path)
    plt.close(figure)


def plot_curves(results: Results, tasks: Sequence[EvaluationTask], methods: Sequence[str], path: Path) -> None:
    """Training loss against the share of the run, a panel for each task."""
    import matplotlib.pyplot as plt

    num_columns = min(3, len(tasks))
    num_rows = -(-len(tasks) // num_columns)
    figure, grid = plt.subplots(
        num_rows, num_columns, figsize=(4.2 * num_columns, 3 * num_rows), layout="constrained", squeeze=False
    )
    for axes, task in zip(grid.flat, tasks, strict=False):
        for method in methods:
            result = results[method].get(task.name)
            if result is not None:
                curve = result.curve[result.best("mean_loss")]
                axes.plot(np.linspace(0, 1, len(curve)), curve, label=method, linewidth=1)
        axes.set_yscale("log")
        axes.set_title(task.name, fontsize=9)
    grid.flat[0].legend(fontsize=7)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    figure.supxlabel("share of the run")
    figure.supylabel("training loss (nats)")
    figure.savefig(path)
    plt.close(figure)


def _complete(results: Results, tasks: Sequence[str]) -> Results:
    return {method: by_task for method, by_task in results.items() if all(task in by_task for task in tasks)}


def _errors(results: Mapping[str, Result], tasks: Sequence[str]) -> NDArray[np.float64]:
    return np.stack([results[task].tuned("val_error") for task in tasks])  # (K, S)


def _setting(result: Result, index: int) -> Result:
    """The result of a single setting."""
    fields = {name: [values[index]] for name, values in asdict(result).items() if name != "seconds"}
    return Result(**fields, seconds=result.seconds)


def _joined(results: Sequence[Result]) -> Result:
    """One result with the settings of several."""
    fields = [asdict(result) for result in results]
    seconds = float(np.mean([result.seconds for result in results]))
    joined = {
        name: list(chain.from_iterable(entry[name] for entry in fields)) for name in fields[0] if name != "seconds"
    }
    return Result(**joined, seconds=seconds)
