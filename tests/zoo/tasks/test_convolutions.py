"""Convolutions by products of patches against torch's own, one at a time and in a population."""

import pytest
import torch
from torch import nn

from tests.pretended_graph import pretended_graphs
from zoo.tasks.convolutions import with_products
from zoo.tasks.registry import get_task
from zoo.training.optimizers import Sgd
from zoo.training.population import train_population

KINDS = {
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "rectangles": {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
    "no bias": {"kernel_size": 4, "stride": 3, "bias": False},
    "same": {"kernel_size": 3, "padding": "same"},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients_are_those_of_a_convolution(options, compiled, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)  # which takes other operators
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 5, **options), torch.randn(2, 3, 11, 9, requires_grad=True)
    expected = conv(x)
    grads = torch.autograd.grad(expected.square().sum(), [x, *conv.parameters()])
    found = with_products(conv)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for got, wanted in zip(torch.autograd.grad(found.square().sum(), [x, *conv.parameters()]), grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_others_stay_as_they_are():
    kept = [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.Conv1d(4, 4, 3)]
    for part in with_products(nn.Sequential(*kept)):
        assert "_conv_forward" not in vars(part)
    image = torch.randn(1, 5, 5)  # without a batch
    conv = nn.Conv2d(1, 2, 3)
    torch.testing.assert_close(conv(image), with_products(conv)(image))


@pytest.mark.parametrize("shared_batches", [True, False])
def test_populations_of_them_train_as_those_of_convolutions(shared_batches, monkeypatch):
    task = get_task("digits", architecture="cnn", channels=(3, 4))

    def final():
        options = {"num_steps": 6, "batch_size": 8, "snapshot_steps": (6,), "shared_batches": shared_batches}
        return next(train_population(task, Sgd(lr=0.1), [1, 2], **options)).params

    expected = final()
    monkeypatch.setattr(task.backend, "_training_template", with_products(task.make_model().train()))
    with pretended_graphs() as graphs:
        found = final()
    assert graphs.num_recorded == 1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
