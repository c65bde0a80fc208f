import pytest
import torch
from torch import nn

from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import GroupAxis, LayoutMismatchError, ParamLayout, SymmetryGroup

ARCHITECTURES = {
    "mlp": lambda: MLP(8, (6, 5), 3),
    "cnn": lambda: CNN(1, (4, 6), 3),
    "transformer": lambda: ByteTransformer(vocabulary=11, context=7, width=8, num_blocks=2, num_heads=2),
    "lstm": lambda: nn.LSTM(3, 4),
}


class TiedModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7)
        self.head.weight = self.embedding.weight


@pytest.fixture(params=ARCHITECTURES, ids=str)
def model(request):
    torch.manual_seed(0)
    return ARCHITECTURES[request.param]()


def test_flatten_then_unflatten_is_the_identity(model):
    layout = ParamLayout.of(model)
    named = layout.unflatten(layout.flatten(model))
    state = model.state_dict()
    assert named.keys() == state.keys()
    for name, value in state.items():
        assert named[name].dtype == value.dtype
        assert torch.equal(named[name], value)
    model.load_state_dict(named)


def test_batches_of_networks_share_leading_dims(model):
    layout = ParamLayout.of(model)
    vectors = torch.randn(2, 3, layout.num_params).abs().round()
    assert torch.equal(layout.flatten(layout.unflatten(vectors)), vectors)


def test_unflatten_gives_views_not_copies(model):
    layout = ParamLayout.of(model)
    vector = layout.flatten(model)
    for slot, view in zip(layout, layout.views(vector).values(), strict=True):
        assert view.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
        if slot.dtype == "float32":
            named = layout.unflatten(vector)[slot.name]
            assert named.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()


def test_json_round_trip(model):
    layout = ParamLayout.of(model)
    assert ParamLayout.from_json(layout.to_json()) == layout


def test_parameters_come_before_buffers():
    layout = ParamLayout.of(CNN(1, (4, 6), 3))
    kinds = [slot.kind for slot in layout]
    assert kinds == sorted(kinds, reverse=True)
    assert layout.num_trainable == sum(p.numel() for p in CNN(1, (4, 6), 3).parameters())
    assert layout["norms.0.num_batches_tracked"].role == "counter"
    assert layout["norms.1.running_var"].role == "running_var"


def test_counters_survive_exactly_and_too_large_ones_are_refused():
    model = CNN(1, (4,), 3)
    layout = ParamLayout.of(model)
    model.norms[0].num_batches_tracked.fill_(2**24 - 1)
    assert layout.unflatten(layout.flatten(model))["norms.0.num_batches_tracked"] == 2**24 - 1
    model.norms[0].num_batches_tracked.fill_(2**24 + 1)
    with pytest.raises(ValueError, match="2\\*\\*24"):
        layout.flatten(model)


def test_tied_tensors_take_one_slot_and_load_under_both_names():
    model = TiedModel()
    layout = ParamLayout.of(model)
    assert layout.num_params == 7 * 5 + 7
    fresh = TiedModel()
    fresh.load_state_dict(layout.unflatten(layout.flatten(model)))
    assert torch.equal(fresh.head.weight, model.embedding.weight)


def test_float64_networks_stay_float64():
    model = MLP(3, (4,), 2).double()
    layout = ParamLayout.of(model)
    vector = layout.flatten(model)
    assert vector.dtype == torch.float64
    assert torch.equal(layout.unflatten(vector)["layers.0.weight"], model.layers[0].weight)


def test_mismatches_are_named():
    model = MLP(3, (4,), 2)
    layout = ParamLayout.of(model)
    state = model.state_dict()
    state["layers.0.weight"] = torch.zeros(5, 3)
    del state["layers.1.bias"]
    state["stray"] = torch.zeros(1)
    with pytest.raises(LayoutMismatchError) as error:
        layout.flatten(state)
    for part in ("missing 'layers.1.bias' (2,)", "unexpected 'stray'", "must be (4, 3), got (5, 3)"):
        assert part in str(error.value)
    with pytest.raises(LayoutMismatchError, match="26 parameters, got a vector of 25"):
        layout.unflatten(torch.zeros(25))


def test_unknown_slot_and_bad_group_are_refused():
    layout = ParamLayout.of(MLP(3, (4,), 2))
    with pytest.raises(KeyError, match=r"layers\.1\.bias"):
        layout["nonsense"]
    with pytest.raises(ValueError, match="does not fit"):
        ParamLayout(layout.slots, (SymmetryGroup("g", 5, (GroupAxis("layers.0.weight", 0),)),))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 99, "slots": [], "groups": []}'])
def test_bad_json_is_refused(text):
    with pytest.raises(ValueError, match="layout"):
        ParamLayout.from_json(text)
