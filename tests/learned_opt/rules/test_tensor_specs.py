import pytest
import torch
from torch import nn

from learned_opt.rules.tensor_specs import NamedParam, guessed_roles, infer_depth, matrix_view, tensor_specs
from zoo.networks.architectures import CNN, MLP, ByteTransformer


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)


def residual_net() -> nn.Module:
    stages = [nn.Sequential(*(ResidualBlock(4) for _ in range(2))) for _ in range(3)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), *stages, nn.Linear(4, 10))


class Stage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width, 2)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(3)))


class MixtureBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mix = nn.Linear(width, width)
        self.experts = nn.ModuleList(MLP(width, (width,), width) for _ in range(4))


@pytest.mark.parametrize(
    ("model", "depth"),
    [
        (MLP(8, (6,), 3), 1),
        (MLP(8, (6, 5, 4), 3), 3),
        (nn.Linear(4, 2), 1),
        (CNN(1, (4, 6), 3), 2),
        (ByteTransformer(width=8, num_blocks=3, num_heads=2), 6),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), 4),
        (residual_net(), 6),
        (nn.Sequential(Stage(4), Stage(4)), 6),
        (nn.Sequential(MixtureBlock(4), MixtureBlock(4), nn.Linear(4, 2)), 4),
    ],
)
@pytest.mark.filterwarnings("ignore:roles were guessed")
def test_depth_is_residual_branches_or_hidden_layers(model, depth):
    assert {spec.depth for spec in tensor_specs(model).values()} == {depth}


def test_depth_and_roles_can_be_given():
    specs = tensor_specs(MLP(8, (6,), 3), roles={"layers.0.weight": "hidden"}, depth=7)
    assert specs["layers.0.weight"].role == "hidden"
    assert {spec.depth for spec in specs.values()} == {7}


def test_a_model_without_blocks_has_no_branches():
    assert infer_depth(MLP(8, (6, 5), 3)) == 0


def test_specs_of_a_convolution():
    spec = tensor_specs(CNN(1, (4, 6), 3))["convs.1.weight"]
    assert (spec.role, spec.fan_in, spec.shape) == ("hidden", 36, (6, 4, 3, 3))


def test_wrappers_are_looked_through():
    model = MLP(8, (6,), 3)
    assert tensor_specs(torch.compile(nn.DataParallel(model), backend="eager")) == tensor_specs(model)


def test_a_stack_of_matrices_is_as_many_networks():
    stack = torch.arange(24.0).reshape(2, 3, 4)
    assert matrix_view(stack, "eoi").shape == (2, 3, 4)
    assert torch.equal(matrix_view(stack, "eio")[1], stack[1].T)
    assert torch.equal(matrix_view(stack[0], "io")[0], stack[0].T)
    assert matrix_view(stack[0], "io").data_ptr() == stack.data_ptr()


@pytest.mark.parametrize(
    ("layer", "width", "shape"),
    [
        (nn.ConvTranspose2d(64, 3, 4), 64, (3, 64, 4, 4)),
        (nn.ConvTranspose1d(64, 6, 4, groups=2), 32, (3, 64, 4)),
        (nn.Conv2d(64, 6, 4, groups=2), 32, (6, 32, 4, 4)),
    ],
)
def test_width_counts_inputs_whichever_axis_holds_them(layer, width, shape):
    spec = tensor_specs(nn.Sequential(nn.Linear(8, 8), layer))["1.weight"]
    assert (spec.width, spec.shape) == (width, shape)


def test_every_tensor_knows_whether_the_model_reads_tokens():
    assert all(spec.reads_tokens for spec in tensor_specs(ByteTransformer(num_blocks=1)).values())
    assert not any(spec.reads_tokens for spec in tensor_specs(MLP(8, (6,), 3)).values())


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions, self.head = nn.Parameter(torch.zeros(4, 8)), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(x + self.positions)


def test_a_table_of_positions_is_no_table_of_tokens():
    specs = tensor_specs(Patches())
    assert specs["positions"].role == "embedding"
    assert not specs["positions"].reads_tokens


