"""Baselines do what their names say, on runs whose outcome is known."""

import pytest
import torch
from torch import Tensor

from generator.evaluation.adam_baselines import AdamSteps, RankOneExtrapolation, adam_curve, tune_adam
from generator.evaluation.baselines import MatchedAverage, MeanDelta, NearestNeighbours, NoisyCopy, Retrieval
from generator.evaluation.neighbours import distance_bounds, nearest, paired_distances
from generator.evaluation.ridge import Ridge
from generator.evaluation.testbed import METRIC, nearest_snapshots
from generator.trajectories import Trajectories
from zoo.networks.metrics import matched_distances
from zoo.networks.symmetry import apply, sample
from zoo.tasks.registry import get_task

TASK = get_task("digits", hidden=(5,))
DEEP = get_task("digits", hidden=(4, 3))
NUM_RUNS = 40
LOSSES = torch.tensor([2.0, 1.0, 0.5, 0.25])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def straight_runs(task=TASK, num_runs: int = NUM_RUNS) -> Trajectories:
    """Runs that all add one direction to their start, in proportion to the halvings of the loss."""
    starts = task.init(rng(), num_runs)
    direction = torch.linspace(-1, 1, task.layout.num_params)
    params = starts[:, None] + torch.arange(4.0)[None, :, None] * direction
    return Trajectories(task.layout, params, {METRIC: LOSSES.expand(num_runs, 4)})


def asked(loss: float, num: int) -> dict[str, Tensor]:
    return {METRIC: torch.full((num,), loss)}


TRAIN = straight_runs()
ALL = [Retrieval, NearestNeighbours, MeanDelta, MatchedAverage, NoisyCopy, Ridge]


@pytest.mark.parametrize("kind", ALL)
def test_baselines_are_samplers(kind):
    starts = TASK.init(rng(1), 3).repeat_interleave(2, dim=0)
    prompt = {METRIC: torch.tensor([0.25, 1.0] * 3)}
    networks = kind(TRAIN)(starts, prompt, rng())
    assert networks.shape == starts.shape
    torch.testing.assert_close(networks, kind(TRAIN)(starts, prompt, rng()))


@pytest.mark.parametrize("kind", [Retrieval, NearestNeighbours, MeanDelta, Ridge])
def test_a_start_is_asked_for(kind):
    with pytest.raises(ValueError, match="updates a start, got none"):
        kind(TRAIN)(None, asked(0.5, 2), rng())


def test_snapshots_are_chosen_on_a_logarithmic_scale_and_missing_ones_never():
    values = torch.tensor([[1.0, 0.1, float("nan")], [float("nan"), 3.0, 0.2]])
    assert nearest_snapshots(values, torch.tensor(0.33)).tolist() == [0, 2]


@pytest.mark.parametrize("task", [TASK, DEEP])
def test_retrieval_finds_a_training_start_with_permuted_units(task):
    train = straight_runs(task)
    hidden = apply(task.layout, train.read(torch.tensor([7]), torch.tensor([0])), sample(task.layout, 1, rng(3)))
    found = Retrieval(train)(hidden, asked(0.26, 1), rng())
    torch.testing.assert_close(found, train.read(torch.tensor([7]), torch.tensor([3])))


def test_one_nearest_neighbour_is_retrieval_in_the_order_of_the_start():
    permutations = sample(TASK.layout, 1, rng(3))
    hidden = apply(TASK.layout, TRAIN.read(torch.tensor([7]), torch.tensor([0])), permutations)
    expected = apply(TASK.layout, TRAIN.read(torch.tensor([7]), torch.tensor([2])), permutations)
    torch.testing.assert_close(NearestNeighbours(TRAIN, 1)(hidden, asked(0.5, 1), rng()), expected)


@pytest.mark.parametrize("sampler", [MeanDelta(TRAIN), Ridge(TRAIN)])
def test_a_common_update_is_recovered(sampler):
    starts = TASK.init(rng(5), 4)
    updates = sampler(starts, asked(0.25, 4), rng()) - starts
    torch.testing.assert_close(updates, 3 * torch.linspace(-1, 1, starts.shape[1]).expand_as(updates))


