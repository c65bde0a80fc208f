"""Regressions find the maps that runs were made by, whatever the order of units."""

import numpy as np
import pytest
import torch
from torch import Tensor

from generator.evaluation.testbed import METRIC
from generator.trajectories import Trajectories
from scripts.studies.generator.ridge import NearestTask, StartRidge, TaskRidge
from zoo.networks.alignment import align
from zoo.networks.metrics import euclidean_distances
from zoo.networks.symmetry import apply, sample
from zoo.tasks.registry import get_task

TASK = get_task("digits", hidden=(5,))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def asked(loss: float, num: int) -> dict[str, Tensor]:
    return {METRIC: torch.full((num,), loss)}


def straight_runs(num_runs: int = 40) -> Trajectories:
    """Runs that all add one direction to their start, in proportion to the halvings of the loss."""
    starts = TASK.init(rng(), num_runs)
    direction = torch.linspace(-1, 1, TASK.layout.num_params)
    params = starts[:, None] + torch.arange(4.0)[None, :, None] * direction
    return Trajectories(TASK.layout, params, {METRIC: torch.tensor([2.0, 1.0, 0.5, 0.25]).expand(num_runs, 4)})


def test_a_common_update_is_recovered():
    starts = TASK.init(rng(5), 4)
    updates = StartRidge(straight_runs())(starts, asked(0.25, 4), rng()) - starts
    expected = 3 * torch.linspace(-1, 1, starts.shape[1]).expand_as(updates)
    torch.testing.assert_close(updates, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="updates a start, got none"):
        StartRidge(straight_runs())(None, asked(0.5, 2), rng())


def test_ridge_recovers_a_linear_map_of_the_start():
    starts = TASK.init(rng(), 500)
    low_rank = starts @ torch.randn(starts.shape[1], 3, generator=rng(1))
    flat = starts.clone()
    flat[:, :3] += low_rank
    runs = Trajectories(TASK.layout, torch.stack((starts, flat), 1), {METRIC: torch.tensor([[2.0, 0.5]] * 500)})
    unseen = TASK.init(rng(9), 20)
    update = StartRidge(runs)(unseen, asked(0.5, 20), rng())[:, :3] - unseen[:, :3]
    expected = unseen @ torch.randn(starts.shape[1], 3, generator=rng(1))
    assert (update - expected).square().mean() < 0.1 * expected.square().mean()


def test_matched_ridge_does_not_care_for_the_order_of_units():
    starts = TASK.init(rng(2), 3)
    permutations = sample(TASK.layout, 3, rng(3))
    ridge = StartRidge(straight_runs(), matched=True)
    permuted = ridge(apply(TASK.layout, starts, permutations), asked(0.5, 3), rng())
    torch.testing.assert_close(permuted, apply(TASK.layout, ridge(starts, asked(0.5, 3), rng()), permutations))


def test_regression_leaves_running_variances_positive():
    task = get_task("digits", architecture="cnn", channels=[2, 3])
    starts = task.init(rng(), 12)
    shrunk = starts.clone()
    variances = [slot.span for slot in task.layout if slot.role == "running_var"]
    for span in variances:
        shrunk[:, span] = 0.01 * torch.rand(shrunk[:, span].shape, generator=rng(1))
    runs = Trajectories(task.layout, torch.stack((starts, shrunk), 1), {METRIC: torch.tensor([[2.0, 0.5]] * 12)})
    networks = StartRidge(runs)(1.5 * task.init(rng(2), 20), asked(0.5, 20), rng())
    assert all((networks[:, span] > 0).all() for span in variances)
    assert task.evaluate(networks, "val")["loss"].isfinite().all()


def linear_runs(num_runs: int = 200) -> Trajectories:
    """Networks that are a linear map of their bits, with permuted units."""
    layout = get_task("digits_subset", hidden=(4,)).layout
    bits = (torch.rand(num_runs, 10, generator=rng()) < 0.5).float()
    networks = (2 * bits - 1) @ torch.randn(10, layout.num_params, generator=rng())
    networks += 8 * torch.randn(layout.num_params, generator=torch.Generator().manual_seed(1))
    networks = apply(layout, networks, sample(layout, num_runs, rng()))
    return Trajectories(layout, networks[:, None], {METRIC: torch.full((num_runs, 1), 0.5)}, task_bits=bits)


def test_ridge_finds_a_linear_map_behind_permuted_units():
    runs = linear_runs()
    train, unseen = (
        Trajectories(runs.layout, runs.read(rows, rows * 0)[:, None], {METRIC: torch.full((len(rows), 1), 0.5)},
                     task_bits=runs.task_bits[rows])
        for rows in (torch.arange(150), torch.arange(150, 200))
    )  # fmt: skip
    rows = torch.arange(len(unseen))
    predicted = TaskRidge(train, 0.5)(unseen.task_bits, torch.full((len(unseen),), 0.5), rng())
    matched = align(runs.layout, unseen.read(rows, rows * 0), predicted).params
    assert (matched - predicted).norm() < 0.05 * predicted.norm()


def test_retrieval_takes_the_task_with_the_fewest_other_bits():
    runs = linear_runs(50)
    asked = runs.task_bits[[3, 8]].clone()
    asked[:, 0] = 1 - asked[:, 0]
    found = NearestTask(runs)(asked, torch.full((2,), 0.5), rng())
    networks = runs.read(torch.arange(50), torch.zeros(50, dtype=torch.long))
    which = euclidean_distances(found, networks).argmin(1)
    assert np.all((runs.task_bits[which] != asked).sum(1).numpy() <= 1)
