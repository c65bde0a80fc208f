"""The charts of the demo's page, each from the record of one stage.

Legend: K prompts, S snapshots or pieces of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from ..demo_stages import tables
from ..demo_stages.optimize import ADAMW, MULO, MULO_TOLD_STEPS, TUNED
from .chart import LIGHT, Chart

BLUE, ORANGE, GREEN, GREY, INK = (LIGHT[name] for name in ("blue", "orange", "green", "grey", "ink"))
NETWORK_KINDS: Final = {
    "generated": ("generated", BLUE),
    "held-out runs": ("held-out runs", GREEN),
    "noise 0.05": ("copy + 5% noise", GREY),
    "noise 0.1": ("copy + 10% noise", GREY),
    "noise 0.2": ("copy + 20% noise", GREY),
    "average of 4": ("average of 4", GREY),
}
TABLE_METHODS: Final = dict(
    zip(tables.SHOWN, (("o", BLUE, 8), ("D", ORANGE, 5), ("s", GREEN, 5), ("|", GREY, 10)), strict=True)
)
_BAND: Final[dict[str, Any]] = {"alpha": 0.2, "linewidth": 0}
METHOD_COLOURS: Final = {ADAMW: "grey", TUNED: "orange", MULO: "green", MULO_TOLD_STEPS: "blue"}


def training_fan(axes: Axes, data: Mapping[str, Any]) -> None:
    """Validation loss of the zoo's runs over their training."""
    lowest, low, middle, high, highest = data["val_loss"]
    steps = _step_axis(axes, data["steps"])
    axes.fill_between(steps, lowest, highest, color=BLUE, **_BAND, label="5-95% of runs")
    axes.fill_between(steps, low, high, color=BLUE, **_BAND, label="25-75%")
    axes.plot(steps, middle, color=BLUE, label="median")
    _loss_axis(axes, "validation loss, nats")


def prompted_and_achieved(axes: Axes, data: Mapping[str, Any]) -> None:
    """What was asked for, and what unseen networks have after one update."""
    prompts = data["prompts"]
    lowest, low, middle, high, highest = data["achieved"]["one update"]
    ends = [min(prompts), max(prompts)]
    axes.plot(ends, ends, color=INK, linewidth=1.3, linestyle=(0, (4, 3)), label="what was asked for")
    axes.vlines(prompts, lowest, highest, BLUE, linewidth=1.3)
    axes.vlines(prompts, low, high, BLUE, linewidth=5, alpha=0.45)
    axes.plot(prompts, middle, "o", color=BLUE, markersize=6, label="one update from an unseen start")
    axes.plot(prompts, data["achieved"]["noise"][2], "o", color=ORANGE, markersize=4, label="from noise")
    axes.set_xlabel("prompted validation loss, nats")
    axes.set_xscale("log")
    _round_numbers(axes.xaxis, *ends)
    _loss_axis(axes, "achieved, nats")


def identity(axes: Axes, data: Mapping[str, Any]) -> None:
    """Where networks made in the page will stand: what was asked for, and what 80% of the unseen starts had."""
    prompts, quantiles = data["prompts"], data["achieved"]["one update"]
    ends = [min(prompts), max(prompts)]
    axes.fill_between(
        prompts, quantiles[0], quantiles[-1], color=GREY, **_BAND, label="10-90% of the starts of section 2"
    )
    axes.plot(ends, ends, color=INK, linewidth=1.3, linestyle=(0, (4, 3)), label="what was asked for")
    axes.set_xlabel("prompted validation loss, nats")
    axes.set_xscale("log")
    axes.set_xlim(*ends)
    _round_numbers(axes.xaxis, *ends)
    axes.set_ylim(0.8 * min(ends[0], *quantiles[0]), 1.2 * max(ends[1], *quantiles[-1]))
    _loss_axis(axes, "achieved, nats")


def distances(axes: Axes, data: Mapping[str, Any]) -> None:
    """How far networks are from the nearest one that the generator was trained on."""
    sets = data["distances"]
    names = list(reversed(sets))
    for row, name in enumerate(names):
        jitter = row + 0.42 * ((0.618034 * np.arange(len(sets[name]))) % 1 - 0.5)
        axes.plot(sets[name], jitter, "o", color=NETWORK_KINDS[name][1], alpha=0.45, markersize=4, markeredgewidth=0)
        axes.vlines(np.median(sets[name]), row - 0.34, row + 0.34, INK)
    axes.set_xlim(0, 1.05 * max(max(one) for one in sets.values()))
    axes.set_xlabel("distance to the nearest training network")
    axes.set_yticks(range(len(names)), [NETWORK_KINDS[name][0] for name in names])


