import pytest
import torch

from zoo.networks.architectures import CNN, MLP
from zoo.networks.parametrization import forward_multiplier, init_std, parametrize, update_scale
from zoo.networks.roles import PARAM_ROLES


@pytest.mark.parametrize("fan_in", [1, 16, 300])
def test_both_forms_of_mup_train_alike(fan_in):
    """An output layer with a multiplier m moves its product by m times its update."""
    variance, multiplier, update = (
        [f("output", fan_in, form) for form in ("mup", "mup_multiplier")]
        for f in (init_std, forward_multiplier, update_scale)
    )
    assert variance[0] * multiplier[0] == pytest.approx(variance[1] * multiplier[1])
    assert update[0] * multiplier[0] == pytest.approx(update[1] * multiplier[1])


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
    with pytest.raises(ValueError, match="forward pass"):
        parametrize(MLP(2, (3,), 2), "mup_multiplier")
    with pytest.raises(ValueError, match="must be one of"):
        update_scale("hidden", 4, "ntk")
    with pytest.raises(ValueError, match="must be one of"):
        update_scale("buffer", 4, "mup")
