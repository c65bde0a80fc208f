import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import ParamLayout
from zoo.networks.roles import guesses, infer_roles


def roles_of(module: nn.Module) -> dict[str, str]:
    return {name: known.role for name, known in infer_roles(module).items()}


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
    roles = roles_of(ByteTransformer(num_blocks=1))
    assert roles["token_embedding.weight"] == roles["position_embedding.weight"] == "embedding"
    assert roles["blocks.0.query.weight"] == "hidden"
    assert roles["head.weight"] == "output"
    assert "input" not in roles.values()


class Heads(nn.Module):
    """Two heads, registered before the trunk that they read."""

    def __init__(self):
        super().__init__()
        self.value, self.policy, self.trunk = nn.Linear(8, 1), nn.Linear(8, 4), nn.Linear(3, 8)

    def forward(self, x):
        hidden = F.relu(self.trunk(x))
        return self.policy(hidden), self.value(hidden)


def test_the_forward_pass_decides_what_comes_first_and_last():
    known = infer_roles(Heads())
    assert {name: known[f"{name}.weight"].role for name in ("value", "policy", "trunk")} == {
        "value": "output",
        "policy": "output",
        "trunk": "input",
    }
    assert not guesses(known)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.middle, self.begin = nn.Linear(8, 2), nn.Linear(8, 8), nn.Linear(3, 8)

    def forward(self, x):
        x = F.relu(self.begin(x))
        return self.last(self.middle(x) if x.sum() > 0 else x)


def test_order_of_registration_is_a_guess_unless_names_speak():
    known = infer_roles(Untraceable())
    assert guesses(known) == "last.weight: input, begin.weight: output"
    named = Untraceable()
    named.stem, named.head = named._modules.pop("begin"), named._modules.pop("last")
    assert guesses(infer_roles(named)) == "middle.weight: input"


class Bare(nn.Module):
    """Parameters of its own, told by what the forward pass does with them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(3, 8))
        self.second = nn.Parameter(torch.zeros(6, 8))
        self.factor = nn.Parameter(torch.ones(4, 6))
        self.added = nn.Parameter(torch.zeros(4, 6))
        self.experts_of_it = nn.Parameter(torch.zeros(5, 6, 7))
        self.head = nn.Linear(7, 2)

    def forward(self, x):  # (5, 4, 3)
        x = F.linear(x @ self.first, self.second) * self.factor + self.added
        return self.head(torch.bmm(x, self.experts_of_it))


def test_bare_parameters_are_told_by_their_use():
    known = infer_roles(Bare())
    assert {name: (role.role, role.axes, role.fan_in) for name, role in known.items() if "head" not in name} == {
        "first": ("input", "io", 3),
        "second": ("hidden", "oi", 8),
        "factor": ("norm", "oi", 1),
        "added": ("embedding", "oi", 1),
        "experts_of_it": ("hidden", "eio", 6),
    }
    assert not guesses(known)


class Named(nn.Module):
    """Parameters whose names speak, in a module that says nothing else."""

    def __init__(self):
        super().__init__()
        for name, shape in {
            "cls_token": (1, 1, 8),
            "pos_embed": (1, 5, 8),
            "relative_position_bias_table": (9, 2),
            "gamma_1": (8,),
            "layer_scale": (8, 1, 1),
            "pos_bias_u": (2, 4),
            "logit_scale": (),
            "router_weight": (4, 8),
            "mystery": (4, 8),
        }.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def test_names_speak_where_modules_do_not():
    known = infer_roles(Named())
    assert {name: role.role for name, role in known.items()} == {
        "cls_token": "embedding",
        "pos_embed": "embedding",
        "relative_position_bias_table": "embedding",
        "gamma_1": "norm",
        "layer_scale": "norm",
        "pos_bias_u": "bias",
        "logit_scale": "norm",
        "router_weight": "input",
        "mystery": "output",
    }
    assert {name for name, role in known.items() if role.guessed} == {"router_weight", "mystery"}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_parametrized_tensors_are_what_they_make():
    layers = [
        nn.Linear(3, 4),
        parametrizations.weight_norm(nn.Linear(4, 5)),
        parametrizations.orthogonal(nn.Linear(5, 6)),
        parametrizations.spectral_norm(nn.ConvTranspose2d(6, 7, 2)),
        nn.utils.weight_norm(nn.Linear(7, 8)),
        nn.Linear(8, 2),
    ]
    known = infer_roles(nn.Sequential(*layers))
    weights = {name: (role.role, role.fan_in) for name, role in known.items() if role.role not in ("bias", "buffer")}
    assert weights == {
        "0.weight": ("input", 3),
        "1.parametrizations.weight.original0": ("norm", 1),
        "1.parametrizations.weight.original1": ("hidden", 4),
        "2.parametrizations.weight.original": ("hidden", 5),
        "3.parametrizations.weight.original": ("hidden", 6 * 4),
        "4.weight_g": ("norm", 1),
        "4.weight_v": ("hidden", 7),
        "5.weight": ("output", 8),
    }
    assert known["1.bias"].fan_in == 4
    assert not guesses(known)


class Sequence(nn.Module):
    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.recurrent, self.readout = recurrent, nn.Linear(8, 2)

    def forward(self, x):
        return self.readout(self.recurrent(x)[0])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_packed_recurrent_weights(kind):
    known = infer_roles(Sequence(kind(3, 8, num_layers=2)))
    matrices = {name: (role.role, role.fan_in) for name, role in known.items() if "weight" in name}
    assert matrices == {
        "recurrent.weight_ih_l0": ("input", 3),
        "recurrent.weight_hh_l0": ("hidden", 8),
        "recurrent.weight_ih_l1": ("hidden", 8),
        "recurrent.weight_hh_l1": ("hidden", 8),
        "readout.weight": ("output", 8),
    }


def test_attention_packs_matrices_and_adds_vectors():
    roles = roles_of(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    assert roles["bias_k"] == roles["bias_v"] == roles["in_proj_bias"] == "bias"
    assert (roles["in_proj_weight"], roles["out_proj.weight"]) == ("input", "output")


class Conv1D(nn.Module):
    """As in Hugging Face's GPT-2: inputs first."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.zeros(nx, nf)), nn.Parameter(torch.zeros(nf))


