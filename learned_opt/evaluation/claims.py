"""What is claimed of the learned optimizers, against what was measured.

Each claim has a goal to reach and one to aim at. With several meta-seeds the verdict is that of their median, and each
is compared with its own twin of the same meta-seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from learned_opt.evaluation.comparison import Results
from learned_opt.evaluation.learned_methods import UNTRAINED_FRAME
from learned_opt.evaluation.report import ONE_CONSTANT, REFERENCE, TUNED_MUON, Evaluation, points
from learned_opt.evaluation.statistics import Estimate, accuracy_points, compare, diverged, nats_apart

MULO: Final = "mulo"
MULO_DECAYED: Final = "mulo-wsd"
NORM: Final = "mulo-norm"
SCALARS: Final = "mulo-norm-scalars"
STATIC: Final = "mulo-norm-static"
MISSED: Final = "**not reached**"
NOT_RUN: Final = "not run"
_WIDTH: Final = "digits-256-T400"
_STRETCHED: Final = ("digits-32-T12000", "mnist14-32x18-T400")

Measured = Callable[[Results, str, str | None, Sequence[str]], Estimate]  # results, method, its twin, tasks


@dataclass(frozen=True)
class Claim:
    """One line of the table; smaller is better.

    Args:
        learned: name of the optimizer.
        text: what is compared.
        reach, aim: goals.
        measure: results, method, twin and tasks -> estimate; KeyError if something was not run.
        tasks: names or a group; default the main tasks, and in further columns those on unseen data.
        twin: learned optimizer whose method of the same meta-seed is handed to `measure`.
        surely: the whole interval must lie below 1 as well.
        show: of an estimate.
    """

    learned: str
    text: str
    reach: float
    aim: float
    measure: Measured
    tasks: str | tuple[str, ...] | None = None
    twin: str | None = None
    surely: bool = False
    show: Callable[[Estimate], str] = str


def claims() -> list[Claim]:
    """All claims, in the order of the table."""
    ratios = [
        Claim(MULO, "final loss to untuned AdamW 1e-3", 0.9, 0.6, _ratio("final_loss", "AdamW 1e-3 untuned")),
        Claim(MULO, "final loss to tuned AdamW + cosine", 1.15, 1.0, _ratio("final_loss", REFERENCE)),
        Claim(MULO_DECAYED, "final loss to tuned AdamW + cosine", 1.15, 1.0, _ratio("final_loss", REFERENCE)),
        Claim(NORM, "mean loss to tuned AdamW + cosine", 0.65, 0.5, _ratio("mean_loss", REFERENCE)),
        Claim(NORM, "final loss to tuned AdamW + cosine", 0.3, 0.2, _ratio("final_loss", REFERENCE)),
        Claim(NORM, "mean loss to tuned Muon + cosine", 0.95, 0.8, _ratio("mean_loss", TUNED_MUON)),
        Claim(NORM, "mean loss to Prodigy", 0.8, 0.6, _ratio("mean_loss", "Prodigy cosine")),
        Claim(NORM, "mean loss to Schedule-Free", 0.8, 0.6, _ratio("mean_loss", "Schedule-Free AdamW")),
        Claim(
            NORM,
            "mean loss to its untrained frame at one constant",
            0.7,
            0.5,
            _ratio("mean_loss", ONE_CONSTANT.format(UNTRAINED_FRAME)),
            surely=True,
        ),
    ]
    ratios += [
        Claim(NORM, f"mean loss to {twin}", 1.0, 0.85, _ratio("mean_loss", None), twin=twin, surely=True)
        for twin in (SCALARS, STATIC)
    ]
    accuracies = [
        Claim(NORM, f"loses accuracy to tuned Muon, points, {text}", 0.5, 0.0, measure, show=points)
        for text, measure in (
            ("test split, both chosen on validation", _points_lost("test", TUNED_MUON)),
            ("validation split, Muon at its best in hindsight", _points_lost("val", TUNED_MUON)),
        )
    ]
    return [*ratios, *accuracies, *_particular_claims()]


def _particular_claims() -> list[Claim]:
    adamw, language = _ratio("mean_loss", REFERENCE), "language"
    return [
        Claim(NORM, "worst far task, mean loss to tuned AdamW + cosine", 1.0, 0.8, _worst(adamw), "far"),
        Claim(NORM, "CNN with BatchNorm, mean loss to tuned AdamW + cosine", 0.7, 0.6, adamw, "conv"),
        Claim(NORM, "the same, accuracy lost, points", 0.0, 0.0, _points_lost("test", REFERENCE), "conv", show=points),
        Claim(NORM, "transformer, val loss to tuned AdamW, nats", -0.35, -0.35, _nats("val_loss", REFERENCE), language),
        Claim(NORM, "the same to Muon .8", 0.03, 0.0, _nats("val_loss", "Muon .8 cosine"), language),
        Claim(NORM, "width 256 (from 16), mean loss to tuned AdamW", 1.15, 1.0, adamw, (_WIDTH,)),
        Claim(NORM, "16 times the widest trained (3072), the same", 1.15, 1.0, adamw, ("digits-3072-T100",)),
        Claim(NORM, "hidden matrices 8 times as wide (768 x 3), the same", 1.15, 1.0, adamw, ("mnist14-768x3-T100",)),
        *(
            Claim(name, "horizon x5, depth x3: diverging tasks", 0, 0, _num_diverged, _STRETCHED, show=_count)
            for name in (NORM, MULO)
        ),
    ]


def claims_table(evaluation: Evaluation) -> str:
    """All claims with the median over meta-seeds, each seed's figure, and whether the goals were reached."""
    scopes = {title: [task.name for task in tasks] for title, tasks in _scopes(evaluation).items()}
    titles = " ".join(f"{title}, {len(names)} tasks | |" for title, names in scopes.items())
    lines = [f"| claim | goal (aim) | {titles}", "|---|---" + "|---|---" * len(scopes) + "|"]
    for claim in claims():
        particular = _named_tasks(evaluation, claim.tasks) if claim.tasks else None
        shown = [particular] if particular is not None else list(scopes.values())
        cells = [cell for names in shown for cell in judge(claim, evaluation, names)]
        cells += [""] * (2 * len(scopes) - len(cells))
        lines.append(f"| `{claim.learned}`: {claim.text} | {claim.reach:g} ({claim.aim:g}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def judge(claim: Claim, evaluation: Evaluation, tasks: Sequence[str]) -> tuple[str, str]:
    """What was measured, and the verdict."""
    estimates = meta_seed_estimates(claim, evaluation, tasks)
    if not estimates:
        return NOT_RUN, ""
    ordered = sorted(estimates, key=lambda estimate: estimate.value)
    median = ordered[len(ordered) // 2]  # of an even number the worse one
    text = claim.show(median)
    if len(estimates) > 1:
        text += f"; seeds {', '.join(claim.show(estimate).split(' ')[0] for estimate in estimates)}"
    if median.value > claim.reach or (claim.surely and median.high >= 1):
        return text, MISSED
    return text, "aim reached" if median.value <= claim.aim else "reached"


def meta_seed_estimates(claim: Claim, evaluation: Evaluation, tasks: Sequence[str]) -> list[Estimate]:
    """The claim's figure for each meta-seed for which it was run."""
    twins: Sequence[str | None] = evaluation.learned.get(claim.twin, ()) if claim.twin else ()
    methods = evaluation.learned.get(claim.learned, ())
    if not claim.twin:
        twins = [None] * len(methods)
    if not tasks:
        return []
    results, estimates = evaluation.completed(tasks), []
    for method, twin in zip(methods, twins, strict=False):
        with suppress(KeyError):
            estimates.append(claim.measure(results, method, twin, tasks))
    return estimates


def _scopes(evaluation: Evaluation) -> dict[str, list]:
    main = [task for task in evaluation.tasks if task.group == "main"]
    scopes = {"main": main, "main and far, data never drawn": evaluation.unseen()}
    return {title: tasks for title, tasks in scopes.items() if tasks}


def _named_tasks(evaluation: Evaluation, tasks: str | tuple[str, ...]) -> list[str]:
    if isinstance(tasks, str):
        return [task.name for task in evaluation.tasks if task.group == tasks]
    return list(tasks)


def _ratio(measure: str, reference: str | None) -> Measured:
    def ratio(results: Results, method: str, twin: str | None, tasks: Sequence[str]) -> Estimate:
        return compare(results[method], results[reference or twin or ""], tasks, measure)

    return ratio


def _worst(measured: Measured) -> Measured:
    def worst(results: Results, method: str, twin: str | None, tasks: Sequence[str]) -> Estimate:
        by_task = [measured(results, method, twin, [task]) for task in tasks]
        return max(by_task, key=lambda estimate: estimate.value)

    return worst


def _points_lost(split: str, reference: str) -> Measured:
    def lost(results: Results, method: str, twin: str | None, tasks: Sequence[str]) -> Estimate:
        return accuracy_points(results[reference], results[method], tasks, split)

    return lost


def _nats(measure: str, reference: str) -> Measured:
    def apart(results: Results, method: str, twin: str | None, tasks: Sequence[str]) -> Estimate:
        return nats_apart(results[method], results[reference], tasks, measure)

    return apart


def _num_diverged(results: Results, method: str, twin: str | None, tasks: Sequence[str]) -> Estimate:
    count = len(diverged(results[method], tasks))
    return Estimate(count, count, count)


def _count(estimate: Estimate) -> str:
    return f"{estimate.value:g}"
