"""Celo2's rule: a small network gives the direction, normalisation its size; AdamW for vectors and embeddings.

update = lr * 0.001 * rms_normalised(NewtonSchulz(first output of the network)), all over the last two axes. The rule
has no schedule and no idea of scale: the user supplies both through `lr`. It stands here to load the published weights
and as a rival; it is written for reading, not for speed.

Layout of theta (347 numbers at H = 8): W1 (H, 30), b1, W2 (H, H), b2, W3 (3, H), b3.

Source: Moudgil et al. 2026 (arXiv 2602.19142).

Legend: N networks, M meta-parameters, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from learned_opt.rules import features
from learned_opt.rules.features import Accumulators, Decays
from learned_opt.rules.kernels.folding import unpack_layers
from learned_opt.rules.rule import RuleOption, RuleState, TensorSpec, TensorUpdate, TensorwiseRule, constant
from zoo.ambient import torch_defaults
from zoo.training.muon import orthogonalize
from zoo.training.schedules import StepCount

STEP_SIZE: Final = 1e-3
MOMENTUM_DECAYS: Final = (0.9, 0.99, 0.999)
SQUARE_DECAY: Final = 0.95
FACTORED_DECAYS: Final = (0.9, 0.99, 0.999)
SQUARE_FLOOR: Final = 1e-8

_RMS_FLOOR: Final = 1e-9


class Celo2Rule(TensorwiseRule):
    """Celo2, or Celo2-base without orthogonalisation.

    Args:
        hidden: width H of the two hidden layers.
        orthogonalize: apply Newton-Schulz to the network's output.
    """

    name = "celo2"
    uses_horizon = False
    large_state = ("momentum", "square")

    def __init__(self, hidden: int = 8, *, orthogonalize: bool = True) -> None:
        if hidden < 1:
            raise ValueError(f"hidden must be positive, got {hidden}")
        self.hidden = hidden
        self.orthogonalize = orthogonalize
        self._sizes = (features.NUM_PUBLISHED_FEATURES, hidden, hidden, 3)

    @property
    def config(self) -> dict[str, RuleOption]:
        return {"hidden": self.hidden, "orthogonalize": self.orthogonalize}

    @property
    def num_theta(self) -> int:
        return sum(o * (i + 1) for i, o in pairwise(self._sizes))

    @torch_defaults()
    def init_theta(self, rng: torch.Generator) -> Tensor:
        """Normal weights with variance 1 / fan_in, zero biases."""
        parts = []
        for fan_in, fan_out in pairwise(self._sizes):
            parts += [torch.randn(fan_out * fan_in, generator=rng) / fan_in**0.5, torch.zeros(fan_out)]
        return torch.cat(parts)

    def init_state(self, specs: Sequence[TensorSpec], params: Sequence[Tensor]) -> RuleState:
        state = features.init_accumulators([spec.shape for spec in specs], params)
        return state | {"age": [param.new_zeros(len(param), 1, dtype=torch.float32) for param in params]}

    def update_tensors(
        self, theta: Tensor, tensors: Sequence[TensorUpdate], *, inner_step: StepCount, num_steps: StepCount | None
    ) -> None:
        """See `TensorwiseRule`; time is not used."""
        for tensor in tensors:
            shape, state = tensor.spec.shape, tensor.state
            grad = features.canonical(tensor.grad().clamp(-features.GRAD_LIMIT, features.GRAD_LIMIT), shape)
            new = features.accumulate(features.accumulators_of(state, shape), grad, _decays(grad.device))
            age = state["age"] + 1
            if new.factored and tensor.spec.role != "embedding":
                step = self._network_step(theta, tensor.param, grad, new, shape)
            else:
                step = features.uncanonical(_adam_step(new, age), shape)
            size = tensor.lr * STEP_SIZE
            param = (1 - size * (tensor.weight_decay or 0.0)) * tensor.param - size * step
            tensor.write(param, {key: getattr(new, key) for key in features.STATE_KEYS} | {"age": age})

    def _network_step(
        self, theta: Tensor, param: Tensor, grad: Tensor, accumulators: Accumulators, shape: tuple[int, ...]
    ) -> Tensor:
        """Update (N, *shape) of unit RMS over the last two axes."""
        groups = features.published_features(
            features.canonical(param, shape),
            grad,
            accumulators,
            features.preconditioners(accumulators),
            square_floor=SQUARE_FLOOR,
        )
        x = torch.cat([_normalised(_uncanonical_channels(group, shape)) for group in groups], dim=1)
        x = x.flatten(2)  # (N, 30, n)
        *inner, last = unpack_layers(theta, self._sizes)[0]
        for layer in inner:
            x = torch.relu(layer.weight @ x + layer.bias[..., None])
        x = last.weight @ x + last.bias[..., None]
        direction = x[:, 0].unflatten(1, shape)
        if self.orthogonalize:
            direction = orthogonalize(direction.reshape(-1, *shape[-2:])).reshape(direction.shape)
        return _normalised(direction)


def _decays(device: torch.device) -> Decays:
    decays = (MOMENTUM_DECAYS, (SQUARE_DECAY,), FACTORED_DECAYS)
    return Decays(*(constant(numbers, device)[None] for numbers in decays))


def _uncanonical_channels(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(N, k, E, R, C) -> (N, k, *shape)."""
    return features.uncanonical(x.flatten(0, 1), shape).unflatten(0, x.shape[:2])


def _normalised(x: Tensor) -> Tensor:
    """Root mean square one over the last two axes."""
    return x * (x.square().mean(dim=(-2, -1), keepdim=True) + _RMS_FLOOR).rsqrt()


def _adam_step(accumulators: Accumulators, age: Tensor) -> Tensor:
    """Adam's step from the first momentum and the second moment, bias-corrected: (N, E, R, C)."""
    age = age[..., None, None]
    momentum = accumulators.momentum[:, 0] / (1 - MOMENTUM_DECAYS[0] ** age)
    square = accumulators.square[:, 0] / (1 - SQUARE_DECAY**age)
    return momentum / (square.sqrt() + 1e-8)
