import pytest
import torch
from torch import nn

from learned_opt import MlpRule, MuLO, NormalizedRule, Pretrained
from learned_opt.evaluation.coordinate_check import coordinate_check
from zoo.networks.architectures import MLP
from zoo.networks.parametrization import parametrize

WIDTHS = (64, 256, 1024)


def untrained(rule) -> Pretrained:
    return Pretrained(rule, rule.init_theta(torch.Generator().manual_seed(0)))


def check(parametrization: str, make_optimizer, widths=WIDTHS):
    rng = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(64, 32, generator=rng), torch.randint(10, (64,), generator=rng)

    def make_model(width: int) -> nn.Module:
        return parametrize(MLP(32, (width, width), 10), parametrization)

    return coordinate_check(make_model, make_optimizer, inputs, targets, sizes=widths, num_updates=3, seeds=(0,))


@pytest.fixture(scope="module")
def mup():
    return check("mup", lambda model: MuLO(model, untrained(MlpRule(8))))


def test_activations_change_equally_at_every_width_in_mup(mup):
    assert all(abs(growth) < 0.12 for growth in mup.growth.values())


def test_they_grow_in_standard_parametrization():
    growth = check("sp", lambda model: MuLO(model, untrained(MlpRule(8, "sp")))).growth
    assert growth["layers.1"] > 0.6
    assert growth["layers.2"] > 0.4


def test_an_unmodified_model_is_served_by_the_update_scales_alone():
    """Hidden layers fully; the standard initialisation of the output layer still lets its products grow a little."""
    growth = check("sp", lambda model: MuLO(model, untrained(MlpRule(8)))).growth
    assert abs(growth["layers.0"]) < 0.15
    assert abs(growth["layers.1"]) < 0.15
    assert abs(growth["layers.2"]) < 0.4


def test_normalised_rule_moves_hidden_layers_equally_whatever_its_theta():
    rule = NormalizedRule()
    pretrained = Pretrained(rule, 0.3 * torch.randn(rule.num_theta, generator=torch.Generator().manual_seed(0)))
    growth = check("mup", lambda model: MuLO(model, pretrained, num_training_steps=50), widths=(64, 256)).growth
    assert abs(growth["layers.0"]) < 0.15
    assert abs(growth["layers.1"]) < 0.15
