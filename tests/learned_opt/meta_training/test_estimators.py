"""Meta-gradients against the exact ones of a quadratic, whose training can be differentiated in closed form."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from learned_opt.meta_training.estimators import (
    PES,
    FullUnrollES,
    MetaGradient,
    TruncatedBackprop,
    TruncatedES,
    es_gradient,
    next_accumulator,
    normalised_differences,
    pes_gradient,
    step_meta_loss,
)
from learned_opt.meta_training.objective import LogLossObjective
from learned_opt.meta_training.truncated_step import LogUniformHorizon, TruncatedStep
from zoo.networks.layout import ParamLayout

HORIZON = 12
CURVATURE = torch.tensor([1.0, 0.3])


class Quadratic:
    """A family of one task: loss = .5 sum(curvature w^2), the same start for every seed."""

    layout = ParamLayout.of(nn.ParameterDict({"w": torch.zeros(2)}))
    is_compilable = False
    batch_size = 1
    tasks = (None,)
    device = torch.device("cpu")

    def init(self, seeds: Tensor) -> Tensor:
        return torch.tensor([[1.0, -2.0]]).repeat(len(seeds), 1)

    def batch(self, members: Tensor, places: Tensor, num_networks: int) -> None:
        return None

    def loss(self, params: Tensor, batch: None) -> Tensor:
        return 0.5 * (CURVATURE * params.square()).sum(1)

    def loss_and_grad(self, params: Tensor, batch: None) -> tuple[Tensor, Tensor]:
        return self.loss(params, batch), CURVATURE * params

    def evaluate(self, params: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss(params, None), params.abs().sum(1)


class MomentumRule:
    """theta = log learning rate, momentum; the momentum buffer makes truncation lose something."""

    name = "momentum"
    num_theta = 2
    config: ClassVar[dict] = {}

    def init_theta(self, rng: torch.Generator) -> Tensor:
        return torch.tensor([-2.5, 0.4])

    def init_state(self, specs, params):
        return {"velocity": [torch.zeros_like(p) for p in params]}

    def update(self, theta, specs, params, grads, state, *, inner_step, num_steps, lr=1.0, weight_decay=0.0):
        theta = theta.expand(len(params[0]), -1)
        velocity = theta[:, 1:] * state["velocity"][0] + grads[0]
        state["velocity"][0] = velocity
        params[0] = params[0] - theta[:, :1].exp() * velocity


RULE = MomentumRule()
THETA = RULE.init_theta(torch.Generator())


def exact_gradient(theta: Tensor, num_steps: int = HORIZON, log_floor: float | None = None) -> Tensor:
    leaf = theta.clone().requires_grad_()
    w, velocity, total = torch.tensor([1.0, -2.0]), torch.zeros(2), torch.zeros(())
    for _ in range(num_steps):
        total = total + step_meta_loss(0.5 * (CURVATURE * w.square()).sum(), log_floor)
        velocity = leaf[1] * velocity + CURVATURE * w
        w = w - leaf[0].exp() * velocity
    return torch.autograd.grad(total / num_steps, leaf)[0]


def make_step(num_groups: int, num_copies: int = 2, horizon: int = HORIZON) -> TruncatedStep:
    return TruncatedStep(
        RULE, Quadratic(), LogUniformHorizon(horizon, horizon), num_groups=num_groups, num_copies=num_copies
    )


def mean_gradient(estimator: TruncatedES, num_estimates: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    grads = [estimator.estimate(THETA, rng).grad for _ in range(num_estimates)]
    return torch.stack(grads).mean(0)


@pytest.mark.parametrize("log_floor", [None, 0.01])
def test_pes_is_unbiased_for_the_whole_training(log_floor: float | None) -> None:
    estimator = PES([make_step(4000)], truncation_length=3, std=0.03, log_floor=log_floor)
    exact = exact_gradient(THETA, log_floor=log_floor)
    torch.testing.assert_close(mean_gradient(estimator, 60), exact, rtol=0.05, atol=0.0)


def test_truncated_es_is_biased_where_pes_is_not() -> None:
    estimator = TruncatedES([make_step(4000)], truncation_length=3, std=0.03)
    error = (mean_gradient(estimator, 60) - exact_gradient(THETA)).norm()
    assert error > 0.3 * exact_gradient(THETA).norm()


def test_full_unroll_es_matches_the_exact_gradient() -> None:
    estimator = FullUnrollES(
        RULE,
        lambda rng: (Quadratic(), HORIZON),
        lambda losses, validation: losses.mean(0),
        num_pairs=20000,
        std=0.03,
        normalise=False,
    )
    estimate = estimator.estimate(THETA, torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate.grad, exact_gradient(THETA), rtol=0.05, atol=0.0)
    assert estimate.num_inner_steps == 2 * 20000 * HORIZON


def test_zero_std_freezes_a_meta_parameter() -> None:
    estimator = FullUnrollES(
        RULE, lambda rng: (Quadratic(), 5), LogLossObjective(), num_pairs=4, std=torch.tensor([0.0, 0.1])
    )
    grad = estimator.estimate(THETA, torch.Generator().manual_seed(0)).grad
    assert grad[0] == 0
    assert grad[1] != 0


@pytest.mark.parametrize("estimator_class", [PES, TruncatedES])
def test_state_resumes_exactly(estimator_class: type[TruncatedES]) -> None:
    def run(split: bool) -> list[MetaGradient]:
        estimator = estimator_class([make_step(3)], truncation_length=5, std=0.1)
        estimates = []
        for outer_step in range(8):
            if split and outer_step == 4:
                state = estimator.state_dict()
                estimator = estimator_class([make_step(3)], truncation_length=5, std=0.1)
                estimator.load_state_dict(state)
            estimates.append(estimator.estimate(THETA, torch.Generator().manual_seed(outer_step)))
        return estimates

    for straight, resumed in zip(run(False), run(True), strict=True):
        assert torch.equal(straight.grad, resumed.grad)


@pytest.mark.parametrize("log_floor", [None, 0.01])
def test_backprop_over_a_whole_training_is_exact(log_floor: float | None) -> None:
    estimator = TruncatedBackprop([make_step(1, num_copies=1)], truncation_length=HORIZON, log_floor=log_floor)
    step = estimator.steps[0]
    estimator.states[0] = step.start(torch.Generator().manual_seed(0))
    estimate = estimator.estimate(THETA, torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate.grad, exact_gradient(THETA, log_floor=log_floor))


def test_pes_counts_only_the_current_perturbation_after_a_reset() -> None:
    differences = torch.tensor([[1.0], [1.0], [1.0]])
    fresh = torch.tensor([[False], [False], [True]])
    perturbations, accumulator, std = torch.tensor([[0.1]]), torch.tensor([[0.4]]), torch.tensor([0.1])
    grad = pes_gradient(differences, fresh, perturbations, accumulator, std)
    torch.testing.assert_close(grad, torch.tensor([(2 / 3 * 0.5 + 1 / 3 * 0.1) / (2 * 0.1**2)]))
    assert torch.equal(next_accumulator(fresh, perturbations, accumulator), perturbations)
    torch.testing.assert_close(next_accumulator(fresh[:2], perturbations, accumulator), torch.tensor([[0.5]]))


def test_pes_without_history_is_es() -> None:
    rng = torch.Generator().manual_seed(0)
    differences, perturbations = torch.randn(7, 5, generator=rng), torch.randn(5, 3, generator=rng)
    std = torch.full((3,), 0.2)
    fresh = torch.rand(7, 5, generator=rng) < 0.5
    grad = pes_gradient(differences, fresh, perturbations, torch.zeros(5, 3), std)
    torch.testing.assert_close(grad, es_gradient(differences.mean(0), perturbations, std))


def test_normalised_differences_ignore_scale_of_small_losses_only_above_the_floor() -> None:
    differences = torch.tensor([0.5, -0.3, 0.1])
    assert normalised_differences(differences).std() == pytest.approx(1, abs=0.1)
    assert normalised_differences(torch.zeros(3)).abs().max() == 0


def test_an_estimator_needs_the_copies_that_it_perturbs() -> None:
    with pytest.raises(ValueError, match="num_copies=2"):
        PES([make_step(2, num_copies=1)], truncation_length=2, std=0.1)
    with pytest.raises(ValueError, match="num_copies=1"):
        TruncatedBackprop([make_step(2)], truncation_length=2)
