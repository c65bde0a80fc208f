"""Collapse is seen where it is, and real networks do not look collapsed."""

import pytest
import torch

from generator.evaluation.collapse import MEASURES, Behaviour, collapse_report
from generator.evaluation.testbed import METRIC, Testbed
from generator.evaluation.verdict import Estimate, Verdict
from generator.trajectories import Trajectories
from zoo.tasks.registry import get_task
from zoo.training.optimizers import Adam
from zoo.training.population import train_population

TASK = get_task("digits", hidden=(8,))
NUM_STARTS = 24


@pytest.fixture(scope="module")
def testbed() -> Testbed:
    snapshots = train_population(
        TASK, Adam(lr=0.01), range(NUM_STARTS), num_steps=120, snapshot_steps=range(0, 121, 20), compile=False
    )
    params = torch.stack([one.params for one in snapshots], dim=1)
    losses = TASK.evaluate(params.flatten(0, 1), "val")["loss"].view(params.shape[:2])
    runs = Trajectories(TASK.layout, params, {METRIC: losses})
    return Testbed(TASK, runs, runs)


def last(testbed: Testbed) -> torch.Tensor:
    return testbed.unseen.read(torch.arange(NUM_STARTS), torch.full((NUM_STARTS,), 6))


def test_real_networks_equal_themselves(testbed):
    report = collapse_report(testbed, testbed.starts(NUM_STARTS), last(testbed), 0.5)
    assert set(report.measures) == set(MEASURES)
    for compared in report.measures.values():
        assert compared.generated == pytest.approx(compared.real, rel=1e-5)
    assert report.cosine_to_real.low == pytest.approx(1, abs=1e-5)
    assert report.distance_to_real.high < 1e-3
    assert all(verdict.passed for verdict in report.verdicts.values())


def test_one_network_for_all_starts_is_a_template(testbed):
    one = last(testbed)[:1]
    generated = one + 1e-3 * torch.randn(NUM_STARTS, one.shape[1], generator=torch.Generator().manual_seed(0))
    report = collapse_report(testbed, testbed.starts(NUM_STARTS), generated, 0.5)
    assert report.measures["wrong-prediction IoU"].generated > 0.95
    assert report.measures["loss correlation"].generated > 0.99
    assert not report.verdicts["no template"].passed
    assert not report.verdicts["errors differ"].passed
    assert not report.verdicts["outputs differ"].passed


def test_a_common_update_has_a_share_of_one(testbed):
    starts = testbed.starts(NUM_STARTS)
    update = torch.linspace(-0.1, 0.1, starts.shape[1])
    report = collapse_report(testbed, starts, starts + update, 2.0)
    assert report.measures["mean-update share"].generated == pytest.approx(1, abs=1e-4)


def test_defective_networks_do_not_count_as_diverse(testbed):
    params = last(testbed)
    noise = torch.randn(params.shape, generator=torch.Generator().manual_seed(0))
    report = collapse_report(testbed, testbed.starts(NUM_STARTS), params + 0.3 * noise, 0.5)
    iou = report.measures["wrong-prediction IoU"]
    assert iou.generated < iou.real
    assert not report.verdicts["same examples are hard"].passed


def test_behaviour_agrees_with_the_task(testbed):
    params = last(testbed)
    does, expected = Behaviour.of(TASK, params), TASK.evaluate(params, "test")
    torch.testing.assert_close(does.losses.mean(1), expected["loss"])
    torch.testing.assert_close(1 - does.accuracy, expected["error"].double())


def test_only_classifiers_are_compared():
    task = get_task("digits_subset", masks=[3])
    with pytest.raises(ValueError, match="expected 10 logits"):
        Behaviour.of(task, task.init(torch.Generator().manual_seed(0), 2))


def test_estimates_cover_the_mean_and_refuse_nan():
    estimate = Estimate.of(torch.linspace(0, 1, 101))
    assert estimate.low < estimate.mean < estimate.high
    assert f"{Estimate(0.5, 0.4, 0.6):+.1f}" == "+0.5 [+0.4, +0.6]"
    with pytest.raises(ValueError, match="finite values"):
        Estimate.of(torch.tensor([1.0, float("nan")]))


def test_verdicts_say_what_they_decide():
    assert str(Verdict(True, "holds")) == "PASS  holds"
    assert str(Verdict(False, "does not")) == "FAIL  does not"
