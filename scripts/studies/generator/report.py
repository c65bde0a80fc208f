"""An evaluation as tables for people, and as JSON.

Legend: N unseen starts, K prompts, S numbers of Adam steps.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from torch import Tensor

from generator.alignment import Alignment
from generator.evaluation.collapse import MEASURES
from generator.evaluation.novelty import NoveltyReport
from generator.evaluation.protocol import GENERATOR, Evaluation, SamplerResult
from generator.evaluation.verdict import Verdict

_SIGNIFICANT_DIGITS: Final = 5
_SCORES: Final = ("r2_log", "test_r2_log", "spearman", "lowest_accuracy")


def print_report(evaluation: Evaluation, console: Console) -> None:
    """Print all tables and verdicts."""
    generator = evaluation.results[GENERATOR]
    for table in (
        sampler_table(evaluation),
        prompt_table(generator),
        collapse_table(generator),
        update_table(evaluation),
        *(novelty_table(report) for report in evaluation.novelty),
    ):
        console.print(table)
    print_verdicts(evaluation.verdicts, console)


def print_verdicts(verdicts: Mapping[str, Verdict], console: Console) -> None:
    """Print one line for each claim."""
    for claim, verdict in verdicts.items():
        colour = "green" if verdict.passed else "red"
        console.print(f"[{colour}]{'PASS' if verdict.passed else 'FAIL'}[/] [bold]{claim}[/]: ", end="")
        console.print(verdict.text, markup=False, highlight=False)


def sampler_table(evaluation: Evaluation) -> Table:
    """All samplers, one a row: how they meet prompts, and what their networks at the lowest prompt are like."""
    title = f"All samplers; columns from 'accuracy' on at the lowest prompt, val loss {evaluation.floor:.3f}"
    names = (
        "R² log",
        "Spearman",
        "R² test",
        "val loss",
        "accuracy",
        "gap",
        "cosine",
        "share",
        "IoU",
        "corr.",
        "log-prob",
    )
    table = _table(title, "sampler", *names, "norm", "to real", "ms each")
    for name, result in evaluation.results.items():
        table.add_row(name, *_sampler_cells(result), style="bold" if name == GENERATOR else None)
    collapse = evaluation.results[GENERATOR].collapse[0]
    real = {name: compared.real for name, compared in collapse.measures.items()}
    table.add_section()
    table.add_row(
        "real, at the generator's loss",
        "", "", "",
        f"{real['val loss']:.3f}",
        f"{real['test accuracy']:.2%}",
        "", "",
        f"{real['mean-update share']:.3f}",
        f"{real['wrong-prediction IoU']:.3f}",
        f"{real['loss correlation']:.3f}",
        f"{real['log-prob distance']:.2f}",
        f"{real['norm']:.2f}",
        "",
        "",
    )  # fmt: skip
    table.add_row("real, last snapshot", "", "", "", "", f"{evaluation.final_accuracy.mean():.2%}")
    return table


def prompt_table(result: SamplerResult) -> Table:
    """What each prompt gives: mean and spread over starts."""
    title = "Each prompt: geometric mean and factor of one standard deviation over starts; accuracy mean ± deviation"
    table = _table(title, "prompt", "val loss", "test loss", "test accuracy", "train loss", "below real runs of it", "")
    for k, prompt in enumerate(result.below.prompts.tolist()):
        table.add_row(f"{prompt:.3f}", *_prompt_cells(result.below, k), "", "", "below the floor")
    known = result.generalization
    for k, prompt in enumerate(result.alignment.prompts.tolist()):
        gap = f"{known.gap[:, k].mean():+.2%}"
        table.add_row(
            f"{prompt:.3f}", *_prompt_cells(result.alignment, k), f"{_log_mean(known.train_loss[:, k]):.3f}", gap
        )
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


def update_table(evaluation: Evaluation) -> Table:
    """Updates of the generator at the lowest prompt in steps of tuned Adam, and Adam itself."""
    adam, generator = evaluation.adam, evaluation.results[GENERATOR]
    title = (
        f"Updates at the lowest prompt against tuned Adam from the same starts "
        f"({1e6 * adam.seconds_per_step:.0f} µs a step and network in a population; "
        f"one update {1e3 * generator.seconds:.1f} ms)"
    )
    table = _table(title, "", "R² log", "val loss", "test accuracy", "Adam steps by loss", "by accuracy", "Adam's time")
    for number, alignment in enumerate(evaluation.recursion, 1):
        loss = _log_mean(alignment.val["loss"][:, 0])
        error = alignment.test["error"][:, 0].mean()
        steps = adam.equivalent_steps(loss).item()
        table.add_row(
            f"{number} update{'s' if number > 1 else ''}",
            f"{alignment.r2_log:.3f}",
            f"{loss:.3f}",
            f"{1 - error:.2%}",
            _steps(steps, adam.steps[-1]),
            _steps(adam.equivalent_steps_by_error(error).item(), adam.steps[-1]),
            f"{1e3 * adam.seconds_per_step * min(steps, adam.steps[-1]):.1f} ms",
        )
    table.add_section()
    for i, steps in enumerate(adam.steps):
        if i % 4 == 0 or i == len(adam.steps) - 1:
            loss, error = _log_mean(adam.val_loss[:, i]), adam.test_error[:, i].mean()
            table.add_row(
                f"Adam, rate {adam.learning_rates[i]:g}", "", f"{loss:.3f}", f"{1 - error:.2%}", f"{steps}", "", ""
            )
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


def save_report(evaluation: object, path: Path) -> None:
    """Write any report as JSON: dataclasses as objects, tensors as lists of 5 significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_json(evaluation)) + "\n")


