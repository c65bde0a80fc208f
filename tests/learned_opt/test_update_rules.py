"""One battery for every update rule."""

from typing import ClassVar

import pytest
import torch

import learned_opt
from learned_opt.rules.celo2 import Celo2Rule
from learned_opt.rules.mlp import MlpRule
from learned_opt.rules.normalized import NormalizedRule
from learned_opt.rules.registry import get_rule
from learned_opt.rules.rule import TensorSpec, UpdateRule, reads_loss
from learned_opt.rules.velo import VeloRule
from tests.ambient import AMBIENTS

SPECS = [
    TensorSpec("input", "input", 5, (7, 5), 2),
    TensorSpec("hidden", "hidden", 7, (7, 7), 2),
    TensorSpec("other hidden", "hidden", 7, (7, 7), 2),
    TensorSpec("kernel", "hidden", 27, (4, 3, 3, 3), 2),
    TensorSpec("tall", "output", 3, (9, 3), 2),
    TensorSpec("embedding", "embedding", 1, (11, 4), 2),
    TensorSpec("norm", "norm", 1, (6,), 2),
    TensorSpec("bias", "bias", 5, (20,), 2),
    TensorSpec("scalar", "bias", 1, (), 2),
    TensorSpec("empty", "hidden", 3, (0, 3), 2),
]
RULES = [
    MlpRule(8),
    MlpRule(8, "sp"),
    NormalizedRule(),
    NormalizedRule(feedback=False),
    NormalizedRule(memory=True, basis=True),
    Celo2Rule(),
    Celo2Rule(orthogonalize=False),
    VeloRule(lstm=8, bank=6),
]
IDS = ["mulo", "small-fc-lopt", "normalized", "scalars", "basis", "celo2", "celo2-base", "velo"]
every_rule = pytest.mark.parametrize("rule", RULES, ids=IDS)


def random_theta(rule: UpdateRule, num_networks: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    start = torch.stack([rule.init_theta(rng) for _ in range(num_networks)])
    return start + 0.1 * torch.randn(start.shape, generator=rng)


@every_rule
@pytest.mark.parametrize("ambient", AMBIENTS)
def test_theta_begins_alike_whatever_a_program_has_set_for_torch(rule, ambient):
    expected = rule.init_theta(torch.Generator().manual_seed(0))
    with AMBIENTS[ambient]():
        found = rule.init_theta(torch.Generator("cpu").manual_seed(0))
    assert torch.equal(found, expected)


def random_tensors(num_networks: int, seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(num_networks, *spec.shape, generator=rng) for spec in SPECS]


def told(rule: UpdateRule, inner_step: int) -> dict[str, torch.Tensor]:
    """The loss of all networks, for rules that read it."""
    return {"loss": torch.tensor(3.0 / (inner_step + 1))} if reads_loss(rule) else {}


def run(rule, theta, *, networks=slice(None), num_networks=3, num_updates=10, **options):
    params = [p[networks].clone() for p in random_tensors(num_networks, 0)]
    state = rule.init_state(SPECS, params)
    for inner_step in range(num_updates):
        grads = [g[networks].clone() for g in random_tensors(num_networks, 1 + inner_step, 0.1)]
        clock = {"inner_step": inner_step, "num_steps": num_updates}
        rule.update(theta, SPECS, params, grads, state, **clock, **told(rule, inner_step), **options)
    return params, state


@every_rule
def test_rule_meets_the_protocol_and_is_rebuilt_from_its_config(rule):
    assert isinstance(rule, UpdateRule)
    again = get_rule(rule.name, **rule.config)
    assert again.config == rule.config
    assert again.num_theta == rule.num_theta == rule.init_theta(torch.Generator()).numel()


@every_rule
def test_networks_do_not_meet(rule):
    theta = random_theta(rule, 3)
    together, _ = run(rule, theta)
    for n in range(3):
        alone, _ = run(rule, theta[n : n + 1], networks=slice(n, n + 1))
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[n : n + 1], b, rtol=1e-4, atol=1e-5)


@every_rule
def test_one_theta_serves_all_networks(rule):
    theta = random_theta(rule, 1)
    shared, _ = run(rule, theta[0])
    repeated, _ = run(rule, theta.expand(3, -1))
    for a, b in zip(shared, repeated, strict=True):
        torch.testing.assert_close(a, b)


