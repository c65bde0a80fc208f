"""Baselines do what their names say, on runs whose outcome is known."""

import pytest
import torch
from torch import Tensor

from generator.evaluation.baselines import MatchedAverage, MeanDelta, NearestNeighbours, NoisyCopy, Retrieval
from generator.evaluation.neighbours import distance_bounds, nearest, paired_distances
from generator.evaluation.testbed import METRIC
from generator.trajectories import Trajectories, nearest_snapshots
from tests.generator.model.test_examples import adapters_on
from zoo.networks import low_rank
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
ALL = [Retrieval, NearestNeighbours, MeanDelta, MatchedAverage, NoisyCopy]


@pytest.mark.parametrize("kind", ALL)
def test_baselines_are_samplers(kind):
    starts = TASK.init(rng(1), 3).repeat_interleave(2, dim=0)
    prompt = {METRIC: torch.tensor([0.25, 1.0] * 3)}
    networks = kind(TRAIN)(starts, prompt, rng())
    assert networks.shape == starts.shape
    torch.testing.assert_close(networks, kind(TRAIN)(starts, prompt, rng()))


@pytest.mark.parametrize("kind", [Retrieval, NearestNeighbours, MeanDelta])
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


def test_a_common_update_is_recovered():
    starts = TASK.init(rng(5), 4)
    updates = MeanDelta(TRAIN)(starts, asked(0.25, 4), rng()) - starts
    torch.testing.assert_close(updates, 3 * torch.linspace(-1, 1, starts.shape[1]).expand_as(updates))


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


def test_adapters_are_near_by_their_products():
    layout = adapters_on("mlp")[0].layout
    others = torch.randn(30, layout.num_params, generator=rng())
    copies = low_rank.apply(layout, others[[3, 17]], low_rank.sample(layout, 2, rng(2)))
    found = nearest(layout, copies, others, k=2)
    assert found.index[:, 0].tolist() == [3, 17]
    assert (found.distances[:, 0] < 1e-3 * found.distances[:, 1]).all()
