import pytest
import torch

from zoo.checkpoints.inferred_layout import layout_of_state_dict
from zoo.networks import symmetry
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import ParamLayout


@pytest.mark.parametrize(
    "build",
    [
        lambda: MLP(4, (3, 5), 2),
        lambda: MLP(4, (), 2),
        lambda: CNN(1, (4, 6), 3),
        lambda: ByteTransformer(11, 7, width=8, num_blocks=2, num_heads=2),
    ],
)
def test_the_guess_agrees_with_what_the_module_knows(build):
    module = build()
    guess, known = layout_of_state_dict(module.state_dict()), ParamLayout.of(module)
    assert guess.slots == known.slots


def test_names_of_other_libraries():
    tensors = {
        "transformer.wte.weight": torch.zeros(50, 8),
        "transformer.h.0.ln_1.weight": torch.zeros(8),
        "transformer.h.0.ln_1.bias": torch.zeros(8),
        "transformer.h.0.attn.c_attn.weight": torch.zeros(8, 24),
        "bert.LayerNorm.gamma": torch.zeros(8),
        "bert.LayerNorm.beta": torch.zeros(8),
        "layer1.0.bn1.weight": torch.zeros(8),
        "cls_token": torch.zeros(1, 1, 8),
        "logit_scale": torch.tensor(1.0),
        "mask": torch.ones(4, dtype=torch.bool),
        "fc.weight": torch.zeros(10, 8),
        "fc.bias": torch.zeros(10),
    }
    layout = layout_of_state_dict(tensors)
    roles = {slot.name: slot.role for slot in layout}
    assert list(roles.values()) == [
        *("embedding", "norm", "bias", "hidden", "norm", "bias", "norm", "hidden", "bias", "output", "bias"),
        "counter",
    ]
    assert layout["fc.bias"].fan_in == 8
    assert layout["mask"].kind == "buffer"


def test_the_rank_dims_of_an_adapter_may_be_permuted():
    rng = torch.Generator().manual_seed(0)
    tensors = {
        "q_proj.lora_A.weight": torch.randn(3, 5, generator=rng),
        "q_proj.lora_B.weight": torch.randn(6, 3, generator=rng),
        "embed_tokens.lora_embedding_A": torch.randn(3, 9, generator=rng),
    }
    layout = layout_of_state_dict(tensors)
    assert {slot.role for slot in layout} == {"hidden"}
    params = layout.flatten(tensors).unsqueeze(0)
    changed = symmetry.apply(layout, params, symmetry.sample(layout, 1, rng))
    assert not torch.equal(changed, params)
    old, new = layout.views(params[0]), layout.views(changed[0])
    torch.testing.assert_close(
        new["q_proj.lora_B.weight"] @ new["q_proj.lora_A.weight"],
        old["q_proj.lora_B.weight"] @ old["q_proj.lora_A.weight"],
    )


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one tensor"):
        layout_of_state_dict({})
    with pytest.raises(ValueError, match="must be real"):
        layout_of_state_dict({"w": torch.zeros(2, dtype=torch.complex64)})