def summary(evaluation: Evaluation) -> dict[str, object]:
    """The numbers that one compares between evaluations."""
    generator = evaluation.results[GENERATOR]
    return {
        "floor": evaluation.floor,
        "final_accuracy": evaluation.final_accuracy.mean().item(),
        "samplers": {
            name: {
                "r2_log": result.alignment.r2_log,
                "test_r2_log": result.alignment.test_r2_log,
                "spearman": result.alignment.spearman,
                "lowest_accuracy": result.alignment.lowest_accuracy,
                "accuracy_gap": result.generalization.gap[:, 0].mean().item(),
                "cosine": result.foretelling.cosines.mean().item(),
                "seconds": result.seconds,
            }
            for name, result in evaluation.results.items()
        },
        "recursion_r2_log": [alignment.r2_log for alignment in evaluation.recursion],
        "collapse": {f"{one.prompt:.4g}": to_json(one.measures) for one in generator.collapse},
        "verdicts": {claim: to_json(verdict) for claim, verdict in evaluation.verdicts.items()},
    }


def to_json(value: object) -> object:
    """JSON-able form of nested dataclasses, mappings, sequences and tensors; what is not finite becomes null."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Alignment):
        return _fields(value) | {name: to_json(getattr(value, name)) for name in _SCORES}
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(name): to_json(one) for name, one in value.items()}
    return [to_json(one) for one in value] if isinstance(value, list | tuple) else value


def _fields(value: object) -> dict[str, object]:
    return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}  # type: ignore[arg-type]


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _sampler_cells(result: SamplerResult) -> list[str]:
    at_floor = result.collapse[0]
    measures = {name: compared.generated for name, compared in at_floor.measures.items()}
    alignment = result.alignment
    return [
        f"{alignment.r2_log:.3f}",
        f"{alignment.spearman:.3f}",
        f"{alignment.test_r2_log:.3f}",
        f"{measures['val loss']:.3f}",
        f"{measures['test accuracy']:.2%}",
        f"{result.generalization.gap[:, 0].mean():+.2%}",
        f"{result.foretelling.cosines.mean():.3f}",
        f"{measures['mean-update share']:.3f}",
        f"{measures['wrong-prediction IoU']:.3f}",
        f"{measures['loss correlation']:.3f}",
        f"{measures['log-prob distance']:.2f}",
        f"{measures['norm']:.2f}",
        f"{at_floor.distance_to_real.mean:.2f}",
        f"{1e3 * result.seconds:.2f}",
    ]


def _prompt_cells(alignment: Alignment, k: int) -> list[str]:
    accuracy = 1 - alignment.test["error"][:, k]
    losses = [_spread(one["loss"][:, k]) for one in (alignment.val, alignment.test)]
    return [*losses, f"{accuracy.mean():.2%} ± {accuracy.std():.2%}"]


def _log_mean(losses: Tensor) -> Tensor:
    return losses.log().mean().exp()


def _spread(losses: Tensor) -> str:
    return f"{_log_mean(losses):.3f} x/÷ {losses.log().std().exp():.2f}"


def _steps(steps: float, most: int) -> str:
    return f"{steps:.0f}" if math.isfinite(steps) else f"> {most}"
