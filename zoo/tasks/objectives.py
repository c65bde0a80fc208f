"""What a task asks of the outputs of N networks: a loss to train on and an error to report.

Each objective also gives the gradient of its loss by the outputs, for the hand-written backward pass of MLPs.

Legend: N networks, B examples, L symbols of a sequence (absent for plain examples), K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

_NO_WEIGHT: Final = 1e-20  # in place of 0, by which a mean over nothing would be divided
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


@runtime_checkable
class Weighted(Protocol):
    """An objective whose means give some targets more weight than others, or none."""

    def weights(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Weights in the mean loss, and in the mean error, of targets of any shape, both of that shape."""
        ...


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
            raise ValueError(f"expected labels of int64, got {_dtype(targets)}; convert them with .long()")
        if self.weight is not None and len(self.weight) != outputs.shape[-1]:
            raise ValueError(f"expected {outputs.shape[-1]} weights, one for each class, got {len(self.weight)}")
        _check_classes(outputs, targets, outputs.shape[-1], self.ignore_index)
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
        return share * counts[..., None], total.clamp(min=_NO_WEIGHT)


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
        _check_like_outputs(outputs, targets)
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


class _Regression:
    """Real targets of the outputs' shape; the loss is a mean over the K outputs too, the error the mean difference."""

    def num_outputs(self, num_classes: int, targets: Tensor) -> int:
        return targets.shape[-1]

    def check_targets(self, outputs: Tensor, targets: Tensor, num_classes: int) -> None:
        if targets.dtype != outputs.dtype:
            raise ValueError(f"expected targets of {_dtype(outputs)}, as outputs are, got {_dtype(targets)}")
        _check_like_outputs(outputs, targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss_and_grad(outputs, targets)[0]

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _mean((outputs - targets).abs())

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class SquaredError(_Regression):
    """Squared error, as torch's `mse_loss`; error is the mean absolute difference."""

    name: ClassVar[str] = "squared_error"

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        difference = outputs - targets
        return _mean(difference.square()), 2 * difference / difference[0].numel()


@dataclass(frozen=True)
class AbsoluteError(_Regression):
    """Absolute difference, as torch's `l1_loss`, which is also the error."""

    name: ClassVar[str] = "l1"

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        difference = outputs - targets
        return _mean(difference.abs()), difference.sign() / difference[0].numel()


@dataclass(frozen=True)
class Huber(_Regression):
    """Quadratic for small differences and linear for large ones, as torch's `huber_loss`.

    Args:
        delta: the difference from which on it is linear.
    """

    name: ClassVar[str] = "huber"
    delta: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.delta, int | float) and self.delta > 0):
            raise ValueError(f"delta of 'huber' must be above 0, got {self.delta!r}")

    def loss_and_grad(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        difference = outputs - targets
        slope = difference.clamp(-self.delta, self.delta)
        return _mean(slope * (difference - 0.5 * slope)), slope / difference[0].numel()


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


def make_objective(config: str | Mapping[str, Any] | Objective) -> Objective:
    """Objective of a name, or of a mapping that holds a `name` and options; an objective as it is.

    Raises:
        ValueError: for an unknown name, unknown options, or values out of range.
    """
    if not isinstance(config, str | Mapping):
        if not callable(getattr(config, "loss", None)):
            raise ValueError(
                f"objective must be a name such as 'cross_entropy', a mapping with one, or an object whose method loss "
                f"scores N networks at once, got {config!r}; there are {sorted(OBJECTIVES)}"
            )
        return config
    options: dict[str, Any] = {"name": config} if isinstance(config, str) else dict(config)
    name = str(options.pop("name", None))
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {sorted(OBJECTIVES)}, got {name!r}")
    kind: Any = type(OBJECTIVES[name])
    known = [field.name for field in fields(kind)] if is_dataclass(kind) else []
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"objective {name!r} has the options {known}, got {unknown}")
    return kind(**options)


def recorded(objective: Objective) -> str | dict[str, Any]:
    """The name of an objective, with its options where they are not the usual ones: what `make_objective` takes."""
    if not is_dataclass(objective) or isinstance(objective, type) or objective == OBJECTIVES.get(objective.name):
        return objective.name
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(objective).items()}
    return {"name": objective.name, **options}


def shares(objective: Objective, parts: Sequence[Tensor], *, own: bool) -> list[tuple[Tensor | float, Tensor | float]]:
    """What the loss and the error of each part of some targets count in those of the whole: numbers, or (N,).

    Args:
        objective: whose loss and error they are.
        parts: targets (B, ...), or (N, B, ...) if networks have their own.
        own: whether they have.
    """
    if not isinstance(objective, Weighted):
        sizes = [part.shape[1 if own else 0] for part in parts]
        return [(size / sum(sizes), size / sum(sizes)) for size in sizes]
    totals = []
    for part in parts:
        weights = objective.weights(part)
        totals.append(torch.stack([one.flatten(1).sum(1) if own else one.sum() for one in weights]))  # (2,) or (2, N)
    whole = torch.stack(totals).sum(0).clamp(min=_NO_WEIGHT)
    return [(share[0], share[1]) for share in (total.clamp(min=_NO_WEIGHT) / whole for total in totals)]


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


def _check_like_outputs(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless targets (n, ..., K) have the shape of outputs (B, ..., K)."""
    if targets.shape[1:] != outputs.shape[1:]:
        hint = "; use targets.unsqueeze(-1)" if targets.shape[1:] == outputs.shape[1:-1] else ""
        raise ValueError(
            f"expected targets (n{_dims(outputs.shape[1:])}) as the outputs have, "
            f"got (n{_dims(targets.shape[1:])}){hint}"
        )


def _check_classes(outputs: Tensor, targets: Tensor, num_classes: int, ignored: int | None = None) -> None:
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
    if ignored is not None:
        outside &= targets != ignored
    if outside.any():
        found = ", ".join(map(str, targets[outside].unique().tolist()[:4]))
        raise ValueError(
            f"expected labels from 0 to {num_classes - 1}, got {found} in {int(outside.sum()):,} of "
            f"{targets.numel():,} places; number the classes from 0, or leave out what has no label: with "
            "objective={'name': 'cross_entropy', 'ignore_index': -100} labels of -100 do not count"
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


OBJECTIVES: Final[dict[str, Objective]] = {
    CrossEntropy.name: CrossEntropy(),
    BinaryCrossEntropy.name: BinaryCrossEntropy(),
    MultiLabel.name: MultiLabel(),
    SquaredError.name: SquaredError(),
    AbsoluteError.name: AbsoluteError(),
    Huber.name: Huber(),
    PolicyGradient.name: PolicyGradient(),
}
