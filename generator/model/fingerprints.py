"""Functional fingerprints: what the units of a start compute on labelled examples, and what the loss asks of them.

The weights of a random network say little about what a unit deep inside does; running the network on a few training
examples does. Without fingerprints a generator has to learn to execute its input. The price: labelled examples are
needed when networks are generated, too.

A channel of a convolution is taken as a unit whose sums and activities are means over positions, and whose gradient is
the sum. Networks with BatchNorm run in batch mode: the recorded statistics of an initial network say nothing.

Legend: N networks, n units of a layer, B examples, K classes, F features of a unit.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.networks.architectures import HasHiddenLayers
from zoo.tasks.classification import CrossEntropy
from zoo.tasks.evaluation import evenly_chosen
from zoo.tasks.task import Batch, Task

NUM_EXAMPLES: Final = 192
_BOUND: Final = 6.0


def num_fingerprints(task: Task) -> int:
    """F for networks of that task.

    Raises:
        ValueError: if the task is not a classification by networks whose hidden layers can be looked into.
    """
    if not isinstance(task.make_model(), HasHiddenLayers) or not isinstance(task.objective, CrossEntropy):
        raise ValueError(
            f"fingerprints are defined for MLPs and CNNs that classify, not for task {task.name!r}; switch them off"
        )
    return 2 * task.dataset.num_classes + 4


def unit_fingerprints(task: Task, params: Tensor, examples: Batch) -> dict[str, Tensor]:
    """Features (N, n, F) of the units of each hidden layer, by the name of their group.

    Per unit: mean and deviation of its sum before the activation, how often it is positive; mean activity by class,
    centred and scaled by the layer; mean gradient of the loss by class, scaled by the layer; the log of that scale.

    Args:
        task: of MLP or CNN classifiers.
        params: (N, P).
        examples: B labelled training examples.
    """
    model = task.make_model()
    assert isinstance(model, HasHiddenLayers)
    one_hot = F.one_hot(examples.targets, task.dataset.num_classes).to(params.dtype)  # (B, K)
    class_mean = one_hot / one_hot.sum(0).clamp(min=1)  # (B, K): averages the examples of each class
    with torch.enable_grad():
        views = task.layout.views(params.detach().requires_grad_())
        outputs, layers = model.hidden_layers(views, examples.inputs)  # (N, B, K)
        loss = len(examples.targets) * task.objective.loss(outputs, examples.targets)  # sums over examples
        grads = torch.autograd.grad(loss.sum(), [layer.sums for layer in layers.values()])
    features = {}
    for (group, layer), grad in zip(layers.items(), grads, strict=True):
        sums, activity = layer.sums.detach().mean(3), layer.activities.detach().mean(3)  # (B, N, n)
        in_order = (values.permute(1, 2, 0) for values in (sums, activity, grad.sum(3)))  # (N, n, B)
        features[group] = _layer_features(*in_order, class_mean=class_mean)
    return features


def fixed_examples(task: Task) -> Batch:
    """Training examples for generation, always the same."""
    examples = evenly_chosen(task.dataset.train, NUM_EXAMPLES)
    return Batch(examples.inputs, examples.targets)


def _layer_features(sums: Tensor, activity: Tensor, grad: Tensor, *, class_mean: Tensor) -> Tensor:
    """(N, n, F) from (N, n, B) sums, activities and gradients."""
    spread = activity.flatten(1).std(1)[:, None, None] + 1e-3
    by_class = (activity @ class_mean - activity.mean(2, keepdim=True)) / spread  # (N, n, K)
    scale = grad.square().mean((1, 2), keepdim=True).sqrt() + 1e-8
    grad_by_class = grad @ class_mean / scale  # (N, n, K)
    moments = (sums.mean(2), sums.std(2), 2 * (sums > 0).to(sums.dtype).mean(2) - 1)
    level = (0.3 * scale.log() + 1).expand(-1, sums.shape[1], -1)
    features = torch.cat((torch.stack(moments, dim=-1), by_class, grad_by_class, level), dim=-1)
    return features.clamp(-_BOUND, _BOUND)
