"""Batches of networks against the same networks one by one."""

from __future__ import annotations

import pytest
import torch

from learned_opt import MlpRule, NormalizedRule, UpdateRule
from learned_opt.meta_training import synthetic_data
from learned_opt.meta_training.objective import cap_loss
from learned_opt.meta_training.task_distribution import cnn_task, mlp_task
from learned_opt.meta_training.task_family import TaskFamily
from learned_opt.meta_training.truncated_step import LogUniformHorizon, TruncatedStep
from learned_opt.rules.velo import VeloRule
from zoo.tasks.registry import get_task

RULE = NormalizedRule()


def small_family(**options: float) -> TaskFamily:
    teachers = [synthetic_data.teacher_student(seed, 12, 6, 0.1, 400) for seed in (1, 2)]
    return TaskFamily([mlp_task(teacher, [8]) for teacher in teachers], batch_size=16, **options)


def make_step(family: TaskFamily, horizon: tuple[int, int], **options) -> TruncatedStep:
    return TruncatedStep(RULE, family, LogUniformHorizon(*horizon), **options)


def theta() -> torch.Tensor:
    return RULE.init_theta(torch.Generator().manual_seed(0))


@torch.no_grad()
def test_copies_with_the_same_theta_train_alike() -> None:
    step = make_step(small_family(), (3, 9), num_groups=3, num_copies=2)
    state = step.start(torch.Generator().manual_seed(0))
    losses = step.advance(theta(), state, 20, torch.Generator().manual_seed(1)).losses  # (20, 6)
    torch.testing.assert_close(losses[:, :3], losses[:, 3:])


