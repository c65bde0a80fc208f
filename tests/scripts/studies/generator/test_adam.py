"""Adam takes the better of its rates, and its steps are counted."""

import pytest
import torch

from generator.evaluation.testbed import METRIC
from scripts.studies.generator.adam import AdamSteps, RankOneExtrapolation, adam_curve, tune_adam
from zoo.tasks.registry import get_task

TASK = get_task("digits", hidden=(5,))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tuned():
    return tune_adam(TASK, TASK.init(rng(), 4), max_steps=80, num_counts=16, learning_rates=(1e-4, 1e-2))


def test_adam_takes_the_better_rate_and_its_steps_are_counted(tuned):
    assert set(tuned.learning_rates[-3:]) == {1e-2}
    curve = adam_curve(tuned, TASK.init(rng(1), 6))
    middle = curve.val_loss.log().mean(0)[5].exp()
    assert curve.equivalent_steps(middle).item() == pytest.approx(curve.steps[5], rel=1e-3)
    assert curve.equivalent_steps(torch.tensor(1e-6)).isinf()
    assert curve.equivalent_steps(torch.tensor(100.0)) == 0
    assert curve.equivalent_steps_by_error(torch.tensor(0.0)).isinf()


def test_as_many_steps_are_taken_as_the_prompt_needs(tuned):
    starts = TASK.init(rng(2), 6).repeat_interleave(2, dim=0)
    prompts = torch.tensor([2.0, 1.5])
    networks = AdamSteps(tuned)(starts, {METRIC: prompts.repeat(6)}, rng())
    losses = TASK.evaluate(networks, "val")["loss"].view(6, 2).log().mean(0).exp()
    assert (losses / prompts).log().abs().max() < 0.2


def test_extrapolation_improves_on_the_steps_that_it_extrapolates(tuned):
    starts = TASK.init(rng(2), 6)
    extrapolated = RankOneExtrapolation(tuned, TASK.init(rng(), 4))(starts, {METRIC: torch.full((6,), 0.5)}, rng())
    stepped = tuned.train(starts, [tuned.steps.index(19)])[tuned.steps.index(19)]
    losses = (TASK.evaluate(networks, "val")["loss"].mean() for networks in (extrapolated, stepped))
    assert next(losses) < next(losses)
