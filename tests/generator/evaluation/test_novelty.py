"""The novelty protocol tells copies and mixtures from real networks."""

import pytest
import torch

from generator.evaluation.baselines import NoisyCopy
from generator.evaluation.novelty import (
    COPIES,
    GENERATED,
    HELD_OUT,
    Foretelling,
    NetworkSet,
    novelty_report,
    overlap_verdict,
    pool_at,
    retrieval_verdict,
)
from generator.evaluation.testbed import METRIC, Testbed
from generator.trajectories import Trajectories, nearest_snapshots
from zoo.networks.metrics import euclidean_distances
from zoo.networks.symmetry import apply, sample
from zoo.tasks.registry import get_task
from zoo.training.optimizers import Adam
from zoo.training.population import train_population

NUM_UNSEEN = 24
LEVEL = 0.5


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def part(runs: Trajectories, rows: slice) -> Trajectories:
    chosen = torch.arange(len(runs))[rows]
    params = torch.stack([runs.read(chosen, torch.full_like(chosen, s)) for s in range(runs.metrics[METRIC].shape[1])])
    return Trajectories(runs.layout, params.movedim(0, 1), {METRIC: runs.metrics[METRIC][rows]}, runs=chosen)


def make_testbed() -> Testbed:
    """48 real runs of 8 hidden units to learn from and 24 unseen ones, 17 snapshots of 160 steps each."""
    task = get_task("digits", hidden=(8,))
    snapshots = train_population(
        task, Adam(lr=0.01), range(72), num_steps=160, snapshot_steps=range(0, 161, 10), compile=False
    )
    params = torch.stack([one.params for one in snapshots], dim=1)
    losses = task.evaluate(params.flatten(0, 1), "val")["loss"].view(params.shape[:2])
    runs = Trajectories(task.layout, params, {METRIC: losses})
    return Testbed(task, part(runs, slice(NUM_UNSEEN, None)), part(runs, slice(NUM_UNSEEN)))


@pytest.fixture(scope="module")
def testbed() -> Testbed:
    return make_testbed()


def outcomes(testbed: Testbed):
    """A sampler that knows what every unseen start became."""

    def sampler(start, prompt, rng):
        rows = euclidean_distances(start, testbed.starts(NUM_UNSEEN)).argmin(1)
        return testbed.unseen.read(rows, nearest_snapshots(testbed.unseen.metrics[METRIC][rows], prompt[METRIC]))

    return sampler


def asked(num: int = NUM_UNSEEN, loss: float = LEVEL):
    return {METRIC: torch.full((num,), loss)}


def test_real_networks_pass_and_are_no_copies(testbed):
    real = outcomes(testbed)(testbed.starts(NUM_UNSEEN), asked(), rng())
    report = novelty_report(testbed, real, LEVEL, rng())
    assert report.distance.passed
    assert report.overlap.passed
    assert report.sets[COPIES].distances.max() < 1e-2 < report.sets[HELD_OUT].distances.min()
    assert report.sets["noise 0.05"].distances.mean() < report.sets["noise 0.4"].distances.mean()


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_permuted_copies_fail_both_tests(testbed, noise):
    layout = testbed.task.layout
    copies = NoisyCopy(testbed.train, noise)(None, asked(), rng(5))
    permuted = apply(layout, copies, sample(layout, NUM_UNSEEN, rng(1)))
    report = novelty_report(testbed, permuted, LEVEL, rng())
    assert not report.distance.passed
    assert not report.overlap.passed


def test_low_accuracy_at_low_overlap_does_not_pass():
    def one(overlap, accuracy):
        return NetworkSet(torch.ones(9), torch.full((9,), overlap), torch.full((9,), accuracy).double())

    sets = {
        GENERATED: one(0.4, 0.7),
        HELD_OUT: one(0.5, 0.9),
        COPIES: one(1.0, 0.9),
        "noise 0.1": one(0.3, 0.8),
        "average of 2": one(0.3, 0.6),
    }
    verdict = overlap_verdict(sets)
    assert not verdict.passed
    assert "noise -11" in verdict.text  # frontier at an overlap of .4 is .814
    assert overlap_verdict({**sets, GENERATED: one(0.4, 0.85)}).passed


def test_the_pool_holds_what_a_copy_of_that_loss_could_be_of(testbed):
    pool = pool_at(testbed.train, torch.tensor(LEVEL))
    copies = NoisyCopy(testbed.train, 0.0)(None, asked(), rng())
    assert euclidean_distances(copies, pool).min(1).values.max() == 0
    assert len(pool) == len(testbed.train)


def test_a_rival_must_be_worse_in_prompts_or_in_updates():
    def one(error, cosine):
        spread = torch.linspace(-0.1, 0.1, 40)
        return Foretelling(error + spread.flip(0), cosine + spread)

    own = one(0.2, 0.6)
    retrieval, ridge = one(0.2, 0.0), one(1.5, 0.7)
    assert retrieval_verdict(own, {"retrieval": retrieval, "ridge": ridge}).passed
    assert not retrieval_verdict(own, {"retrieval": retrieval, "ridge": one(0.2, 0.7)}).passed
