"""A rule as an optimizer of populations: what each network gets is what it would get alone."""

from __future__ import annotations

import pytest
import torch

from learned_opt import MlpRule, NormalizedRule
from learned_opt.rules.celo2 import Celo2Rule
from learned_opt.rules.population import PopulationOptimizer
from learned_opt.rules.velo import VeloRule
from tests.devices import other_device
from tests.pretended_graph import pretended_graphs
from zoo.networks.architectures import MLP
from zoo.networks.layout import ParamLayout
from zoo.tasks.registry import get_task
from zoo.training.population import Snapshot, train_population
from zoo.training.schedules import Schedule

LAYOUT = ParamLayout.of(MLP(6, (5, 7), 3))
RULES = {"normalized": NormalizedRule(), "mlp": MlpRule(4)}
RECORDED = {
    "normalized": NormalizedRule(),
    "basis": NormalizedRule(memory=True, basis=True),
    "mlp": MlpRule(4, native=False),  # C is the CPU's
    "celo2": Celo2Rule(),
    "velo": VeloRule(lstm=8, bank=4),
}
REFERENCES = {"normalized": NormalizedRule(reference=True), "mlp": MlpRule(4, reference=True)}


def theta_of(rule) -> torch.Tensor:
    return rule.init_theta(torch.Generator().manual_seed(0))


def trained(optimizer: PopulationOptimizer, params: torch.Tensor, num_steps: int = 3) -> torch.Tensor:
    params = params.clone()
    state = optimizer.init_state(LAYOUT, params)
    for inner_step in range(num_steps):
        grads = params.sin()
        with torch.no_grad():
            optimizer.update(LAYOUT, params, grads, state, inner_step=inner_step, num_steps=num_steps)
    return params


@pytest.fixture
def params() -> torch.Tensor:
    return torch.randn(3, LAYOUT.num_params, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", RULES)
def test_rules_that_make_new_tensors_train_as_those_that_work_in_place(name, params):
    rule, reference = RULES[name], REFERENCES[name]
    plain = trained(PopulationOptimizer(rule, theta_of(rule)), params)
    assert not torch.equal(plain, params)
    torch.testing.assert_close(trained(PopulationOptimizer(reference, theta_of(rule)), params), plain)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_every_network_has_its_own_multiplier_theta_and_schedule(name, reference, params):
    rule = (REFERENCES if reference else RULES)[name]
    theta = theta_of(rule) + 0.01 * torch.arange(3.0)[:, None]
    rates, schedule = torch.tensor([0.5, 0.5, 2.0], dtype=torch.float64), Schedule("cosine")
    together = trained(PopulationOptimizer(rule, theta, lr=rates, schedule=schedule), params)
    for i in range(3):
        alone = PopulationOptimizer(rule, theta[i], lr=float(rates[i]), schedule=schedule)
        torch.testing.assert_close(together[i : i + 1], trained(alone, params[i : i + 1]), rtol=1e-4, atol=1e-6)


def test_clocks_of_their_own(params):
    optimizer = PopulationOptimizer(RULES["normalized"], theta_of(RULES["normalized"]), schedule=Schedule("wsd"))
    counts, lengths = (torch.tensor(values, dtype=torch.float64) for values in ([0, 3, 9], [4, 4, 10]))
    together, state = params.clone(), optimizer.init_state(LAYOUT, params)
    with torch.no_grad():
        optimizer.update(LAYOUT, together, params.sin(), state, inner_step=counts, num_steps=lengths)
        for i, (inner_step, num_steps) in enumerate([(0, 4), (3, 4), (9, 10)]):
            alone, grads = params[i : i + 1].clone(), params[i : i + 1].sin()
            state = optimizer.init_state(LAYOUT, alone)
            optimizer.update(LAYOUT, alone, grads, state, inner_step=inner_step, num_steps=num_steps)
            torch.testing.assert_close(together[i : i + 1], alone)


def population(optimizer: PopulationOptimizer, device: str | torch.device = "cpu") -> list[Snapshot]:
    options = {"num_steps": 9, "batch_size": 8, "snapshot_steps": (0, 1, 9)}
    return list(train_population(get_task("digits", hidden=(4,)).to(device), optimizer, [1, 2, 3], **options))


@pytest.mark.filterwarnings("error:cannot record")
@pytest.mark.parametrize("name", RECORDED)
def test_populations_by_rules_are_recorded_and_are_those_of_python_to_the_bit(name):
    rule = RECORDED[name]
    expected = population(PopulationOptimizer(rule, theta_of(rule)))
    with pretended_graphs() as graphs:
        found = population(PopulationOptimizer(rule, theta_of(rule)))
    assert (graphs.num_recorded, graphs.num_replayed) == (1, 7)
    assert all(torch.equal(one.params, other.params) for one, other in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("error:cannot record")
@pytest.mark.parametrize("name", RECORDED)
def test_nothing_of_a_step_by_a_rule_comes_from_the_host(name):
    rule = RECORDED[name]
    with other_device("sim") as device, pretended_graphs() as graphs:
        population(PopulationOptimizer(rule, theta_of(rule)), device)
    assert graphs.num_recorded == 1


def test_schedules_and_multipliers_of_each_network_are_read_by_python():
    theta = theta_of(RULES["normalized"])
    for options in ({"schedule": Schedule("cosine")}, {"lr": torch.ones(3)}):
        with pretended_graphs() as graphs:
            population(PopulationOptimizer(RULES["normalized"], theta, **options))
        assert graphs.num_warm_ups == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("error:cannot record")
@pytest.mark.parametrize("name", RECORDED)
def test_a_graph_of_a_rule_trains_as_its_steps_do(name, monkeypatch):
    rule = RECORDED[name]
    with monkeypatch.context() as patched:
        patched.setattr("zoo.training.recorded_steps.recorder_for", lambda device: None)
        *_, expected = population(PopulationOptimizer(rule, theta_of(rule)), "cuda")
    *_, found = population(PopulationOptimizer(rule, theta_of(rule)), "cuda")
    torch.testing.assert_close(found.params, expected.params, rtol=1e-4, atol=1e-6)
