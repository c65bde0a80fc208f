import pytest
import torch

from generator.model.recurrence import GatedLinearRecurrence, linear_scan, sequential_scan


@pytest.mark.parametrize("length", [1, 2, 3, 8, 37])
def test_parallel_scan_equals_the_loop(length):
    gates = torch.rand(2, length, 5, dtype=torch.float64)
    inputs = torch.randn(2, length, 5, dtype=torch.float64)
    torch.testing.assert_close(linear_scan(gates, inputs), sequential_scan(gates, inputs))


@pytest.mark.parametrize("length", [1, 6])
def test_gradients_of_the_scan(length):
    gates = torch.rand(2, length, 3, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_scan, (gates, inputs))


def test_recurrence_reaches_both_ends():
    torch.manual_seed(0)
    layer = GatedLinearRecurrence(8)
    x = torch.randn(1, 9, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x)[0, 4].sum(), x)
    assert (grad[0].abs().sum(-1) > 0).all()


def test_reversed_input_with_swapped_directions_is_reversed_output():
    """Without a preferred direction the layer would be blind to order; with equal weights it is symmetric."""
    torch.manual_seed(0)
    layer = GatedLinearRecurrence(4)
    with torch.no_grad():
        layer.inputs.weight[4:8] = layer.inputs.weight[:4]
        layer.inputs.bias[4:8] = layer.inputs.bias[:4]
        layer.inputs.weight[12:16] = layer.inputs.weight[8:12]
        layer.inputs.bias[12:16] = layer.inputs.bias[8:12]
        layer.output.weight[:, 4:] = layer.output.weight[:, :4]
    x = torch.randn(2, 7, 4)
    torch.testing.assert_close(layer(x.flip(1)), layer(x).flip(1))
