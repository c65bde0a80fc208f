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

from zoo.networks.architectures import ACTIVATIONS, CNN, MLP
from zoo.tasks.batched_mlp import DERIVATIVES, mlp_forward
from zoo.tasks.task import Batch, Task

NUM_EXAMPLES: Final = 192
_BOUND: Final = 6.0


def num_fingerprints(task: Task) -> int:
    """F for networks of that task.

    Raises:
        ValueError: if the task is not a classification by MLPs or CNNs.
    """
    if not isinstance(task.make_model(), MLP | CNN) or task.objective.name != "cross_entropy":
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
    one_hot = F.one_hot(examples.targets, task.dataset.num_classes).to(params.dtype)  # (B, K)
    class_mean = one_hot / one_hot.sum(0).clamp(min=1)  # (B, K): averages the examples of each class
    if isinstance(model, CNN):
        return _channel_fingerprints(task, params, examples, class_mean)
    assert isinstance(model, MLP)
    inputs = examples.inputs.flatten(1)
    with torch.no_grad():
        outputs, saved = mlp_forward(task.layout, params, inputs, model.activation)
        grad = (outputs.softmax(-1) - one_hot).mT  # (N, K, B)
        views = task.layout.views(params)
        features: dict[str, Tensor] = {}
        for layer in reversed(range(len(saved.sums))):
            sums = saved.sums[layer]  # (N, n, B)
            grad = torch.bmm(views[f"layers.{layer + 1}.weight"].mT, grad) * DERIVATIVES[model.activation](sums)
            features[f"hidden.{layer}"] = _layer_features(sums, ACTIVATIONS[model.activation](sums), grad, class_mean)
    return features


def fixed_examples(task: Task) -> Batch:
    """Training examples for generation, always the same."""
    train = task.dataset.train
    count = min(NUM_EXAMPLES, len(train))
    chosen = torch.linspace(0, len(train) - 1, count, dtype=torch.float64).long().to(train.inputs.device)
    return Batch(train.inputs[chosen], train.targets[chosen])


def _channel_fingerprints(task: Task, params: Tensor, examples: Batch, class_mean: Tensor) -> dict[str, Tensor]:
    """Features (N, n, F) of the channels of each convolution; the population runs as one CNN of N groups."""
    views, num_networks = task.layout.views(params.detach()), len(params)
    sums: list[Tensor] = []
    with torch.enable_grad():
        h, groups = examples.inputs, 1
        while (layer := len(sums)) < len(task.layout.groups):
            kernel, bias = views[f"convs.{layer}.weight"].flatten(0, 1), views[f"convs.{layer}.bias"].flatten()
            h = F.conv2d(h, kernel, bias, stride=2, padding=1, groups=groups)  # (B, N * n, h, w)
            gain, shift = (views[f"norms.{layer}.{name}"].flatten() for name in ("weight", "bias"))
            h = F.batch_norm(h, None, None, gain, shift, training=True)
            sums.append(h if sums else h.requires_grad_())
            h, groups = F.relu(sums[-1]), num_networks
        pooled = h.mean((2, 3)).unflatten(1, (num_networks, -1)).transpose(0, 1)  # (N, B, n)
        outputs = pooled @ views["head.weight"].mT + views["head.bias"][:, None]  # (N, B, K)
        targets = examples.targets.repeat(num_networks)
        grads = torch.autograd.grad(F.cross_entropy(outputs.flatten(0, 1), targets, reduction="sum"), sums)
    features = {}
    for group, value, grad in zip(task.layout.groups, sums, grads, strict=True):
        maps = (
            value.detach().flatten(2).mT,
            F.relu(value.detach()).flatten(2).mT,
            grad.flatten(2).mT,
        )  # (B, h * w, N * n)
        means = maps[0].mean(1), maps[1].mean(1), maps[2].sum(1)
        mean, activity, slope = (one.unflatten(1, (num_networks, -1)).permute(1, 2, 0) for one in means)  # (N, n, B)
        features[group.name] = _layer_features(mean, activity, slope, class_mean)
    return features


def _layer_features(sums: Tensor, activity: Tensor, grad: Tensor, class_mean: Tensor) -> Tensor:
    """(N, n, F) from (N, n, B) sums, activities and gradients."""
    spread = activity.flatten(1).std(1)[:, None, None] + 1e-3
    by_class = (activity @ class_mean - activity.mean(2, keepdim=True)) / spread  # (N, n, K)
    scale = grad.square().mean((1, 2), keepdim=True).sqrt() + 1e-8
    grad_by_class = grad @ class_mean / scale  # (N, n, K)
    moments = (sums.mean(2), sums.std(2), 2 * (sums > 0).to(sums.dtype).mean(2) - 1)
    level = (0.3 * scale.log() + 1).expand(-1, sums.shape[1], -1)
    features = torch.cat((torch.stack(moments, dim=-1), by_class, grad_by_class, level), dim=-1)
    return features.clamp(-_BOUND, _BOUND)
