import pytest
import torch
from torch.func import functional_call

from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import ParamLayout
from zoo.operations import rescale, teleport


def outputs(module, layout, params, inputs):
    return torch.stack([functional_call(module.eval(), layout.unflatten(row), (inputs,)) for row in params])


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (MLP(4, (6, 5), 3), torch.randn(7, 4)),
        (MLP(4, (6,), 3, activation="tanh"), torch.randn(7, 4)),
        (CNN(1, (4, 6), 3), torch.randn(2, 1, 8, 8)),
        (ByteTransformer(11, 7, width=8, num_blocks=2, num_heads=2), torch.randint(11, (2, 7))),
    ],
)
def test_a_teleported_network_computes_the_same(module, inputs):
    layout = ParamLayout.of(module)
    params = torch.stack([layout.flatten(module)] * 3)
    moved = teleport(layout, params, torch.Generator().manual_seed(0))
    assert not torch.equal(moved[0], params[0])
    assert not torch.equal(moved[0], moved[1])
    torch.testing.assert_close(
        outputs(module, layout, moved, inputs), outputs(module, layout, params, inputs), rtol=1e-4, atol=1e-5
    )


def test_each_weight_is_multiplied_by_its_units_factors():
    """Equation 1 of arXiv 2012.01118: a weight from unit u to unit v times s_v / s_u."""
    layout = ParamLayout.of(MLP(2, (3, 4), 2))
    params = torch.randn(1, 5, layout.num_params)  # five snapshots that share the move
    scales = {"hidden.0": torch.rand(1, 3) + 0.5, "hidden.1": torch.rand(1, 4) + 0.5}
    before, after = layout.views(params), layout.views(rescale(layout, params, scales))
    for v in range(4):
        for u in range(3):
            factor = scales["hidden.1"][0, v] / scales["hidden.0"][0, u]
            torch.testing.assert_close(
                after["layers.1.weight"][0, :, v, u], factor * before["layers.1.weight"][0, :, v, u]
            )
        torch.testing.assert_close(
            after["layers.1.bias"][..., v], scales["hidden.1"][0, v] * before["layers.1.bias"][..., v]
        )


def test_what_may_not_be_moved_is_refused():
    layout = ParamLayout.of(MLP(2, (3,), 2, activation="tanh"))
    params = torch.zeros(1, layout.num_params)
    with pytest.raises(ValueError, match=r"units of 'hidden\.0' may not be scaled"):
        rescale(layout, params, {"hidden.0": torch.ones(1, 3)})
    relu = ParamLayout.of(MLP(2, (3,), 2))
    with pytest.raises(ValueError, match=r"must be \(1, 3\) and positive"):
        rescale(relu, params, {"hidden.0": -torch.ones(1, 3)})
    with pytest.raises(ValueError, match="no interchangeable units"):
        teleport(ParamLayout.of(torch.nn.Linear(2, 2)), torch.zeros(1, 6), torch.Generator())