class Experts(nn.Module):
    def __init__(self, *, is_transposed: bool, told: bool) -> None:
        super().__init__()
        if told:
            self.is_transposed = is_transposed
        shapes = {"up": (4, 12, 8), "down": (4, 8, 6)}
        for name, (experts, outputs, inputs) in shapes.items():
            shape = (experts, inputs, outputs) if is_transposed else (experts, outputs, inputs)
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("is_transposed", [True, False])
def test_stacks_of_experts_in_either_orientation(is_transposed, told):
    known = infer_roles(
        nn.Sequential(nn.Linear(3, 8), Experts(is_transposed=is_transposed, told=told), nn.Linear(8, 2))
    )
    assert known["1.up"].axes == known["1.down"].axes == ("eio" if is_transposed else "eoi")
    assert (known["1.up"].fan_in, known["1.down"].fan_in) == (8, 6)


def test_weights_that_hold_inputs_first():
    known = infer_roles(nn.Sequential(nn.Linear(2, 6), Conv1D(4, 6), nn.Linear(4, 2)))
    assert (known["1.weight"].axes, known["1.weight"].fan_in, known["1.bias"].fan_in) == ("io", 6, 6)


@pytest.mark.parametrize("head_first", [True, False])
def test_tied_tensors_are_embeddings_whichever_comes_first(head_first):
    embedding, head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
    head.weight = embedding.weight
    parts = {"head": head, "table": embedding} if head_first else {"table": embedding, "head": head}
    model = nn.ModuleDict({**parts, "body": nn.Linear(8, 8)})
    assert roles_of(model)["table.weight"] == roles_of(model)["head.weight"] == "embedding"


