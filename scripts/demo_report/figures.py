"""The charts of the demo's page, each from the record of one stage.

Legend: K prompts, S snapshots or pieces of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ..demo_stages.optimize import ADAMW, MULO, MULO_NORM, TUNED
from .chart import Axis, Chart

NETWORK_KINDS: Final = {
    "generated": ("generated", "blue"),
    "held-out runs": ("held-out runs", "green"),
    "noise 0.05": ("copy + 5% noise", "grey"),
    "noise 0.1": ("copy + 10% noise", "grey"),
    "noise 0.2": ("copy + 20% noise", "grey"),
    "average of 4": ("average of 4", "grey"),
}
_METHOD_COLOURS: Final = {ADAMW: "grey", TUNED: "orange", MULO: "green", MULO_NORM: "blue"}


def training_fan(data: Mapping[str, Any]) -> Chart:
    """Validation loss of the zoo's runs over their training."""
    lowest, low, middle, high, highest = data["val_loss"]
    steps, axis = _steps(data["steps"])
    chart = Chart(
        "Validation loss of all runs of the zoo over their training",
        axis,
        _loss_axis("validation loss, nats", [*lowest, *highest]),
    )
    chart.band(steps, lowest, highest, "blue", "5-95% of runs")
    chart.band(steps, low, high, "blue", "25-75%")
    chart.line(steps, middle, "blue", name="median")
    return chart


def prompted_and_achieved(data: Mapping[str, Any]) -> Chart:
    """What was asked for, and what unseen networks have after one update."""
    prompts = data["prompts"]
    lowest, low, middle, high, highest = data["achieved"]["one update"]
    ends = [min(prompts), max(prompts)]
    margin = (ends[1] / ends[0]) ** 0.04
    x = Axis("prompted validation loss, nats", ends[0] / margin, ends[1] * margin, logarithmic=True)
    chart = Chart("Prompted and achieved validation loss", x, _loss_axis("achieved, nats", [*ends, *lowest, *highest]))
    chart.line(ends, ends, "ink", "thin dashed", "what was asked for")
    for k, prompt in enumerate(prompts):
        chart.vertical(prompt, lowest[k], highest[k], "blue", "thin")
        chart.vertical(prompt, low[k], high[k], "blue", "thick")
    chart.dots(prompts, middle, "blue", radius=3.2, name="one update from an unseen start")
    chart.dots(prompts, data["achieved"]["noise"][2], "orange", radius=2.2, name="from noise")
    return chart


def distances(data: Mapping[str, Any]) -> Chart:
    """How far networks are from the nearest one that the generator was trained on."""
    sets = data["distances"]
    names = list(reversed(sets))
    values = [value for one in sets.values() for value in one]
    chart = Chart(
        "Distance to the nearest training network by kind of network",
        Axis("distance to the nearest training network", 0, 1.05 * max(values)),
        Axis("", -0.6, len(names) - 0.4, ticks=range(len(names)), names=[NETWORK_KINDS[name][0] for name in names]),
        height=28 * len(names),
        left=118,
    )
    for row, name in enumerate(names):
        colour = NETWORK_KINDS[name][1]
        jitter = [row + 0.42 * ((0.618034 * i) % 1 - 0.5) for i in range(len(sets[name]))]
        chart.dots(sets[name], jitter, colour, radius=2, kind="cloud")
        middle = sorted(sets[name])[len(sets[name]) // 2]
        chart.vertical(middle, row - 0.34, row + 0.34, "ink", "line")
    return chart


def optimizer_curves(data: Mapping[str, Any]) -> Chart:
    """Training loss of an unseen network by learned optimizers and AdamW."""
    steps, curves = data["steps"], data["curves"]
    values = [value for rows in curves.values() for row in rows for value in row]
    chart = Chart(
        "Training loss by optimizer",
        Axis("training step", 0, max(steps)),
        _loss_axis("training loss, nats", [max(value, 1e-4) for value in values]),
    )
    for name, (low, mean, high) in curves.items():
        chart.band(steps, low, high, _METHOD_COLOURS[name])
        chart.line(steps, mean, _METHOD_COLOURS[name], name=name)
    return chart


def fine_tuning(data: Mapping[str, Any]) -> Chart:
    """Test loss while a learned optimizer trains generated and random networks."""
    steps, axis = _steps(data["steps"])
    rows = [row for kind in ("generated", "random") for row in data[kind]["loss"]]
    chart = Chart(
        "Test loss of generated and of random networks in training",
        axis,
        _loss_axis("test loss, nats", [value for row in rows for value in row]),
    )
    for kind, colour in (("random", "orange"), ("generated", "blue")):
        low, middle, high = data[kind]["loss"]
        chart.band(steps, low, high, colour)
        chart.line(steps, middle, colour, name=f"{kind} start, median and 10-90%")
    return chart


def _steps(steps: Sequence[int]) -> tuple[list[float], Axis]:
    """Places of steps on a logarithmic axis that has room for step 0, and that axis."""
    first = min(step for step in steps if step > 0)
    zero = first / 3
    decades = [10.0**k for k in range(10) if first <= 10**k]
    axis = Axis(
        "training step",
        zero,
        steps[-1],
        logarithmic=True,
        ticks=[zero, *decades],
        names=["0", *(f"{value:.0f}" for value in decades)],
    )
    return [max(step, zero) for step in steps], axis


def _loss_axis(label: str, values: Iterable[float]) -> Axis:
    values = [value for value in values if value > 0]
    return Axis(label, min(values) / 1.08, max(values) * 1.08, logarithmic=True)
