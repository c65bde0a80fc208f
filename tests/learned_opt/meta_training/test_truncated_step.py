"""Batches of networks against the same networks one by one."""

from __future__ import annotations

import pytest
import torch
from learned_opt.meta_training.task_problem import TaskProblem
from learned_opt.meta_training.tasks import cnn_task, mlp_task
from learned_opt.meta_training.truncation import LogUniformHorizon

from learned_opt import NormalizedRule
from learned_opt.meta_training import synthetic_data
from learned_opt.meta_training.truncated_step import TruncatedStep, cap_loss
from zoo.tasks.registry import get_task

RULE = NormalizedRule()


def small_problem(**options: float) -> TaskProblem:
    teachers = [synthetic_data.teacher_student(seed, 12, 6, 0.1, 400) for seed in (1, 2)]
    return TaskProblem([mlp_task(teacher, [8]) for teacher in teachers], batch_size=16, **options)


def make_step(problem: TaskProblem, horizon: tuple[int, int], **options) -> TruncatedStep:
    return TruncatedStep(RULE, problem, LogUniformHorizon(*horizon), **options)


def theta() -> torch.Tensor:
    return RULE.init_theta(torch.Generator().manual_seed(0))


@torch.no_grad()
def test_copies_with_the_same_theta_train_alike() -> None:
    step = make_step(small_problem(), (3, 9), num_groups=3, num_copies=2)
    state = step.start(torch.Generator().manual_seed(0))
    losses = step.advance(theta(), state, 20, torch.Generator().manual_seed(1)).losses  # (20, 6)
    torch.testing.assert_close(losses[:, :3], losses[:, 3:])


@torch.no_grad()
def test_groups_held_by_two_processes_are_those_of_one() -> None:
    def run(groups: range) -> torch.Tensor:
        step = make_step(small_problem(), (3, 9), num_groups=4, num_copies=1, group_range=groups)
        state = step.start(torch.Generator().manual_seed(0), stagger=True)
        return step.advance(theta(), state, 15, torch.Generator().manual_seed(1)).losses

    together = torch.cat([run(range(2)), run(range(2, 4))], dim=1)
    torch.testing.assert_close(together, run(range(4)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_reset_network_begins_like_a_new_one() -> None:
    step = make_step(small_problem(), (5, 5), num_groups=2)
    state = step.start(torch.Generator().manual_seed(0))
    truncation = step.advance(theta(), state, 12, torch.Generator().manual_seed(1))
    assert truncation.fresh[:, 0].tolist() == [False] * 5 + [True] * 7
    assert state.clocks.inner_step.tolist() == [2, 2]
    assert (truncation.losses[5] > truncation.losses[4]).all()
    assert (state.rule_state["statistics"][0][:, 0] == 2).all()  # the age of the rule's averages


@torch.no_grad()
def test_training_lowers_the_validation_loss() -> None:
    problem = small_problem()
    step = make_step(problem, (150, 150), num_groups=2, num_copies=1)
    state = step.start(torch.Generator().manual_seed(0))
    before_loss, before_error = step.evaluate(state)
    step.advance(theta(), state, 150, torch.Generator().manual_seed(1))
    loss, error = step.evaluate(state)
    assert (loss < 0.8 * before_loss).all()
    assert (error < before_error).all()


@torch.no_grad()
def test_reparametrised_networks_compute_the_same() -> None:
    seeds, datasets = torch.tensor([1, 2]), torch.tensor([0, 1])
    examples = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    plain, scaled = small_problem(), small_problem(param_scale=100.0)
    params, stored = plain.init(seeds), scaled.init(seeds)
    torch.testing.assert_close(stored * 100, params)
    loss, grads = plain.loss_and_grad(params, datasets, examples)
    scaled_loss, scaled_grads = scaled.loss_and_grad(stored, datasets, examples)
    torch.testing.assert_close(scaled_loss, loss)
    for grad, scaled_grad in zip(grads, scaled_grads, strict=True):
        torch.testing.assert_close(scaled_grad, 100 * grad)


@torch.no_grad()
def test_reparametrisation_leaves_batch_norm_statistics_alone() -> None:
    task = cnn_task(synthetic_data.digits_images(8), (4,))
    problem = TaskProblem([task], batch_size=8, param_scale=10.0)
    params = problem.init(torch.tensor([0]))
    problem.loss_and_grad(params, torch.tensor([0]), torch.rand(1, 8))
    buffers = task.layout.views(params)
    assert buffers["norms.0.num_batches_tracked"].item() == 1
    assert buffers["norms.0.running_var"].min() > 0.5


def test_a_differentiable_gradient_equals_the_hand_written_one() -> None:
    problem = small_problem()
    params, datasets = problem.init(torch.tensor([1, 2])), torch.tensor([0, 1])
    examples = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss, grads = problem.loss_and_grad(params, datasets, examples)
    graph_loss, graph_grads = problem.loss_and_grad(params, datasets, examples)
    torch.testing.assert_close(graph_loss, loss)
    for one, other in zip(grads, graph_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        assert other.requires_grad


def test_losses_are_capped() -> None:
    losses = torch.tensor([1.0, float("nan"), float("inf"), 50.0])
    assert cap_loss(losses, 20.0).tolist() == [1, 20, 20, 20]


def test_tasks_of_different_shape_do_not_mix() -> None:
    datasets = [synthetic_data.teacher_student(1, size, 6, 0.1, 400) for size in (12, 14)]
    with pytest.raises(ValueError, match="share layout"):
        TaskProblem([mlp_task(dataset, [8]) for dataset in datasets])


def test_tasks_of_control_are_refused() -> None:
    with pytest.raises(ValueError, match=r"with a loss on examples, \['cartpole'\] have returns instead"):
        TaskProblem([get_task("cartpole", horizon=5)])


def test_group_range_must_lie_inside() -> None:
    with pytest.raises(ValueError, match="group_range"):
        make_step(small_problem(), (5, 5), num_groups=2, group_range=range(1, 3))
