import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from zoo.networks import symmetry
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import GroupAxis, ParamLayout, SymmetryGroup

IMAGES = torch.randn(5, 1, 9, 9, generator=torch.Generator().manual_seed(1))
TEXT = torch.randint(11, (5, 7), generator=torch.Generator().manual_seed(1))
ARCHITECTURES = {
    "one hidden layer": (lambda: MLP(81, (6,), 3), IMAGES),
    "three hidden layers": (lambda: MLP(81, (6, 5, 7), 3), IMAGES),
    "tanh": (lambda: MLP(81, (6, 5), 3, "tanh"), IMAGES),
    "linear": (lambda: MLP(81, (), 3), IMAGES),
    "cnn": (lambda: CNN(1, (4, 6, 5), 3), IMAGES),
    "transformer": (lambda: ByteTransformer(11, 7, width=8, num_blocks=2, num_heads=4), TEXT),
}


class FlattenedChannels(nn.Module):
    """Pooled channels that are flattened before a linear layer, as in LeNet: a channel owns several inputs of it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=3)
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))

    def symmetry_groups(self):
        axes = (
            GroupAxis("conv.weight", 0, scale_power=1),
            GroupAxis("conv.bias", 0, scale_power=1),
            GroupAxis("head.weight", 1, unit_size=9, scale_power=-1),
        )
        return (SymmetryGroup("channels", 4, axes),)


class Recurrent(nn.Module):
    """A simple recurrent network: one group indexes both axes of the recurrent matrix."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(9, 5, batch_first=True)

    def forward(self, x):
        return self.rnn(x.squeeze(1))[0].sum(-1)

    def symmetry_groups(self):
        recurrent = (GroupAxis("rnn.weight_hh_l0", 0), GroupAxis("rnn.weight_hh_l0", 1))
        others = [GroupAxis(f"rnn.{name}_l0", 0) for name in ("weight_ih", "bias_ih", "bias_hh")]
        return (SymmetryGroup("hidden", 5, (*recurrent, *others)),)


ARCHITECTURES["flattened channels"] = (FlattenedChannels, IMAGES)
ARCHITECTURES["recurrent"] = (Recurrent, IMAGES)


@pytest.fixture(params=ARCHITECTURES, ids=str)
def network(request):
    """A module, its inputs, its layout, and four networks (4, P) of generic weights and statistics."""
    build, inputs = ARCHITECTURES[request.param]
    module = build().eval()
    layout = ParamLayout.of(module)
    params = torch.randn(4, layout.num_params, generator=torch.Generator().manual_seed(2)) * 0.3
    for slot in layout:
        if slot.role in ("running_var", "counter"):
            params[:, slot.span] = params[:, slot.span].abs().ceil() if slot.role == "counter" else 1.5
    return module, inputs, layout, params


def outputs(module, inputs, layout, params):
    return torch.stack([functional_call(module, layout.unflatten(row), (inputs,)) for row in params])


def test_permutations_leave_outputs_unchanged(network):
    module, inputs, layout, params = network
    permuted = symmetry.apply(layout, params, symmetry.sample(layout, 4, torch.Generator().manual_seed(0)))
    if layout.groups:
        assert not torch.equal(permuted, params)
    torch.testing.assert_close(
        outputs(module, inputs, layout, permuted), outputs(module, inputs, layout, params), rtol=1e-4, atol=1e-5
    )


def test_units_may_be_scaled_as_the_layout_says(network):
    module, inputs, layout, params = network
    rng = torch.Generator().manual_seed(0)
    scaled = params.clone()
    for group in layout.groups:
        factors = (0.5 * torch.randn(group.size, generator=rng)).exp()
        for axis in group.axes:
            factor = factors.pow(axis.scale_power).repeat_interleave(axis.unit_size)
            shape = [-1 if i == axis.axis else 1 for i in range(len(layout[axis.slot].shape))]
            layout.views(scaled)[axis.slot].mul_(factor.view(shape))
    assert torch.equal(scaled, params) == (not any(axis.scale_power for group in layout.groups for axis in group.axes))
    torch.testing.assert_close(
        outputs(module, inputs, layout, scaled), outputs(module, inputs, layout, params), rtol=1e-4, atol=1e-5
    )


