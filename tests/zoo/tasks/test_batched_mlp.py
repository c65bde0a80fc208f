"""The hand-written passes against the module and autograd, in double precision."""

import pytest
import torch
from torch.func import functional_call

from zoo.networks.architectures import ACTIVATIONS, MLP
from zoo.networks.layout import ParamLayout
from zoo.tasks.batched_mlp import DERIVATIVES, mlp_backward, mlp_forward

NUM_NETWORKS = 3


@pytest.fixture(params=ACTIVATIONS)
def activation(request):
    return request.param


@pytest.mark.parametrize("hidden", [(), (5,), (5, 7, 4)], ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_passes_equal_module_and_autograd(activation, hidden, shared):
    rng = torch.Generator().manual_seed(0)
    module = MLP(6, hidden, 3, activation).double()
    layout = ParamLayout.of(module)
    params = torch.randn(NUM_NETWORKS, layout.num_params, generator=rng, dtype=torch.float64, requires_grad=True)
    shape = (8, 6) if shared else (NUM_NETWORKS, 8, 6)
    inputs = torch.randn(shape, generator=rng, dtype=torch.float64)
    outputs, saved = mlp_forward(layout, params, inputs, activation)
    own = inputs.expand(NUM_NETWORKS, 8, 6)
    expected = torch.stack(
        [functional_call(module, layout.unflatten(p), (x,)) for p, x in zip(params, own, strict=True)]
    )
    torch.testing.assert_close(outputs, expected)
    output_grad = torch.randn(outputs.shape, generator=rng, dtype=torch.float64)
    grads = mlp_backward(layout, params, inputs, activation, saved=saved, output_grad=output_grad)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, params, output_grad)[0])


def test_derivatives_equal_autograd(activation):
    x = torch.linspace(-6, 6, 1000, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(ACTIVATIONS[activation](x).sum(), x)
    torch.testing.assert_close(DERIVATIVES[activation](x).double(), expected)
