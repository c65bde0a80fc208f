import pytest
import torch
from torch import nn

from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import ParamLayout
from zoo.networks.parametrization import (
    PARAM_ROLES,
    UnknownRoleError,
    forward_multiplier,
    infer_roles,
    init_std,
    parametrize,
    update_scale,
)


def test_mlp_roles_and_fan_in():
    layout = ParamLayout.of(MLP(8, (6, 5), 3))
    assert [slot.role for slot in layout] == ["input", "bias", "hidden", "bias", "output", "bias"]
    assert [slot.fan_in for slot in layout] == [8, 8, 6, 6, 5, 5]


def test_cnn_roles_and_fan_in():
    layout = ParamLayout.of(CNN(1, (4, 6), 3))
    assert layout["convs.0.weight"].role == "input"
    assert layout["convs.1.weight"].role == "hidden"
    assert layout["convs.1.weight"].fan_in == 4 * 9
    assert layout["norms.0.weight"].role == "norm"
    assert layout["norms.0.bias"].role == "bias"
    assert layout["head.weight"].role == "output"


def test_transformer_has_embeddings_and_no_input_matrix():
    roles = infer_roles(ByteTransformer(num_blocks=1), strict=True)
    assert roles["token_embedding.weight"] == roles["position_embedding.weight"] == "embedding"
    assert roles["blocks.0.query.weight"] == "hidden"
    assert roles["head.weight"] == "output"
    assert "input" not in roles.values()


class WithToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(4, 8))
        self.first = nn.Linear(3, 8)
        self.head = nn.Linear(8, 2)


def test_strict_names_what_it_cannot_infer():
    with pytest.raises(UnknownRoleError, match=r"positions \(4, 8\) of WithToken"):
        infer_roles(WithToken(), strict=True)
    roles = infer_roles(WithToken(), {"positions": "embedding"}, strict=True)
    assert roles["positions"] == "embedding"


@pytest.mark.parametrize("overrides", [{"nonsense": "input"}, {"head.weight": "nonsense"}])
def test_bad_overrides_are_refused(overrides):
    with pytest.raises(ValueError, match="nonsense"):
        infer_roles(WithToken(), overrides)


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


def test_what_has_no_power_of_width_keeps_the_modules_own_scale():
    """Embeddings and gains: Table 8 fixes how scales change with width, and theirs do not."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 8)
            self.norm = nn.LayerNorm(8)
            nn.init.zeros_(self.norm.weight)  # a branch that begins switched off
            self.head = nn.Linear(8, 3)

    torch.manual_seed(0)
    for model in (Model(), CNN(1, (4, 6), 3)):
        layout = ParamLayout.of(model)
        before = layout.views(layout.flatten(model))
        parametrize(model)
        after = layout.views(layout.flatten(model))
        for slot in layout:
            is_kept = slot.role not in ("input", "hidden", "output", "bias")
            assert torch.equal(before[slot.name], after[slot.name]) == (is_kept or not before[slot.name].any())


def test_bad_parametrizations_are_refused():
    with pytest.raises(ValueError, match="forward pass"):
        parametrize(MLP(2, (3,), 2), "mup_multiplier")
    with pytest.raises(ValueError, match="must be one of"):
        update_scale("hidden", 4, "ntk")
    with pytest.raises(ValueError, match="must be one of"):
        update_scale("buffer", 4, "mup")