def test_ridge_recovers_a_linear_map_of_the_start():
    starts = TASK.init(rng(), 500)
    low_rank = starts @ torch.randn(starts.shape[1], 3, generator=rng(1))
    flat = starts.clone()
    flat[:, :3] += low_rank
    runs = Trajectories(TASK.layout, torch.stack((starts, flat), 1), {METRIC: torch.tensor([[2.0, 0.5]] * 500)})
    unseen = TASK.init(rng(9), 20)
    update = Ridge(runs)(unseen, asked(0.5, 20), rng())[:, :3] - unseen[:, :3]
    expected = unseen @ torch.randn(starts.shape[1], 3, generator=rng(1))
    assert (update - expected).square().mean() < 0.1 * expected.square().mean()


def test_matched_ridge_does_not_care_for_the_order_of_units():
    starts = TASK.init(rng(2), 3)
    permutations = sample(TASK.layout, 3, rng(3))
    ridge = Ridge(TRAIN, matched=True)
    permuted = ridge(apply(TASK.layout, starts, permutations), asked(0.5, 3), rng())
    torch.testing.assert_close(permuted, apply(TASK.layout, ridge(starts, asked(0.5, 3), rng()), permutations))


def test_the_matched_average_of_permuted_copies_is_the_network():
    one = TASK.init(rng(), 1)
    copies = apply(TASK.layout, one.expand(8, -1), sample(TASK.layout, 8, rng(4)))
    runs = Trajectories(TASK.layout, copies[:, None], {METRIC: torch.full((8, 1), 0.5)})
    average = MatchedAverage(runs, 4)(None, asked(0.5, 3), rng())
    assert matched_distances(TASK.layout, average, one).max() < 1e-3


def test_noise_is_relative_to_each_slot():
    clean = NoisyCopy(TRAIN, 0.0)(None, asked(0.5, 6), rng(1))
    noisy = NoisyCopy(TRAIN, 0.1)(None, asked(0.5, 6), rng(1))
    for slot in TASK.layout:
        if slot.numel > 100:
            ratio = (noisy - clean)[:, slot.span].square().mean().sqrt() / clean[:, slot.span].square().mean().sqrt()
            assert 0.08 < ratio < 0.12


def test_regression_leaves_running_variances_positive():
    task = get_task("digits", architecture="cnn", channels=[2, 3])
    starts = task.init(rng(), 12)
    shrunk = starts.clone()
    variances = [slot.span for slot in task.layout if slot.role == "running_var"]
    for span in variances:
        shrunk[:, span] = 0.01 * torch.rand(shrunk[:, span].shape, generator=rng(1))
    runs = Trajectories(task.layout, torch.stack((starts, shrunk), 1), {METRIC: torch.tensor([[2.0, 0.5]] * 12)})
    networks = Ridge(runs)(1.5 * task.init(rng(2), 20), asked(0.5, 20), rng())
    assert all((networks[:, span] > 0).all() for span in variances)
    assert task.evaluate(networks, "val")["loss"].isfinite().all()


@pytest.mark.parametrize("task", [TASK, DEEP])
def test_bounds_hold_and_vanish_for_equal_networks(task):
    params, others = task.init(rng(), 6), task.init(rng(1), 5)
    assert (distance_bounds(task.layout, params, others) <= matched_distances(task.layout, params, others) + 1e-4).all()
    permuted = apply(task.layout, params, sample(task.layout, 6, rng(2)))
    assert distance_bounds(task.layout, params, permuted).diagonal().eq(0).all()


@pytest.mark.parametrize("task", [TASK, DEEP])
def test_few_candidates_find_a_permuted_copy(task):
    others = task.init(rng(), 30)
    copies = apply(task.layout, others[[3, 17]], sample(task.layout, 2, rng(2)))
    found = nearest(task.layout, copies, others, num_candidates=2)
    assert found.index[:, 0].tolist() == [3, 17]
    assert found.distances.max() < 1e-3
    assert paired_distances(task.layout, copies, others[[3, 17]]).max() < 1e-3


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
    extrapolated = RankOneExtrapolation(tuned, TASK.init(rng(), 4))(starts, asked(0.5, 6), rng())
    stepped = tuned.train(starts, [tuned.steps.index(19)])[tuned.steps.index(19)]
    losses = (TASK.evaluate(networks, "val")["loss"].mean() for networks in (extrapolated, stepped))
    assert next(losses) < next(losses)
