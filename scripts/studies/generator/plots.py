"""Pictures of an evaluation, one question each, in colours that colour-blind readers tell apart.

Source: palette: Okabe and Ito 2008, "Color universal design".

Legend: N unseen starts, K prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from generator.evaluation.novelty import COPIES, GENERATED, HELD_OUT, NoveltyReport
from generator.evaluation.protocol import GENERATOR, Evaluation
from generator.evaluation.verdict import Verdict

from .study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#7F7F7F",
)  # fmt: skip
_RIVALS: Final = {"tuned Adam": (ORANGE, "s"), "matched ridge": (PURPLE, "^"), "matched average of 4": (GREEN, "D")}
_UPDATE_STYLES: Final = ((BLUE, SKY, GREEN, PURPLE), ("-", "--", "-.", ":"))
_TITLE_WIDTH: Final = 92


def save_plots(study: Study, folder: Path) -> list[Path]:
    """Draw everything that a study holds; returns the files."""
    evaluation = study.evaluation
    figures = {
        "alignment": plot_alignment(evaluation),
        "updates": plot_updates(study),
    }
    for report in evaluation.novelty:
        figures |= {
            f"distances_{report.prompt:.2f}": plot_distances(report),
            f"overlaps_{report.prompt:.2f}": plot_overlaps(report),
        }
    return [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG and free the figure."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return path


def plot_alignment(evaluation: Evaluation) -> Figure:
    """Prompted against achieved val loss, with the identity, some baselines, and the prompts below the floor."""
    figure, axes = _axes("Prompted and achieved loss on unseen starts", width=9)
    generator = evaluation.results[GENERATOR]
    below, usual = generator.below, generator.alignment
    low, high = below.prompts[0].item(), usual.prompts[-1].item()
    axes.plot([low, high], [low, high], color="black", lw=1, ls="--", label="identity")
    axes.axvline(evaluation.floor, color=GREY, lw=1, ls=":", label="floor: median of the runs' lowest loss")
    for name, (colour, marker) in _RIVALS.items():
        if name in evaluation.results:
            rival = evaluation.results[name].alignment
            axes.plot(rival.prompts, _log_mean(rival.val["loss"]), color=colour, marker=marker, ms=4, lw=1, label=name)
    for alignment, face, label in ((usual, BLUE, "generator, val loss"), (below, "white", "the same below the floor")):
        middle = _log_mean(alignment.val["loss"])
        spread = alignment.val["loss"].quantile(torch.tensor([0.1, 0.9]), dim=0)
        errors = torch.stack((middle - spread[0], spread[1] - middle)).clamp(min=0)
        axes.errorbar(
            alignment.prompts, middle, errors, color=BLUE, mfc=face, marker="o", ms=5, lw=1.5, capsize=2, label=label
        )
    axes.plot(usual.prompts, _log_mean(usual.test["loss"]), color=SKY, marker="x", lw=1, label="generator, test loss")
    axes.set(xscale="log", yscale="log", xlabel="prompted val loss [nats]", ylabel="achieved loss [nats]")
    axes.text(
        0.98, 0.02, f"R² of log loss {usual.r2_log:.3f}, Spearman {usual.spearman:.3f}\n"
        "geometric means; bars: 10% to 90% of starts",
        transform=axes.transAxes, ha="right", va="bottom", fontsize=8,
    )  # fmt: skip
    figure.legend(fontsize=8, loc="outside right upper")
    return figure


def plot_updates(study: Study) -> Figure:
    """Loss and error of tuned Adam by steps, the levels that one, two ... updates reach, and R² after each."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained", width_ratios=(3, 3, 2))
    adam, updates = study.adam, study.evaluation.recursion
    _draw_updates(panels[0], adam.steps, _log_mean(adam.val_loss), [_log_mean(one.val["loss"])[0] for one in updates])
    _draw_updates(panels[1], adam.steps, adam.test_error.mean(0), [1 - one.lowest_accuracy for one in updates])
    panels[0].set(yscale="log", ylabel="val loss [nats]")
    panels[1].set(yscale="log", ylabel="test error")
    last = 1 - study.evaluation.final_accuracy.mean().item()
    panels[1].axhline(last, color="black", lw=1, ls=(0, (1, 3)), label="last snapshots of the zoo")
    panels[1].legend(fontsize=8, loc="upper right")
    numbers = range(1, len(updates) + 1)
    panels[2].plot(numbers, [one.r2_log for one in updates], color=BLUE, marker="o", label="val")
    panels[2].plot(numbers, [one.test_r2_log for one in updates], color=SKY, marker="x", label="test")
    panels[2].set(xlabel="updates", ylabel="R² of log loss, all prompts", xticks=numbers)
    panels[2].grid(alpha=0.25)
    panels[2].legend(fontsize=8)
    figure.suptitle("Updates at the lowest prompt in steps of tuned Adam, and networks fed back", fontsize=10)
    return figure