def optimizer_curves(axes: Axes, data: Mapping[str, Any]) -> None:
    """Training loss of an unseen network by learned optimizers and AdamW."""
    for name, (low, mean, high) in data["curves"].items():
        colour = LIGHT[METHOD_COLOURS[name]]
        axes.fill_between(data["steps"], low, high, color=colour, **_BAND)
        axes.plot(data["steps"], mean, color=colour, label=name)
    axes.set_xlim(0, max(data["steps"]))
    axes.set_xlabel("training step")
    _loss_axis(axes, "training loss, nats")


def fine_tuning(axes: Axes, data: Mapping[str, Any]) -> None:
    """Test loss while a learned optimizer trains generated and random networks."""
    steps = _step_axis(axes, data["steps"])
    for kind, colour in (("random", ORANGE), ("generated", BLUE)):
        low, middle, high = data[kind]["loss"]
        axes.fill_between(steps, low, high, color=colour, **_BAND)
        axes.plot(steps, middle, color=colour, label=f"{kind} start, median and 10-90%")
    _loss_axis(axes, "test loss, nats")


def unseen_tables(axes: Axes, data: Mapping[str, Any]) -> None:
    """Test accuracy on tables never seen, by method, each table a line."""
    names = list(reversed(data["accuracy"]))
    for method, (marker, colour, size) in TABLE_METHODS.items():
        values = [100 * data["accuracy"][name][method] for name in names]
        axes.plot(values, range(len(names)), marker, color=colour, markersize=size, alpha=0.85, label=method)
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xlabel("test accuracy, %")


def curve_numbers(data: Mapping[str, Any]) -> dict[str, Any]:
    """The curves of `optimizer_curves` for the script that shows their numbers."""
    return {
        "x": data["steps"],
        "curves": [{"y": mean, "colour": METHOD_COLOURS[name]} for name, (_, mean, _) in data["curves"].items()],
    }


LIVE: Final = Chart("Prompted and achieved validation loss of networks made in this page", identity, 300, 1, "live")
# name: stage whose data it shows, chart
CHARTS: Final = {
    "training": (
        "zoo",
        Chart("Validation loss of all runs of the zoo over their training", training_fan, legend_columns=3),
    ),
    "prompts": ("prompting", Chart("Prompted and achieved validation loss", prompted_and_achieved)),
    "distances": (
        "prompting",
        Chart("Distance to the nearest training network by kind of network", distances, height=210),
    ),
    "optimizers": ("optimizer", Chart("Training loss by optimizer", optimizer_curves, 350, 1, name="optimizers")),
    "fine_tuning": (
        "join",
        Chart("Test loss of generated and of random networks in training", fine_tuning, legend_columns=1),
    ),
    "tables": ("tables", Chart("Test accuracy on tables never seen, by method", unseen_tables)),
}


def _step_axis(axes: Axes, steps: Sequence[int]) -> list[float]:
    """Makes the horizontal axis one of steps, logarithmic with room for step 0; returns where the steps are on it."""
    first = min(step for step in steps if step > 0)
    zero = first / 3
    decades = [10**k for k in range(10) if first <= 10**k <= max(steps)]
    axes.set_xscale("log")
    axes.set_xlim(zero, max(steps))
    axes.set_xticks([zero, *decades], ["0", *map(str, decades)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training step")
    return [max(step, zero) for step in steps]


def _loss_axis(axes: Axes, label: str) -> None:
    axes.set_yscale("log")
    axes.margins(y=0.03)
    axes.set_ylabel(label)
    _round_numbers(axes.yaxis, *axes.get_ylim())


def _round_numbers(axis: Any, low: float, high: float) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5 times powers of ten, or at these alone where they are many."""
    factors = (1,) if high / low > 400 else (1, 2, 5)
    places = LogLocator(subs=factors, numticks=40).tick_values(low, high)
    axis.set_major_locator(FixedLocator([place for place in places if low <= place <= high]))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