def test_guessing_uses_given_roles_names_and_order():
    shapes = {"embed.weight": (9, 4), "a": (4, 4), "norm.weight": (4,), "norm.bias": (4,), "b": (4, 4), "head": (2, 4)}
    params = [NamedParam(name, torch.zeros(shape)) for name, shape in shapes.items()]
    with pytest.warns(UserWarning, match=r"a: hidden, b: hidden, head: output"):
        roles, depth, _ = guessed_roles(params)
    assert [known.role for known in roles] == ["embedding", "hidden", "norm", "bias", "hidden", "output"]
    assert depth == 2


TOLD = {  # shapes and roles by names of public models
    "ViT": {
        "cls_token": ((1, 1, 8), "embedding"),
        "pos_embed": ((1, 5, 8), "embedding"),
        "patch_embed.proj.weight": ((8, 3, 4, 4), "input"),
        "patch_embed.proj.bias": ((8,), "bias"),
        "patch_embed.norm.weight": ((8,), "norm"),
        "blocks.0.attn.qkv.weight": ((24, 8), "hidden"),
        "head.weight": ((5, 8), "output"),
        "head_dist.weight": ((5, 8), "output"),
    },
    "BERT": {
        "embeddings.word_embeddings.weight": ((9, 8), "embedding"),
        "embeddings.position_embeddings.weight": ((9, 8), "embedding"),
        "embeddings.LayerNorm.weight": ((8,), "norm"),
        "embeddings.LayerNorm.bias": ((8,), "bias"),
        "encoder.layer.0.output.dense.weight": ((8, 8), "hidden"),
        "classifier.weight": ((2, 8), "output"),
    },
    "T5": {
        "shared.weight": ((9, 8), "embedding"),
        "relative_attention_bias.weight": ((4, 2), "embedding"),
        "decoder.0.shared_expert.gate.weight": ((8, 8), "hidden"),
        "time_embed.0.weight": ((8, 8), "hidden"),
        "tok_emb.weight": ((9, 8), "embedding"),
        "lm_head.weight": ((9, 8), "output"),
    },
    "ResNet": {
        "conv1.weight": ((8, 3, 3, 3), "input"),
        "bn1.weight": ((8,), "norm"),
        "bn1.bias": ((8,), "bias"),
        "layer1.0.conv1.weight": ((8, 8, 3, 3), "hidden"),
        "fc.weight": ((5, 8), "output"),
    },
}


@pytest.mark.parametrize("model", TOLD)
@pytest.mark.filterwarnings("ignore:parameters do not tell")
def test_names_tell_roles(model):
    params = [NamedParam(name, torch.zeros(shape)) for name, (shape, _) in TOLD[model].items()]
    roles, _, reads_tokens = guessed_roles(params)
    assert [known.role for known in roles] == [role for _, role in TOLD[model].values()]
    assert reads_tokens == (model in ("BERT", "T5"))


def test_new_norms_are_told_by_their_ones():
    params = [NamedParam(str(i), p, named=False) for i, p in enumerate(nn.LayerNorm(4).parameters())]
    assert [known.role for known in guessed_roles(params)[0]] == ["norm", "bias"]


def test_parameters_beside_others_are_no_second_first_or_last_layer():
    params = [NamedParam(str(i), torch.zeros(4, 4), named=False) for i in range(2)]
    with pytest.warns(UserWarning, match="guessed"):
        roles, depth, _ = guessed_roles(params, beside=["input", "bias", "output"])
    assert [known.role for known in roles] == ["hidden", "hidden"]
    assert depth == 3


def test_nothing_is_guessed_where_all_roles_are_given(recwarn):
    params = [NamedParam("a", torch.zeros(3, 4), "hidden"), NamedParam("b", torch.zeros(3), "bias")]
    assert [known.fan_in for known in guessed_roles(params, depth=2)[0]] == [4, 1]
    assert not recwarn.list