def test_composition_with_the_inverse_is_the_identity_exactly(network):
    _, _, layout, params = network
    permutations = symmetry.sample(layout, 4, torch.Generator().manual_seed(0))
    undone = symmetry.apply(layout, symmetry.apply(layout, params, permutations), symmetry.invert(permutations))
    assert torch.equal(undone, params)
    for name, identity in symmetry.identity(layout, 4).items():
        assert torch.equal(symmetry.compose(permutations, symmetry.invert(permutations))[name], identity)
        assert torch.equal(symmetry.compose(symmetry.invert(permutations), permutations)[name], identity)


@settings(max_examples=25, deadline=None)
@given(widths=st.lists(st.integers(1, 7), min_size=1, max_size=3), num=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_group_laws(widths, num, seed):
    layout = ParamLayout.of(MLP(3, widths, 2))
    rng = torch.Generator().manual_seed(seed)
    params = torch.randn(num, layout.num_params, generator=rng)
    first, second, third = (symmetry.sample(layout, num, rng) for _ in range(3))
    del second["hidden.0"]
    in_turn = symmetry.apply(layout, symmetry.apply(layout, params, first), second)
    assert torch.equal(symmetry.apply(layout, params, symmetry.compose(first, second)), in_turn)
    left = symmetry.compose(symmetry.compose(first, second), third)
    right = symmetry.compose(first, symmetry.compose(second, third))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert torch.equal(symmetry.apply(layout, params, symmetry.identity(layout, num)), params)


def test_every_network_has_its_own_permutation_and_all_its_snapshots_share_it():
    layout = ParamLayout.of(CNN(1, (4, 6), 3))
    rng = torch.Generator().manual_seed(0)
    params = torch.randn(3, 2, 5, layout.num_params, generator=rng)
    permutations = symmetry.sample(layout, 3, rng)
    together = symmetry.apply(layout, params, permutations)
    for n in range(3):
        own = {name: value[n : n + 1].expand(10, -1) for name, value in permutations.items()}
        assert torch.equal(symmetry.apply(layout, params[n].flatten(0, 1), own), together[n].flatten(0, 1))


def test_a_permutation_agrees_with_indexing_the_named_tensors():
    layout = ParamLayout.of(MLP(2, (4, 3), 2))
    params = torch.arange(layout.num_params, dtype=torch.float32).unsqueeze(0)
    first, second = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    permuted = symmetry.apply(layout, params, {"hidden.0": first.unsqueeze(0), "hidden.1": second.unsqueeze(0)})
    old, new = layout.views(params[0]), layout.views(permuted[0])
    assert torch.equal(new["layers.0.weight"], old["layers.0.weight"][first])
    assert torch.equal(new["layers.1.weight"], old["layers.1.weight"][second][:, first])
    assert torch.equal(new["layers.2.weight"], old["layers.2.weight"][:, second])


def test_samples_are_uniform():
    layout = ParamLayout.of(MLP(2, (3,), 2))
    permutations = symmetry.sample(layout, 6000, torch.Generator().manual_seed(0))["hidden.0"]
    _, counts = permutations.unique(dim=0, return_counts=True)
    assert len(counts) == math.factorial(3)
    assert (counts - 1000).abs().max() < 120  # four standard deviations


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        ({"nonsense": torch.zeros(1, 4, dtype=torch.int64)}, "nonsense"),
        ({"hidden.0": torch.tensor([[0, 1, 2]])}, r"must be \(N, 4\), got \(1, 3\)"),
        ({"hidden.0": torch.tensor([[0, 1, 2, 2]])}, "once in every row"),
        ({"hidden.0": torch.tensor([[0.0, 1.0, 2.0, 3.0]])}, "int64"),
        ({"hidden.0": torch.arange(4).repeat(2, 1)}, "2 networks, got 1"),
    ],
)
def test_what_is_no_permutation_is_refused(permutations, message):
    layout = ParamLayout.of(MLP(2, (4,), 2))
    with pytest.raises(ValueError, match=message):
        symmetry.apply(layout, torch.zeros(1, layout.num_params), permutations)


def test_one_axis_belongs_to_one_group():
    layout = ParamLayout.of(MLP(2, (4,), 2))
    group = layout.groups[0]
    doubled = ParamLayout(layout.slots, (group, SymmetryGroup("again", group.size, group.axes)))
    with pytest.raises(ValueError, match="same axis"):
        symmetry.apply(doubled, torch.zeros(1, layout.num_params), symmetry.identity(doubled, 1))
