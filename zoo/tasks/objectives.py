"""What a task asks of the outputs of N networks: a loss to train on and an error to report.

Each objective also gives the gradient of its loss by the outputs, for the hand-written backward pass of MLPs.

Legend: N networks, B examples, L symbols of a sequence (absent for plain examples), K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor

from zoo.tasks.classification import NO_WEIGHT, BinaryCrossEntropy, CrossEntropy, MultiLabel, PolicyGradient
from zoo.tasks.regression import AbsoluteError, Huber, SquaredError


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
    whole = torch.stack(totals).sum(0).clamp(min=NO_WEIGHT)
    return [(share[0], share[1]) for share in (total.clamp(min=NO_WEIGHT) / whole for total in totals)]


_KINDS: Final = (CrossEntropy, BinaryCrossEntropy, MultiLabel, SquaredError, AbsoluteError, Huber, PolicyGradient)
OBJECTIVES: Final[dict[str, Objective]] = {kind.name: kind() for kind in _KINDS}