@torch.no_grad()
def test_groups_held_by_two_processes_are_those_of_one() -> None:
    def run(groups: range) -> torch.Tensor:
        step = make_step(small_family(), (3, 9), num_groups=4, num_copies=1, group_range=groups)
        state = step.start(torch.Generator().manual_seed(0), stagger=True)
        return step.advance(theta(), state, 15, torch.Generator().manual_seed(1)).losses

    together = torch.cat([run(range(2)), run(range(2, 4))], dim=1)
    torch.testing.assert_close(together, run(range(4)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_reset_network_begins_like_a_new_one() -> None:
    step = make_step(small_family(), (5, 5), num_groups=2)
    state = step.start(torch.Generator().manual_seed(0))
    truncation = step.advance(theta(), state, 12, torch.Generator().manual_seed(1))
    assert truncation.fresh[:, 0].tolist() == [False] * 5 + [True] * 7
    assert state.inner_step.tolist() == [2, 2]
    assert (truncation.losses[5] > truncation.losses[4]).all()
    assert (state.optimizer["statistics.0"][:, 0] == 2).all()  # the age of the rule's averages


@torch.no_grad()
def test_training_lowers_the_validation_loss() -> None:
    step = make_step(small_family(), (150, 150), num_groups=2, num_copies=1)
    state = step.start(torch.Generator().manual_seed(0))
    before_loss, before_error = step.evaluate(state)
    step.advance(theta(), state, 150, torch.Generator().manual_seed(1))
    loss, error = step.evaluate(state)
    assert (loss < 0.8 * before_loss).all()
    assert (error < before_error).all()


@torch.no_grad()
def test_reparametrised_networks_compute_the_same() -> None:
    seeds, plain, scaled = torch.tensor([1, 2]), small_family(), small_family(param_scale=100.0)
    batch = plain.batch(torch.tensor([0, 1]), torch.rand(2, 16, generator=torch.Generator().manual_seed(0)), 2)
    params, stored = plain.init(seeds), scaled.init(seeds)
    torch.testing.assert_close(stored * 100, params)
    loss, grads = plain.loss_and_grad(params, batch)
    scaled_loss, scaled_grads = scaled.loss_and_grad(stored, batch)
    torch.testing.assert_close(scaled_loss, loss)
    torch.testing.assert_close(scaled_grads, 100 * grads)


@torch.no_grad()
def test_reparametrisation_leaves_batch_norm_statistics_alone() -> None:
    task = cnn_task(synthetic_data.digits_images(8), (4,))
    family = TaskFamily([task], batch_size=8, param_scale=10.0)
    params = family.init(torch.tensor([0]))
    family.loss_and_grad(params, family.batch(torch.tensor([0]), torch.rand(1, 8), 1))
    buffers = task.layout.views(params)
    assert buffers["norms.0.num_batches_tracked"].item() == 1
    assert buffers["norms.0.running_var"].min() > 0.5


PAIRS = [
    (NormalizedRule(), NormalizedRule(reference=True)),
    (MlpRule(4), MlpRule(4, reference=True)),
    (VeloRule(lstm=6, bank=4), VeloRule(lstm=6, bank=4, reference=True)),
]


@pytest.mark.parametrize(("rule", "differentiable"), PAIRS, ids=["normalized", "mlp", "velo"])
def test_a_differentiable_training_is_the_plain_one(rule: UpdateRule, differentiable: UpdateRule) -> None:
    """And rules that put new tensors into their lists train as those that work in place."""
    meta = rule.init_theta(torch.Generator().manual_seed(0))
    runs = {"plain": (rule, False), "reference": (differentiable, False), "differentiable": (differentiable, True)}
    losses = {}
    for name, (used, needs_grad) in runs.items():
        step = TruncatedStep(used, small_family(), LogUniformHorizon(3, 5), num_groups=2, num_copies=1)
        state = step.start(torch.Generator().manual_seed(0))
        leaf = meta.clone().requires_grad_(needs_grad)
        losses[name] = step.advance(leaf, state, 8, torch.Generator().manual_seed(1)).losses  # with a reset
        assert losses[name].requires_grad == needs_grad
    assert losses["plain"][1].mean() != losses["plain"][0].mean()
    torch.testing.assert_close(losses["reference"], losses["plain"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(losses["differentiable"].detach(), losses["plain"], rtol=1e-3, atol=1e-4)
    (grad,) = torch.autograd.grad(losses["differentiable"].mean(), leaf)
    assert grad.isfinite().all()
    assert grad.abs().max() > 0


def test_losses_are_capped() -> None:
    losses = torch.tensor([1.0, float("nan"), float("inf"), 50.0])
    assert cap_loss(losses).tolist() == [1, 20, 20, 20]


def test_tasks_of_different_shape_do_not_mix() -> None:
    datasets = [synthetic_data.teacher_student(1, size, 6, 0.1, 400) for size in (12, 14)]
    with pytest.raises(ValueError, match="share layout"):
        TaskFamily([mlp_task(dataset, [8]) for dataset in datasets])


def test_tasks_of_control_and_of_random_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"repeats to the bit, but \['digits'\] draw random numbers in training"):
        TaskFamily([get_task("digits", augment=["flip"])])
    with pytest.raises(ValueError, match=r"with a loss on examples, \['cartpole'\] have returns instead"):
        TaskFamily([get_task("cartpole", horizon=5)])


def test_tasks_with_many_members_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of one data set each, \['digits_subset'\] are families"):
        TaskFamily([get_task("digits_subset", masks=[3, 5])])


def test_group_range_must_lie_inside() -> None:
    with pytest.raises(ValueError, match="group_range"):
        make_step(small_family(), (5, 5), num_groups=2, group_range=range(1, 3))


def test_horizons_are_log_uniform() -> None:
    horizons = LogUniformHorizon(10, 1000).sample(torch.Generator().manual_seed(0), 20_000)
    assert horizons.min() == 10
    assert horizons.max() == 1000
    assert (horizons < 100).float().mean() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="low 20, high 10"):
        LogUniformHorizon(20, 10)


def test_staggered_first_trainings_differ_and_last_at_least_one_step() -> None:
    state = make_step(small_family(), (100, 100), num_groups=50).start(torch.Generator().manual_seed(0), stagger=True)
    assert 1 <= state.num_steps.min() <= state.num_steps.max() <= 100
    assert len(state.num_steps.unique()) > 20
