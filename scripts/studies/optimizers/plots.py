"""Pictures of a comparison of optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from learned_opt.evaluation.comparison import Results
from learned_opt.evaluation.statistics import compare

from .comparison import REFERENCE, Comparison


def plot_all(comparison: Comparison, out: Path) -> None:
    """`ratios-<group>.png` and `curves-<group>.png` of every group that has the reference, in the folder `out`."""
    for title, tasks in comparison.groups().items():
        shown = comparison.completed(tasks)
        if REFERENCE in shown:
            suffix = title.replace(",", "").replace(" ", "-")
            plot_ratios(shown, tasks, REFERENCE, out / f"ratios-{suffix}.png")
            plot_curves(shown, tasks, out / f"curves-{suffix}.png")


def plot_ratios(results: Results, tasks: Sequence[str], reference: str, path: Path) -> None:
    """Mean loss of every method relative to the reference, with intervals, as a picture."""
    import matplotlib.pyplot as plt

    ratios = {method: compare(by_task, results[reference], tasks, "mean_loss") for method, by_task in results.items()}
    ordered = sorted(ratios, key=lambda method: -ratios[method].value)
    figure, axes = plt.subplots(figsize=(7, 0.35 * len(ordered) + 1), layout="constrained")
    for row, method in enumerate(ordered):
        ratio = ratios[method]
        axes.plot([ratio.low, ratio.high], [row, row], color="tab:blue")
        axes.plot(ratio.value, row, "o", color="tab:blue")
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(ordered)), ordered)
    axes.set_xlabel(f"mean training loss / {reference}: geometric mean over {len(tasks)} tasks, 95% interval")
    figure.savefig(path)
    plt.close(figure)


def plot_curves(results: Results, tasks: Sequence[str], path: Path) -> None:
    """Training loss against the share of the run, a panel for each task."""
    import matplotlib.pyplot as plt

    num_columns = min(3, len(tasks))
    num_rows = -(-len(tasks) // num_columns)
    figure, grid = plt.subplots(
        num_rows, num_columns, figsize=(4.2 * num_columns, 3 * num_rows), layout="constrained", squeeze=False
    )
    for axes, task in zip(grid.flat, tasks, strict=False):
        for method, by_task in results.items():
            result = by_task[task]
            curve = result.curve[result.best("mean_loss")]
            axes.plot(np.linspace(0, 1, len(curve)), curve, label=method, linewidth=1)
        axes.set_yscale("log")
        axes.set_title(task, fontsize=9)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    figure.supxlabel("share of the run")
    figure.supylabel("training loss (nats)")
    figure.savefig(path)
    plt.close(figure)
