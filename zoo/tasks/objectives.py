"""What a task asks of the outputs of N networks: a loss to train on and an error to report.

Each objective also gives the gradient of its loss by the outputs, for the hand-written backward pass of MLPs.

Legend: N networks, B examples, L symbols of a sequence (absent for plain examples), K outputs.
"""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW_CLASSES: Final = 32  # up to here softmax by hand is faster than log_softmax on a CPU, five times for 10


class Objective(Protocol):
    """Loss and error of N networks; `targets` may lack the leading dim N where all networks share them."""

    @property
    def name(self) -> str: ...

    def num_outputs(self, num_classes: int, targets: Tensor) -> int:
        """K for a data set of that many classes and with such targets."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over examples and symbols: (N, B, ..., K), (B, ...) or (N, B, ...) -> (N,)."""
        ...

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What one reads beside the loss, also a mean: (N,)."""
        ...

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (N,) and their gradients by the outputs (N, B, ..., K)."""
        ...


@runtime_checkable
class ChecksTargets(Protocol):
    """An objective that tells data that it cannot score from such that it can, before anything is trained."""

    def check_targets(self, outputs: Tensor, targets: Tensor, num_classes: int) -> None:
        """Raise ValueError unless targets (n, ...) of this many classes fit outputs (B, ..., K) of one network."""
        ...


@runtime_checkable
class Probabilistic(Protocol):
    """An objective that reads outputs as probabilities."""

    def log_probs(self, outputs: Tensor) -> Tensor:
        """Log-probabilities (..., number of outcomes) of outputs (..., K)."""
        ...


class CrossEntropy:
    """Cross-entropy in nats of K logits; error is the fraction of wrong predictions."""

    name: Final = "cross_entropy"

    def num_outputs(self, num_classes: int, targets: Tensor) -> int:
        return num_classes

    def check_targets(self, outputs: Tensor, targets: Tensor, num_classes: int) -> None:
        if num_classes and outputs.shape[-1] != num_classes:
            raise ValueError(f"expected {num_classes} outputs, one for each class, got {outputs.shape[-1]}")
        if targets.dtype != torch.int64:
            raise ValueError(f"expected labels of int64, got {_dtype(targets)}; convert them with .long()")
        _check_classes(outputs, targets, outputs.shape[-1])

    def log_probs(self, outputs: Tensor) -> Tensor:
        return F.log_softmax(outputs, dim=-1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape[-1] > _FEW_CLASSES:
            return _mean(-_chosen(F.log_softmax(outputs, dim=-1), targets))
        shifted, _, total = _softmax_parts(outputs)
        return _mean(total.log()[..., 0] - _chosen(shifted, targets))

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean((outputs.argmax(-1) != targets).to(outputs.dtype))

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        shifted, exponentials, total = _softmax_parts(outputs)
        losses = total.log()[..., 0] - _chosen(shifted, targets)  # (N, B, ...)
        classes = torch.arange(outputs.shape[-1], device=outputs.device)
        one_hot = (targets[..., None] == classes).to(outputs.dtype)
        return _mean(losses), (exponentials / total - one_hot) / losses[0].numel()


class BinaryCrossEntropy:
    """Cross-entropy in nats of one logit and targets 0 or 1; error is the fraction of wrong predictions."""

    name: Final = "binary_cross_entropy"

    def num_outputs(self, num_classes: int, targets: Tensor) -> int:
        return 1

    def check_targets(self, outputs: Tensor, targets: Tensor, num_classes: int) -> None:
        if outputs.shape[-1] != 1:
            raise ValueError(f"expected one output (a logit) per label, got {outputs.shape[-1]}")
        _check_classes(outputs, targets, 2)

    def log_probs(self, outputs: Tensor) -> Tensor:
        return F.logsigmoid(torch.cat((outputs, -outputs), dim=-1))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss_and_grad(outputs, targets)[0]

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean(((outputs[..., 0] > 0) != (targets > 0)).to(outputs.dtype))

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = outputs[..., 0]  # (N, B)
        wanted = targets.to(logits.dtype).expand(logits.shape)
        losses = F.softplus(logits) - wanted * logits  # -log p of the target, without overflow
        return _mean(losses), ((logits.sigmoid() - wanted) / losses[0].numel())[..., None]


class SquaredError:
    """Squared error, a mean over the K outputs too; error is the mean absolute difference."""

    name: Final = "squared_error"

    def num_outputs(self, num_classes: int, targets: Tensor) -> int:
        return targets.shape[-1]

    def check_targets(self, outputs: Tensor, targets: Tensor, num_classes: int) -> None:
        if targets.dtype != outputs.dtype:
            raise ValueError(f"expected targets of {_dtype(outputs)}, as outputs are, got {_dtype(targets)}")
        if targets.shape[1:] != outputs.shape[1:]:
            hint = "; use targets.unsqueeze(-1)" if targets.shape[1:] == outputs.shape[1:-1] else ""
            raise ValueError(
                f"expected targets (n{_dims(outputs.shape[1:])}) as the outputs have, "
                f"got (n{_dims(targets.shape[1:])}){hint}"
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean((outputs - targets).square())

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean((outputs - targets).abs())

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        difference = outputs - targets
        return _mean(difference.square()), 2 * difference / difference[0].numel()


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


OBJECTIVES: Final[dict[str, Objective]] = {
    CrossEntropy.name: CrossEntropy(),
    BinaryCrossEntropy.name: BinaryCrossEntropy(),
    SquaredError.name: SquaredError(),
    PolicyGradient.name: PolicyGradient(),
}


def probabilities(outputs: Tensor) -> Tensor:
    """Softmax over the last dim, fast where it is short."""
    _, exponentials, total = _softmax_parts(outputs)
    return exponentials / total


def _check_classes(outputs: Tensor, targets: Tensor, num_classes: int) -> None:
    """Raise ValueError unless targets (n, ...) are classes, one for each vector of logits in outputs (B, ..., K)."""
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"expected labels that are integers, got {_dtype(targets)}; convert them with .long()")
    if targets.shape[1:] != outputs.shape[1:-1]:
        hint = ""
        if targets.shape[1:] == (*outputs.shape[1:-1], 1):
            hint = "; use labels.squeeze(-1)"
        elif targets.shape[1:] == outputs.shape[1:]:
            hint = "; use labels.argmax(-1) if they are one-hot"
        raise ValueError(
            f"expected labels (n{_dims(outputs.shape[1:-1])}) for outputs (n{_dims(outputs.shape[1:])}), "
            f"got (n{_dims(targets.shape[1:])}){hint}"
        )
    outside = (targets < 0) | (targets >= num_classes)
    if outside.any():
        found = ", ".join(map(str, targets[outside].unique().tolist()[:4]))
        raise ValueError(
            f"expected labels from 0 to {num_classes - 1}, got {found} in {int(outside.sum()):,} of "
            f"{targets.numel():,} places; number the classes from 0, leave out what has no label, or give an "
            "objective of your own that weighs it with 0"
        )


def _dims(shape: torch.Size) -> str:
    return "".join(f", {size}" for size in shape) or ","


def _dtype(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


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