class Declared(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.body, self.into = nn.Linear(8, 2), nn.Linear(8, 8), nn.Linear(3, 8)

    def get_input_embeddings(self):
        return self.into

    def get_output_embeddings(self):
        return self.out


def test_what_the_model_declares_goes_before_its_order():
    known = infer_roles(Declared())
    assert (known["into.weight"].role, known["body.weight"].role, known["out.weight"].role) == (
        "input",
        "hidden",
        "output",
    )
    assert not guesses(known)


class Tied(nn.Module):
    """A language model whose table of tokens is its output, in a layer of its own or not, traced or not."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.table, self.body = nn.Embedding(9, 4), nn.ModuleList([nn.Linear(4, 4)])
        if how != "function":
            self.to_tokens = nn.Linear(4, 9, bias=False)
            self.to_tokens.weight = self.table.weight

    def forward(self, tokens):
        x = self.body[0](self.table(tokens))
        if self.how == "untraced" and tokens.sum() > 0:
            x = x + 1
        return F.linear(x, self.table.weight) if self.how == "function" else self.to_tokens(x)


@pytest.mark.parametrize("how", ["layer", "function", "untraced"])
def test_a_tied_table_is_the_output_and_no_matrix_before_it(how):
    known = infer_roles(Tied(how))
    assert known["body.0.weight"].role == "hidden"
    assert known["table.weight"].role == "embedding"
    assert not guesses(known)


@pytest.mark.parametrize("kind", [nn.ModuleList, lambda layers: nn.ModuleDict({"dec": layers[0], "enc": layers[1]})])
def test_the_order_in_a_list_of_modules_is_a_guess(kind):
    assert guesses(infer_roles(kind([nn.Linear(8, 3), nn.Linear(5, 8)]))).count("weight") == 2


class Equations(nn.Module):
    """A convolution, a dense mixture and a projection of bare tensors, and experts in a list that is not traced."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 4, 3))
        self.first, self.second = nn.Parameter(torch.randn(3, 8, 16)), nn.Parameter(torch.randn(3, 16, 8))
        self.turned = nn.Parameter(torch.randn(2, 8))
        self.experts = nn.ParameterList([torch.randn(3, 4, 8), torch.randn(3, 8, 4)])

    def forward(self, x):
        x = F.conv1d(x, self.kernel).mean(-1)
        x = torch.einsum("b e f, e f d -> b e d", torch.einsum("bd,edf->bef", x, self.first).relu(), self.second)
        x = x.mean(1)
        return torch.einsum("bi,oi->bo", x, self.turned)


def test_equations_and_convolutions_tell_axes_of_bare_tensors():
    known = infer_roles(Equations())
    axes = {"kernel": "oi", "first": "eio", "second": "eio", "turned": "oi"}
    assert {name: known[name].axes for name in axes} == axes
    assert (known["kernel"].fan_in, known["second"].fan_in) == (12, 16)
    assert not any(known[name].guessed for name in axes)
    assert known["experts.0"].axes == "eoi"


def test_patterns_override_and_later_ones_win():
    model = MLP(8, (6, 5), 3)
    known = infer_roles(model, {"layers.*.weight": "hidden", "layers.2.weight": "output"})
    assert [known[f"layers.{i}.weight"].role for i in range(3)] == ["hidden", "hidden", "output"]
    assert known["layers.0.weight"].fan_in == 8


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"nonsense.*": "input"}, "nonsense.* module does not have .* it has layers.0.weight"),
        ({0: "input"}, "0.* module does not have"),
        ({"layers.0.weight": "nonsense"}, "must be one of .* got 'nonsense'"),
        ({"*.bias": "hidden"}, r"nothing that '\*.bias' names can have the role 'hidden'"),
        ({"*": "counter"}, "nothing .* the role 'counter'"),
    ],
)
def test_bad_overrides_are_refused(overrides, said):
    with pytest.raises(ValueError, match=said):
        infer_roles(MLP(8, (6,), 3), overrides)


class Weights(nn.Module):
    """Matrices whose names say that they are weights, and nothing of rows and columns."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 5))
        self.w_out = nn.Parameter(torch.zeros(3, 5))

    def forward(self, x):
        return nn.functional.linear(x @ self.weight, self.w_out)


def test_axes_of_what_is_named_a_weight_are_told_by_its_use():
    known = infer_roles(Weights())
    told = {name: (role.role, role.axes, role.fan_in) for name, role in known.items()}
    assert told == {"weight": ("input", "io", 8), "w_out": ("output", "oi", 5)}


@pytest.mark.parametrize("pattern", ["0.*", "1.*"])
def test_a_role_given_to_a_tied_tensor_counts_under_all_its_names(pattern):
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9, bias=False))
    model[1].weight = model[0].weight
    known = infer_roles(model, {pattern: "output"})
    assert known["0.weight"].role == known["1.weight"].role == "output"
