"""Controls tell generators that know from those that copy, and from those that look outside a band."""

import pytest
import torch

from generator.evaluation.baselines import NoisyCopy
from generator.evaluation.testbed import METRIC, Testbed
from generator.trajectories import Trajectories
from scripts.studies.generator.controls import halves_report, middle_band, withheld_band_report
from tests.generator.evaluation.test_novelty import LEVEL, NUM_UNSEEN, make_testbed, outcomes, part


@pytest.fixture(scope="module")
def testbed() -> Testbed:
    return make_testbed()


def test_halves_agree_if_both_know_and_disagree_if_both_copy(testbed):
    halves = part(testbed.train, slice(24)), part(testbed.train, slice(24, None))
    starts = testbed.starts(NUM_UNSEEN)
    knowing = outcomes(testbed)
    agreeing = halves_report((knowing, knowing), halves, starts=starts, prompt=LEVEL, seed=0)
    assert agreeing.verdict.passed
    assert agreeing.mutual.max() < 1e-2
    copiers = NoisyCopy(halves[0], 0.0), NoisyCopy(halves[1], 0.0)
    copying = halves_report(copiers, halves, starts=starts, prompt=LEVEL, seed=0)
    assert not copying.verdict.passed
    template = testbed.train.read(torch.tensor([0]), torch.tensor([9])).expand(NUM_UNSEEN, -1)
    alike = halves_report((lambda *_: template,) * 2, halves, starts=starts, prompt=LEVEL, seed=0)
    assert not alike.verdict.passed
    with pytest.raises(ValueError, match="share 24 runs"):
        halves_report((knowing, knowing), (halves[0], halves[0]), starts=starts, prompt=LEVEL, seed=0)


def test_a_withheld_band_is_met_by_who_knows_and_not_by_who_looks_outside(testbed):
    band = (0.45, 1.1)
    starts = testbed.starts(NUM_UNSEEN)
    known = withheld_band_report(testbed, outcomes(testbed), band, starts=starts, num_prompts=4, seed=0)
    assert known.verdict.passed
    assert ((known.prompts > band[0]) & (known.prompts < band[1])).all()
    losses = testbed.unseen.metrics[METRIC]
    outside = losses.where((losses < band[0]) | (losses > band[1]), torch.nan)
    layout, rows = testbed.task.layout, torch.arange(NUM_UNSEEN)
    params = torch.stack([testbed.unseen.read(rows, torch.full_like(rows, s)) for s in range(losses.shape[1])], dim=1)
    blind = Testbed(testbed.task, testbed.train, Trajectories(layout, params, {METRIC: outside}))
    report = withheld_band_report(testbed, outcomes(blind), band, starts=starts, num_prompts=4, seed=0)
    assert not report.verdict.passed


def test_the_band_is_the_middle_third():
    assert middle_band(torch.tensor([0.1, 1.0, 100.0])) == pytest.approx((1.0, 10.0))
