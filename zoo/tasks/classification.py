"""Objectives of outputs that are logits: of classes, of labels, of actions.

Legend: N networks, B examples, L symbols of a sequence (absent for plain examples), K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.tasks.target_checks import check_classes, check_like_outputs, dtype_name

NO_WEIGHT: Final = 1e-20  # in place of 0, by which a mean over nothing would be divided
_FEW_CLASSES: Final = 32  # up to here softmax by hand is faster than log_softmax on a CPU, five times for 10


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy in nats of K logits; error is the fraction of wrong predictions.

    The options are those of `torch.nn.functional.cross_entropy`, with its mean over what is not ignored. Where a
    minibatch has nothing but ignored labels, its loss is 0.

    Args:
        label_smoothing: share of the target that is spread over all classes.
        weight: of each class in the loss, K numbers; None for equal ones.
        ignore_index: label of examples, or symbols of sequences, that do not count; None if there is no such label.
    """

    name: ClassVar[str] = "cross_entropy"
    label_smoothing: float = 0.0
    weight: tuple[float, ...] | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.label_smoothing, int | float) and 0 <= self.label_smoothing <= 1):
            raise ValueError(f"label_smoothing must be from 0 to 1, got {self.label_smoothing!r}")
        if self.ignore_index is not None and not isinstance(self.ignore_index, int):
            raise ValueError(f"ignore_index must be an integer or None, got {self.ignore_index!r}")
        object.__setattr__(self, "weight", _checked_weights("weight", self.weight))

    def num_outputs(self, num_classes: int, targets: Tensor) -> int:
        return num_classes

    def check_targets(self, outputs: Tensor, targets: Tensor, num_classes: int) -> None:
        if num_classes and outputs.shape[-1] != num_classes:
            raise ValueError(f"expected {num_classes} outputs, one for each class, got {outputs.shape[-1]}")
        if targets.dtype != torch.int64:
            raise ValueError(f"expected labels of int64, got {dtype_name(targets)}; convert them with .long()")
        if self.weight is not None and len(self.weight) != outputs.shape[-1]:
            raise ValueError(f"expected {outputs.shape[-1]} weights, one for each class, got {len(self.weight)}")
        check_classes(outputs, targets, outputs.shape[-1], self.ignore_index)
        if not self.weights(targets)[0].any():
            raise ValueError(f"expected labels that count, but all are ignored ({self.ignore_index}) or of weight 0")

    def log_probs(self, outputs: Tensor) -> Tensor:
        return F.log_softmax(outputs, dim=-1)

    def weights(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        counts = targets != (-1 if self.ignore_index is None else self.ignore_index)  # no label is -1 otherwise
        in_error = counts.float()
        if self.weight is None:
            return in_error, in_error
        labels = targets.masked_fill(~counts, 0)
        return in_error * _constant(self.weight, torch.float32, targets.device)[labels], in_error

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not self._is_plain:
            wanted, total = self._wanted(outputs, targets)
            return -(wanted * F.log_softmax(outputs, dim=-1)).flatten(1).sum(1) / total
        if outputs.shape[-1] > _FEW_CLASSES:
            return _mean(-_chosen(F.log_softmax(outputs, dim=-1), targets))
        shifted, _, total = _softmax_parts(outputs)
        return _mean(total.log()[..., 0] - _chosen(shifted, targets))

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        is_wrong = (outputs.argmax(-1) != targets).to(outputs.dtype)
        if self.ignore_index is None:
            return _mean(is_wrong)
        counts = self.weights(targets)[1].to(outputs.dtype).expand(is_wrong.shape).flatten(1)
        return (is_wrong.flatten(1) * counts).sum(1) / counts.sum(1).clamp(min=1)

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        shifted, exponentials, total = _softmax_parts(outputs)
        if not self._is_plain:
            wanted, weight = self._wanted(outputs, targets)
            losses = (wanted * (total.log() - shifted)).flatten(1).sum(1) / weight
            grads = exponentials / total * wanted.sum(-1, keepdim=True) - wanted
            return losses, grads / weight.view(-1, *[1] * (outputs.ndim - 1))
        losses = total.log()[..., 0] - _chosen(shifted, targets)  # (N, B, ...)
        return _mean(losses), (exponentials / total - self._one_hot(outputs, targets)) / losses[0].numel()

    @property
    def _is_plain(self) -> bool:
        return not self.label_smoothing and self.weight is None and self.ignore_index is None

    def _one_hot(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets[..., None] == torch.arange(outputs.shape[-1], device=outputs.device)).to(outputs.dtype)

    def _wanted(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What log-probabilities are weighed with, (N, B, ..., K) or (B, ..., K), and the weight of all, (N,)."""
        num_classes = outputs.shape[-1]
        in_loss, counts = (weights.to(outputs.dtype) for weights in self.weights(targets))
        share = (1 - self.label_smoothing) * self._one_hot(outputs, targets) + self.label_smoothing / num_classes
        if self.weight is not None:
            share = share * _constant(self.weight, outputs.dtype, outputs.device)
        total = in_loss.expand(outputs.shape[:-1]).flatten(1).sum(1)
        return share * counts[..., None], total.clamp(min=NO_WEIGHT)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Cross-entropy in nats of one logit and targets 0 or 1; error is the fraction of wrong predictions.

    Args:
        pos_weight: of targets 1, as in `torch.nn.functional.binary_cross_entropy_with_logits`; None for 1.
    """

    name: ClassVar[str] = "binary_cross_entropy"
    pos_weight: float | None = None

    def __post_init__(self) -> None:
        if self.pos_weight is not None:
            _checked_weights("pos_weight", (self.pos_weight,))

    def num_outputs(self, num_classes: int, targets: Tensor) -> int:
        return 1

    def check_targets(self, outputs: Tensor, targets: Tensor, num_classes: int) -> None:
        if outputs.shape[-1] != 1:
            raise ValueError(f"expected one output (a logit) per label, got {outputs.shape[-1]}")
        check_classes(outputs, targets, 2)

    def log_probs(self, outputs: Tensor) -> Tensor:
        return F.logsigmoid(torch.cat((outputs, -outputs), dim=-1))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss_and_grad(outputs, targets)[0]

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean(((outputs[..., 0] > 0) != (targets > 0)).to(outputs.dtype))

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = outputs[..., 0]  # (N, B)
        wanted = targets.to(logits.dtype).expand(logits.shape)
        losses, grads = _binary(logits, wanted, 1.0 if self.pos_weight is None else self.pos_weight)
        return _mean(losses), (grads / losses[0].numel())[..., None]


@dataclass(frozen=True)
class MultiLabel:
    """Cross-entropy in nats of K logits, each a label that is there or not; error is the fraction of wrong labels.

    Targets (B, ..., K) are 0 or 1, or probabilities. The mean is over the labels too.

    Args:
        pos_weight: of labels that are there, K numbers, as in torch's `binary_cross_entropy_with_logits`.
    """

    name: ClassVar[str] = "multi_label"
    pos_weight: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pos_weight", _checked_weights("pos_weight", self.pos_weight))

    def num_outputs(self, num_classes: int, targets: Tensor) -> int:
        return targets.shape[-1]

    def check_targets(self, outputs: Tensor, targets: Tensor, num_classes: int) -> None:
        check_like_outputs(outputs, targets)
        if targets.min() < 0 or targets.max() > 1:
            raise ValueError(
                f"expected labels from 0 to 1, got such from {targets.min().item():g} to {targets.max().item():g}"
            )
        if self.pos_weight is not None and len(self.pos_weight) != outputs.shape[-1]:
            raise ValueError(f"expected {outputs.shape[-1]} weights, one for each label, got {len(self.pos_weight)}")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss_and_grad(outputs, targets)[0]

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean(((outputs > 0) != (targets > 0.5)).to(outputs.dtype))

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        weight = 1.0 if self.pos_weight is None else _constant(self.pos_weight, outputs.dtype, outputs.device)
        losses, grads = _binary(outputs, targets.to(outputs.dtype).expand(outputs.shape), weight)
        return _mean(losses), grads / losses[0].numel()


class PolicyGradient:
    """Log-probabilities of actions, weighted: their negative gradient is REINFORCE's.

    Targets (N, B, K) hold the advantage of the action that was taken, and zeros for the others. The error is the
    fraction of actions that were not the likeliest.
    """

    name: Final = "policy_gradient"

    def num_outputs(self, num_classes: int, targets: Tensor) -> int:
        return targets.shape[-1]

    def log_probs(self, outputs: Tensor) -> Tensor:
        return F.log_softmax(outputs, dim=-1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss_and_grad(outputs, targets)[0]

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean((outputs.argmax(-1) != targets.abs().argmax(-1)).to(outputs.dtype))

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        shifted, exponentials, total = _softmax_parts(outputs)
        losses = -(targets * (shifted - total.log())).sum(-1)  # (N, B)
        pull = exponentials / total * targets.sum(-1, keepdim=True) - targets
        return _mean(losses), pull / losses[0].numel()


def probabilities(outputs: Tensor) -> Tensor:
    """Softmax over the last dim, fast where it is short."""
    _, exponentials, total = _softmax_parts(outputs)
    return exponentials / total


def _checked_weights(name: str, values: Sequence[float] | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or not all(isinstance(value, int | float) and 0 <= value < math.inf for value in values):
        raise ValueError(f"{name} must be numbers >= 0, got {values!r}")
    return tuple(float(value) for value in values)


@lru_cache  # what is made on a device in each step would have to be copied to it
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(device)


def _binary(logits: Tensor, wanted: Tensor, pos_weight: Tensor | float) -> tuple[Tensor, Tensor]:
    """Losses -w log p of targets from 0 to 1 without overflow, and their gradients, all of the logits' shape."""
    if isinstance(pos_weight, float) and pos_weight == 1:
        return F.softplus(logits) - wanted * logits, logits.sigmoid() - wanted
    factors = 1 + (pos_weight - 1) * wanted
    losses = (1 - wanted) * logits + factors * F.softplus(-logits)
    return losses, (1 - wanted) - factors * (-logits).sigmoid()


def _softmax_parts(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits less their maximum, the exponentials of those, and the sums (N, B, ..., 1) of these.

    Written out, because softmax and log_softmax of few classes are slow on a CPU.
    """
    shifted = outputs - outputs.amax(-1, keepdim=True).detach()
    exponentials = shifted.exp()
    return shifted, exponentials, exponentials.sum(-1, keepdim=True)


def _chosen(outputs: Tensor, targets: Tensor) -> Tensor:
    """The output of each target class (N, B, ...)."""
    return outputs.gather(-1, targets.expand(outputs.shape[:-1])[..., None])[..., 0]


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)  # (N,)