@every_rule
def test_lr_zero_leaves_parameters_and_doubles_scale_the_first_update(rule):
    theta = random_theta(rule, 3)
    start = random_tensors(3, 0)
    still, _ = run(rule, theta, num_updates=3, lr=0.0, weight_decay=0.5)
    single, _ = run(rule, theta, num_updates=1)
    double, _ = run(rule, theta, num_updates=1, lr=[2.0] * len(SPECS))
    for a, b, c, d in zip(start, still, single, double, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(2 * (c - a), d - a, rtol=1e-3, atol=1e-5)


@every_rule
def test_weight_decay_shrinks_by_a_common_factor(rule):
    theta = random_theta(rule, 3)
    start = random_tensors(3, 0)
    plain, _ = run(rule, theta, num_updates=1, weight_decay=0.0)
    decays = [0.0 if spec.role == "bias" else 5.0 for spec in SPECS]
    decayed, _ = run(rule, theta, num_updates=1, weight_decay=decays)
    for spec, p, a, b in zip(SPECS, start, plain, decayed, strict=True):
        factor = (a - b) / p
        if spec.role == "bias":
            torch.testing.assert_close(a, b)
        elif factor.numel():
            means = factor.flatten(1).mean(1)
            assert (means > 0).all()
            torch.testing.assert_close(a - b, means.reshape(-1, *[1] * (p.ndim - 1)) * p, rtol=1e-2, atol=1e-5)


@every_rule
def test_state_is_float32_with_a_leading_network(rule):
    _, state = run(rule, random_theta(rule, 3), num_updates=2)
    for tensors in state.values():
        assert len(tensors) == len(SPECS)
        assert all(t.dtype == torch.float32 and t.shape[0] == 3 for t in tensors)
        assert all(torch.isfinite(t).all() for t in tensors)


@every_rule
def test_zero_gradients_give_finite_updates(rule):
    params = random_tensors(2, 0)
    state = rule.init_state(SPECS, params)
    for inner_step in range(3):
        zeros = [torch.zeros_like(p) for p in params]
        clock = {"inner_step": inner_step, "num_steps": 9 if isinstance(rule, VeloRule) else None}
        rule.update(random_theta(rule, 2), SPECS, params, zeros, state, **clock, **told(rule, inner_step))
    assert all(torch.isfinite(p).all() for p in params)


MASKED = {
    **dict(zip(IDS, RULES, strict=True)),
    "in torch": MlpRule(8, native=False),
    "mulo reference": MlpRule(8, reference=True),
    "normalized reference": NormalizedRule(reference=True),
    "velo reference": VeloRule(lstm=8, bank=6, reference=True),
}


@pytest.mark.parametrize("rule", MASKED.values(), ids=MASKED)
def test_inactive_networks_stay_and_others_do_not_notice(rule):
    theta = random_theta(rule, 3)
    runs = []
    for is_masked in (True, False):
        params = random_tensors(3, 0)
        state = rule.init_state(SPECS, params)
        for inner_step in range(3):
            grads = random_tensors(3, 1 + inner_step, 0.1)
            options = told(rule, inner_step)
            if is_masked and inner_step == 2:
                before = [t[1].clone() for tensors in (params, *state.values()) for t in tensors]
                for grad in grads:
                    grad[1] = torch.nan
                options |= {"active": [torch.tensor([True, False, True])] * len(SPECS)}
            rule.update(
                theta, SPECS, params, grads, state, inner_step=inner_step, num_steps=9, weight_decay=0.1, **options
            )
        runs.append([t for tensors in (params, *state.values()) for t in tensors])
    for masked, whole, old in zip(*runs, before, strict=True):
        assert torch.equal(masked[1], old)
        torch.testing.assert_close(masked[[0, 2]], whole[[0, 2]], rtol=1e-5, atol=1e-6)


class SignRule:
    """A rule of a user, which has not heard of inactive networks and changes tensors in place."""

    name, num_theta, uses_horizon = "sign", 1, False
    config: ClassVar[dict] = {}

    def init_theta(self, rng):
        return torch.zeros(1)

    def init_state(self, specs, params):
        return {"momentum": [torch.zeros_like(p) for p in params]}

    def update(self, theta, specs, params, grads, state, *, inner_step, num_steps, lr=1.0, weight_decay=0.0):
        for param, grad, momentum in zip(params, grads, state["momentum"], strict=True):
            momentum.lerp_(grad, 0.1)
            param.sub_(0.01 * momentum.sign())


def test_for_other_rules_the_optimizer_restores_inactive_networks():
    rule, stack = SignRule(), torch.nn.Module()
    stack.experts = torch.nn.Parameter(torch.ones(3, 2, 4))
    optimizer = learned_opt.LearnedOptimizer(
        stack, learned_opt.Pretrained(rule, torch.zeros(1)), roles={"experts": "hidden"}, depth=1
    )
    for _ in range(2):
        stack.experts.grad = torch.ones(3, 2, 4)
        optimizer.step()
    before, momentum = stack.experts.detach().clone(), optimizer.state[stack.experts]["momentum"].clone()
    stack.experts.grad[1] = 0.0
    optimizer.step()
    for now, then in ((stack.experts, before), (optimizer.state[stack.experts]["momentum"], momentum)):
        assert torch.equal(now[1], then[1])
        assert not (now[[0, 2]] == then[[0, 2]]).any()


@every_rule
def test_wrong_theta_is_refused(rule):
    params = random_tensors(3, 0)
    state = rule.init_state(SPECS, params)
    args = (SPECS, params, random_tensors(3, 1), state)
    with pytest.raises(ValueError, match="meta-parameters"):
        rule.update(torch.zeros(rule.num_theta + 1), *args, inner_step=0, num_steps=10)
    with pytest.raises(ValueError, match="2 networks"):
        rule.update(torch.zeros(2, rule.num_theta), *args, inner_step=0, num_steps=10)


def test_unknown_rule_is_named():
    with pytest.raises(KeyError, match="no update rule 'adam'"):
        learned_opt.get_rule("adam")
