"""An evaluation as tables for people, and as JSON.

Legend: N unseen starts, K prompts, S numbers of Adam steps.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from torch import Tensor

from generator import Alignment
from generator.evaluation.collapse import MEASURES
from generator.evaluation.novelty import NoveltyReport
from generator.evaluation.protocol import GENERATOR, Evaluation, SamplerResult
from generator.evaluation.verdict import Verdict

from ...json_values import json_value
from .study import Study

_SCORES: Final = ("r2_log", "test_r2_log", "spearman", "lowest_accuracy")
# Columns of the first table that hold measures of collapse: heading, name of the measure, format.
_MEASURED: Final = {
    "val loss": ("val loss", ".3f"),
    "accuracy": ("test accuracy", ".2%"),
    "share": ("mean-update share", ".3f"),
    "IoU": ("wrong-prediction IoU", ".3f"),
    "corr.": ("loss correlation", ".3f"),
    "log-prob": ("log-prob distance", ".2f"),
    "norm": ("norm", ".2f"),
}


def print_report(study: Study, console: Console) -> None:
    """Print all tables and verdicts."""
    evaluation = study.evaluation
    generator = evaluation.results[GENERATOR]
    for table in (
        sampler_table(evaluation),
        prompt_table(generator),
        collapse_table(generator),
        update_table(study),
        *(novelty_table(report) for report in evaluation.novelty),
    ):
        console.print(table)
    print_verdicts(evaluation.verdicts, console)


def print_verdicts(verdicts: Mapping[str, Verdict], console: Console) -> None:
    """Print one line for each claim."""
    for claim, verdict in verdicts.items():
        colour, word = ("green", "PASS") if verdict.passed else ("red", "FAIL")
        console.print(f"[{colour}]{word}[/] [bold]{claim}[/]: ", end="")
        console.print(verdict.text, markup=False, highlight=False)


def sampler_table(evaluation: Evaluation) -> Table:
    """All samplers, one a row: how they meet prompts, and what their networks at the lowest prompt are like."""
    title = f"All samplers; columns from 'val loss' on at the lowest prompt, val loss {evaluation.floor:.3f}"
    met = ("R² log", "Spearman", "R² test")
    table = _table(title, "sampler", *met, *_MEASURED, "gap", "cosine", "to real", "ms each")
    for name, result in evaluation.results.items():
        alignment, collapse = result.alignment, result.collapse[0]
        table.add_row(
            name,
            *(f"{score:.3f}" for score in (alignment.r2_log, alignment.spearman, alignment.test_r2_log)),
            *(f"{collapse.measures[measure].generated:{spec}}" for measure, spec in _MEASURED.values()),
            f"{result.generalization.gap[:, 0].mean():+.2%}",
            f"{result.foretelling.cosines.mean():.3f}",
            f"{collapse.distance_to_real.mean:.2f}",
            f"{1e3 * result.seconds:.2f}",
            style="bold" if name == GENERATOR else None,
        )
    real = evaluation.results[GENERATOR].collapse[0].measures
    table.add_section()
    cells = (f"{real[measure].real:{spec}}" for measure, spec in _MEASURED.values())
    table.add_row("real, at the generator's loss", *("" for _ in met), *cells)
    table.add_row("real, last snapshot", *("" for _ in met), "", f"{evaluation.final_accuracy.mean():.2%}")
    return table


def prompt_table(result: SamplerResult) -> Table:
    """What each prompt gives: mean and spread over starts."""
    title = "Each prompt: geometric mean and factor of one standard deviation over starts; accuracy mean ± deviation"
    table = _table(title, "prompt", "val loss", "test loss", "test accuracy", "train loss", "below real runs of it", "")
    known = result.generalization
    for alignment in (result.below, result.alignment):
        for k, prompt in enumerate(alignment.prompts.tolist()):
            losses = [one["loss"][:, k].log() for one in (alignment.val, alignment.test)]
            accuracy = 1 - alignment.test["error"][:, k]
            cells = [f"{loss.mean().exp():.3f} x/÷ {loss.std().exp():.2f}" for loss in losses]
            cells.append(f"{accuracy.mean():.2%} ± {accuracy.std():.2%}")
            if alignment is result.below:
                cells += ["", "", "below the floor"]
            else:
                cells += [f"{_log_mean(known.train_loss[:, k]):.3f}", f"{known.gap[:, k].mean():+.2%}"]
            table.add_row(f"{prompt:.3f}", *cells)
    return table


def collapse_table(result: SamplerResult) -> Table:
    """Generated networks beside real ones at equal loss."""
    headings = [f"{kind} at {one.prompt:.3f}" for one in result.collapse for kind in ("generated", "real")]
    table = _table("Collapse and diversity, against what the same starts became at equal loss", "measure", *headings)
    table.add_column("meaning", justify="left", overflow="fold")
    for name, meaning in MEASURES.items():
        values = [value for one in result.collapse for value in dataclasses.astuple(one.measures[name])]
        table.add_row(name, *(f"{value:.4g}" for value in values), meaning)
    for name, meaning in (
        ("cosine_to_real", "cosine of generated and real update of one start, mean [95%]"),
        ("distance_to_real", "distance to what the start became, mean [95%]"),
    ):
        cells = [cell for one in result.collapse for cell in (f"{getattr(one, name):.3g}", "")]
        table.add_row(name.replace("_", " "), *cells, meaning)
    return table


def update_table(study: Study) -> Table:
    """Updates of the generator at the lowest prompt in steps of tuned Adam, and Adam itself."""
    adam, generator = study.adam, study.evaluation.results[GENERATOR]
    title = (
        f"Updates at the lowest prompt against tuned Adam from the same starts "
        f"({1e6 * adam.seconds_per_step:.0f} µs a step and network in a population; "
        f"one update {1e3 * generator.seconds:.1f} ms)"
    )
    table = _table(title, "", "R² log", "val loss", "test accuracy", "Adam steps by loss", "by accuracy", "Adam's time")
    most = adam.steps[-1]
    for number, alignment in enumerate(study.evaluation.recursion, 1):
        loss, error = _log_mean(alignment.val["loss"][:, 0]), alignment.test["error"][:, 0].mean()
        worth = [adam.equivalent_steps(loss).item(), adam.equivalent_steps_by_error(error).item()]
        table.add_row(
            f"{number} update{'s' if number > 1 else ''}",
            f"{alignment.r2_log:.3f}",
            f"{loss:.3f}",
            f"{1 - error:.2%}",
            *(f"{steps:.0f}" if math.isfinite(steps) else f"> {most}" for steps in worth),
            f"{1e3 * adam.seconds_per_step * min(worth[0], most):.1f} ms",
        )
    table.add_section()
    for i, steps in enumerate(adam.steps):
        if i % 4 == 0 or i == len(adam.steps) - 1:
            cells = f"{_log_mean(adam.val_loss[:, i]):.3f}", f"{1 - adam.test_error[:, i].mean():.2%}", f"{steps}"
            table.add_row(f"Adam, rate {adam.learning_rates[i]:g}", "", *cells)
    return table


def novelty_table(report: NoveltyReport) -> Table:
    """Tests (A) and (B): every kind of network against the training set."""
    title = f"Against the training set, prompt {report.prompt:.3f}: means over networks"
    table = _table(title, "", "matched distance to the nearest", "largest wrong-prediction IoU", "test accuracy")
    for name, one in report.sets.items():
        cells = f"{one.distances.mean():.2f}", f"{one.overlaps.mean():.3f}", f"{one.accuracies.mean():.2%}"
        table.add_row(name, *cells)
    return table


def task_table(figures: Mapping[str, Mapping[str, float]]) -> Table:
    """Accuracy on unseen tasks, one sampler a row; see `unseen_tasks_report`."""
    num_tasks = next(iter(figures.values()))["num_tasks"]
    table = _table(f"Test accuracy on {num_tasks:.0f} tasks that no training run had", "", "mean", "worst task", "norm")
    for name, row in figures.items():
        table.add_row(name, f"{row['mean']:.2%}", f"{row['worst']:.2%}", f"{row['norm']:.2f}")
    return table


def summary(evaluation: Evaluation) -> dict[str, object]:
    """The numbers that one compares between evaluations."""
    samplers = {
        name: {score: getattr(result.alignment, score) for score in _SCORES}
        | {
            "accuracy_gap": result.generalization.gap[:, 0].mean().item(),
            "cosine": result.foretelling.cosines.mean().item(),
            "seconds": result.seconds,
        }
        for name, result in evaluation.results.items()
    }
    return {
        "floor": evaluation.floor,
        "final_accuracy": evaluation.final_accuracy.mean().item(),
        "samplers": samplers,
        "recursion_r2_log": [alignment.r2_log for alignment in evaluation.recursion],
        "collapse": {f"{one.prompt:.4g}": json_value(one.measures) for one in evaluation.results[GENERATOR].collapse},
        "verdicts": json_value(evaluation.verdicts),
    }


def save_report(report: object, path: Path) -> None:
    """Write any report as JSON: dataclasses as objects, tensors as lists of 5 significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(json_value(report)) + "\n")


@json_value.register
def _(alignment: Alignment, *digits: int, **options: bool) -> dict[str, Any]:
    """With its scores."""
    return json_value(vars(alignment) | {name: getattr(alignment, name) for name in _SCORES}, *digits, **options)


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _log_mean(losses: Tensor) -> Tensor:
    return losses.log().mean().exp()
