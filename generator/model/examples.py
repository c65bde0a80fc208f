"""What the model makes of examples: each is read together with what a network computes on it, and averaged in its set.

The network is the frozen base of adapters, whose units mean the same in every task, and the start of an update, of
which the outputs do. Examples are averaged over each class, as fingerprints are, and over parts of the set that the
model has learned to tell apart without labels. So their order means nothing, and their number little. The averages are
tokens, to which those of the network attend.

Where a family describes its members by numbers, a network of its own learns to tell these from the examples, and the
model is given what it tells: each example gives an estimate of each number and how much it counts, beside an estimate
of 0 that needs none. It learns by its own error alone, since the model's would drown it.

Source: Zaheer et al. 2017 (arXiv 1703.06114), functions of sets as sums; Lee et al. 2019 (arXiv 1810.00825), section
3.2, a few points to which a set is brought; Volpp et al. 2021, estimates weighted by their precision (Bayesian context
aggregation, ICLR).

Legend: B sets, E examples of a set, K classes, M parts, F features of an example, d token width, T numbers described.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generator.model.denoiser import zero_init
from generator.prompts.examples import ExampleKind, Examples
from zoo.networks.low_rank import linear_groups
from zoo.tasks.task import Task

_NUM_PARTS: Final = 6


class ObservedExamples(NamedTuple):
    """Examples as the model reads them.

    Attributes:
        features: (B, E, F) inputs, and what networks compute on them.
        labels: (B, E, K) share of each class in an example's targets; zeros without.
        is_given: (B,) bool.
    """

    features: Tensor
    labels: Tensor
    is_given: Tensor

    def repeat(self, times: int) -> ObservedExamples:
        """The whole batch `times` times over."""
        return ObservedExamples(*(part.repeat(times, *[1] * (part.ndim - 1)) for part in self))


class Description(NamedTuple):
    """What sets of examples say of their tasks.

    Attributes:
        values: (B, T), on the scale of `Family.describe`.
        certainty: (B, T) from 0, where there are no examples, to 1: how much their estimates count.
    """

    values: Tensor
    certainty: Tensor


class FrozenBase:
    """What the base of adapters computes: the outputs of its adapted layers, means over positions.

    Of convolutions also deviations over pixels: in means, as of edges, most of what a kernel finds cancels.

    Args:
        task: of adapters, ours or PEFT's; as they are built they change nothing.
    """

    def __init__(self, task: Task) -> None:
        network, groups = task.make_model(), linear_groups(task.layout)
        self.layers = [group.axes[0].slot.rpartition(".lora_")[0] for group in groups]
        self.network = network.eval().requires_grad_(False).to(task.device)

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Features (B, E, F) of inputs (B, E, ...)."""
        seen: list[Tensor] = []

        def look(layer: nn.Module, _: object, out: Tensor) -> None:
            if isinstance(layer, nn.Conv2d):
                seen.extend(reversed(torch.std_mean(out, (2, 3), correction=0)))
            else:
                seen.append(out.flatten(1, -2).mean(1) if out.ndim > 2 else out)

        hooks = [self.network.get_submodule(name).register_forward_hook(look) for name in self.layers]
        try:
            self.network(inputs.flatten(0, 1))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(seen, dim=1).unflatten(0, inputs.shape[:2])


class ExampleEncoder(nn.Module):
    """Tokens (B, K + M, d) of sets of examples, which do not depend on the order of a set.

    Args:
        num_features: F.
        num_classes: K.
        width: d.
    """

    def __init__(self, num_features: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(num_features, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.label = nn.Linear(num_classes, width)
        self.part = nn.Linear(width, _NUM_PARTS)
        self.place = nn.Parameter(0.2 * torch.randn(num_classes + _NUM_PARTS, width))
        self.count = zero_init(nn.Linear(1, width))  # at first it would drown what is averaged
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, examples: ObservedExamples) -> Tensor:
        features, labels, is_given = examples
        features, labels = features.to(self.place.dtype), labels.to(self.place.dtype)
        z = F.gelu(self.features(features) + self.label(labels))  # (B, E, d)
        share = torch.cat((labels.to(z.dtype), self.part(z).softmax(-1)), dim=2)  # (B, E, K + M)
        count = share.sum(1)[..., None]  # (B, K + M, 1)
        mean = share.mT @ z / count.clamp(min=1e-3)
        tokens = mean + self.place + self.count(count.log1p())
        return self.norm(tokens + self.mlp(tokens)) * is_given[:, None, None]


class ExampleDescriber(nn.Module):
    """What examples tell of the numbers that describe their task.

    Args:
        num_features: F.
        num_classes: K.
        width: d.
        num_described: T.
    """

    def __init__(self, num_features: int, num_classes: int, width: int, num_described: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(num_features, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.label = nn.Linear(num_classes, width)
        self.estimates = nn.Linear(width, 2 * num_described)

    def forward(self, examples: ObservedExamples) -> Description:
        """Zeros for examples that are left out."""
        features, labels = (part.to(self.label.weight.dtype) for part in (examples.features, examples.labels))
        z = F.gelu(self.features(features) + self.label(labels))  # (B, E, d)
        values, weights = self.estimates(z).chunk(2, dim=2)  # (B, E, T)
        weights = weights.masked_fill(~examples.is_given[:, None, None], -math.inf)
        share = F.pad(weights, (0, 0, 1, 0)).softmax(1)[:, 1:]  # (B, E, T)
        return Description((share * values).sum(1), share.sum(1))


def input_features(inputs: Tensor, kind: ExampleKind) -> Tensor:
    """Numbers (B, E, F) of inputs (B, E, ...): as they are, or how often each symbol occurs."""
    if kind.num_symbols:
        return F.one_hot(inputs.flatten(2), kind.num_symbols).float().mean(2)
    return inputs.flatten(2)


def label_shares(examples: Examples, num_classes: int) -> Tensor:
    """Shares (B, E, K) of the classes in the targets of each example; zeros for what has none."""
    one_hot = examples.targets[..., None] == torch.arange(num_classes, device=examples.targets.device)
    return one_hot.float().flatten(2, -2).mean(2) if one_hot.ndim > 3 else one_hot.float()


def output_features(task: Task, params: Tensor, inputs: Tensor) -> Tensor:
    """Outputs (B, E, K) of networks (B, P) on inputs (B, E, ...), means over positions."""
    outputs = task.predict(params, inputs)
    return outputs.flatten(2, -2).mean(2) if outputs.ndim > 3 else outputs
