"""The whole evaluation of a generator: that of the package, with tuned Adam and regression as further rivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from generator import EvaluationConfig, Testbed, evaluate
from generator.evaluation.baselines import initial_networks
from generator.evaluation.protocol import Evaluation
from generator.evaluation.testbed import Sampler

from .adam import AdamCurve, AdamSteps, RankOneExtrapolation, adam_curve, tune_adam
from .ridge import StartRidge


@dataclass(frozen=True)
class Study:
    """Everything that is reported."""

    evaluation: Evaluation
    adam: AdamCurve


def study(
    generator: Sampler,
    testbed: Testbed,
    *,
    max_adam_steps: int,
    num_tuning_starts: int,
    others: Mapping[str, Sampler] | None = None,
    config: EvaluationConfig | None = None,
    report: Callable[[str], None] = print,
) -> Study:
    """Evaluate a generator on starts that it has not seen.

    Args:
        generator: to evaluate.
        testbed: task, its training runs, unseen runs.
        max_adam_steps: most steps of tuned Adam.
        num_tuning_starts: training starts on which Adam and its extrapolation are tuned.
        others: more samplers by name for the same tables.
        config: sizes.
        report: told what is done next.
    """
    config = config or EvaluationConfig()
    train_starts = initial_networks(testbed.train)[:num_tuning_starts]
    report("tuning Adam")
    tuned = tune_adam(testbed.task, train_starts, max_steps=max_adam_steps)
    rivals: dict[str, Sampler] = {
        "ridge": StartRidge(testbed.train),
        "matched ridge": StartRidge(testbed.train, matched=True),
        "rank-1 extrapolation": RankOneExtrapolation(tuned, train_starts),
        "tuned Adam": AdamSteps(tuned),
    }
    rivals = {**(rivals if config.baselines else {}), **(others or {})}
    evaluation = evaluate(generator, testbed, others=rivals, config=config, report=report)
    return Study(evaluation, adam_curve(tuned, testbed.starts(config.num_starts)))
