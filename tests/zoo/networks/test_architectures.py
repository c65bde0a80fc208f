import functools

import pytest
import torch
from torch import nn

from zoo.networks.architectures import CNN, MLP, HasHiddenLayers
from zoo.networks.layout import ParamLayout


@pytest.mark.parametrize(
    ("make", "inner", "shape"),
    [(lambda: MLP(12, (5, 4), 3, "gelu"), "layers", (6, 12)), (lambda: CNN(1, (4, 5), 3), "norms", (6, 1, 8, 8))],
    ids=["mlp", "cnn"],
)
def test_hidden_layers_are_what_the_modules_compute(make, inner, shape):
    """Sums, outputs and the gradients between them, against hooks on each network alone, normalised by the batch."""
    torch.manual_seed(0)
    models = [make().train() for _ in range(3)]
    assert isinstance(models[0], HasHiddenLayers)
    layout = ParamLayout.of(models[0])
    params = torch.stack([layout.flatten(model) for model in models]).requires_grad_()
    inputs = torch.randn(shape)
    outputs, layers = models[0].hidden_layers(layout.views(params), inputs)
    assert list(layers) == [group.name for group in layout.groups]
    grads = torch.autograd.grad(outputs.square().sum(), [layer.sums for layer in layers.values()])
    for i, model in enumerate(models):
        kept = [None] * len(layers)
        for j in range(len(layers)):
            keep = functools.partial(kept.__setitem__, j)
            getattr(model, inner)[j].register_forward_hook(lambda _, __, output, keep=keep: keep(output))
        expected = model(inputs)
        torch.testing.assert_close(outputs[i], expected)
        own_grads = torch.autograd.grad(expected.square().sum(), kept)
        for layer, grad, value, own_grad in zip(layers.values(), grads, kept, own_grads, strict=True):
            torch.testing.assert_close(layer.sums[:, i].flatten(1), value.flatten(1))
            torch.testing.assert_close(grad[:, i].flatten(1), own_grad.flatten(1), rtol=1e-4, atol=1e-5)
            activation = nn.functional.gelu if inner == "layers" else torch.relu
            torch.testing.assert_close(layer.activities, activation(layer.sums))
