import pytest
import torch
from torch import nn

from zoo.networks.architectures import CNN, MLP
from zoo.networks.layout import ParamLayout
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
    with pytest.raises(ValueError, match=r"must be one of \('sp', 'mup'\), got 'ntk'"):
        parametrize(MLP(2, (3,), 2), "ntk")
    with pytest.raises(ValueError, match="must be one of"):
        update_scale("hidden", 4, "ntk")
    with pytest.raises(ValueError, match="must be one of"):
        update_scale("buffer", 4, "mup")