def plot_distances(report: NoveltyReport) -> Figure:
    """(A): matched distance to the nearest training network, by kind of network."""
    sets = report.sets
    figure, axes = _axes(f"(A) Distance to the training set, prompt {report.prompt:.2f}", report.distance)
    for place, (name, one) in enumerate(sets.items()):
        jitter = torch.linspace(-0.25, 0.25, len(one.distances))
        axes.scatter(one.distances, place + jitter, s=7, color=_colour(name), alpha=0.6, lw=0)
        axes.plot([one.distances.median()] * 2, [place - 0.35, place + 0.35], color="black", lw=1.5)
    axes.set_yticks(range(len(sets)), list(sets), fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="matched Euclidean distance to the nearest training network (line: median)")
    return figure


def plot_overlaps(report: NoveltyReport) -> Figure:
    """(B): accuracy against the largest overlap of errors with a training network."""
    sets = report.sets
    title = f"(B) Accuracy and overlap of errors with the training set, prompt {report.prompt:.2f}"
    figure, axes = _axes(title, report.overlap)
    for name in (HELD_OUT, GENERATED):
        one = sets[name]
        marker = "o" if name == GENERATED else "s"
        axes.scatter(one.overlaps, one.accuracies, s=14, marker=marker, color=_colour(name), alpha=0.5, lw=0)
        axes.scatter(
            one.overlaps.mean(), one.accuracies.mean(), s=110, marker=marker, color=_colour(name), ec="black",
            label=f"{name} (mean large)", zorder=5,
        )  # fmt: skip
    for kind, colour, label in (("noise", ORANGE, "copies with noise"), ("average", GREEN, "matched averages")):
        chosen = [COPIES, *(name for name in sets if name.startswith(kind))]
        points = [(sets[name].overlaps.mean(), sets[name].accuracies.mean()) for name in chosen]
        axes.plot(*zip(*points, strict=True), color=colour, marker="D", ms=5, lw=1.5, label=label)
        for (x, y), name in zip(points[1:], chosen[1:], strict=True):
            axes.annotate(name.split()[-1], (x, y), fontsize=7, xytext=(4, -9), textcoords="offset points")
    axes.set(xlabel="largest wrong-prediction IoU with a training network", ylabel="test accuracy")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _axes(title: str, verdict: Verdict | None = None, *, width: float = 7) -> tuple[Figure, Axes]:
    import textwrap

    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, 5), layout="constrained")
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize=10)
    if verdict is not None:
        figure.supxlabel("\n".join(textwrap.wrap(str(verdict), _TITLE_WIDTH)), fontsize=8)
    return figure, axes


def _draw_updates(axes: Axes, steps: Sequence[int], curve: Tensor, levels: Sequence[Tensor | float]) -> None:
    axes.plot(steps[1:], curve[1:], color=ORANGE, marker="s", ms=3, lw=1.5, label="tuned Adam")
    for number, (level, colour, style) in enumerate(zip(levels, *_UPDATE_STYLES, strict=False), 1):
        name = f"{number} update{'s' if number > 1 else ''}"
        axes.axhline(float(level), color=colour, lw=1.2, ls=style, label=name)
    axes.set(xscale="log", xlabel="Adam steps")
    axes.grid(alpha=0.25)


def _colour(name: str) -> str:
    kinds = {GENERATED: BLUE, HELD_OUT: VERMILLION, COPIES: GREY}
    return kinds.get(name, ORANGE if name.startswith("noise") else GREEN)


def _log_mean(losses: Tensor) -> Tensor:
    return losses.log().mean(0).exp()
