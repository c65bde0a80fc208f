import pytest
import torch

from zoo.networks.architectures import CNN, MLP
from zoo.networks.parametrization import parametrize, update_scale
from zoo.networks.roles import PARAM_ROLES


def test_standard_parametrization_scales_no_update():
    assert {update_scale(role, 64, "sp") for role in PARAM_ROLES} == {1.0}
    assert {role: update_scale(role, 64, "mup") for role in PARAM_ROLES if role in ("input", "bias", "embedding")} == {
        "input": 1.0,
        "bias": 1.0,
        "embedding": 1.0,
    }
    assert update_scale("hidden", 64, "mup") == update_scale("output", 64, "mup") == 1 / 64


def test_parametrize_initialises_by_role():
    model = parametrize(MLP(64, (1024, 1024), 10), "mup", rng=torch.Generator().manual_seed(0))
    stds = [layer.weight.std().item() for layer in model.layers]
    assert stds == pytest.approx([1 / 8, 1 / 32, 1 / 1024], rel=0.05)
    assert all(not layer.bias.any() for layer in model.layers)
    norms = parametrize(CNN(), "sp").norms
    assert all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)


def test_bad_parametrizations_are_refused():
    with pytest.raises(ValueError, match=r"must be one of \('sp', 'mup'\), got 'ntk'"):
        parametrize(MLP(2, (3,), 2), "ntk")
    with pytest.raises(ValueError, match="must be one of"):
        update_scale("hidden", 4, "ntk")
    with pytest.raises(ValueError, match="must be one of"):
        update_scale("buffer", 4, "mup")
