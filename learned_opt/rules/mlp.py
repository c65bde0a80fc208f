"""A small network reads 39 features of each parameter and writes its update: small_fc_lopt, and µLO in µP.

update = lr * scale(role, width) * step_size * direction * exp(0.001 * magnitude),   (direction, magnitude) = MLP(x)

with the learned decays d = 1 - exp(10 (log(1 - d0) / 10 + offset)). In µP ("mulo") the scale is 1 / width for hidden
and output matrices and the step size 0.01; in standard parametrization ("small-fc-lopt") they are 1 and 0.001. Width is
the fan_in, of a convolution its input channels: the area of its kernel does not grow with the network.

Layout of theta (2,409 numbers at H = 32): W1 (H, 39), b1, W2 (H, H), b2, W3 (2, H), b3, then the offsets of the decays
of the momenta (3), the second moment (1) and the factored averages (3). Columns of W1 in the order of `features`.

Source: Metz et al. 2022 (arXiv 2203.11860); Thérien et al. 2024 (arXiv 2406.00153) for µP.

Legend: N networks, M meta-parameters, H hidden units, E x R x C one tensor (see `features`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from learned_opt.rules import features
from learned_opt.rules.batches import Chunk, batches, unstacked
from learned_opt.rules.features import Accumulators, Decays
from learned_opt.rules.kernels.chunked_mlp import chunked_update_
from learned_opt.rules.kernels.folding import MAGNITUDE_SCALE, Layer, only_active, unpack_layers
from learned_opt.rules.kernels.native_mlp import is_available, native_update_
from learned_opt.rules.rule import (
    RuleOption,
    RuleState,
    TensorSpec,
    TensorUpdate,
    TensorwiseRule,
    constant,
    per_network,
)
from zoo.ambient import torch_defaults
from zoo.networks.parametrization import update_scale
from zoo.training.schedules import StepCount

STEP_SIZES: Final = {"mup": 0.01, "sp": 0.001}
MOMENTUM_DECAYS: Final = (0.9, 0.99, 0.999)
SQUARE_DECAYS: Final = (0.999,)
FACTORED_DECAYS: Final = (0.9, 0.99, 0.999)
STACK_NUMEL: Final = 2**22  # numbers of equal tensors that a device, where starting kernels costs, updates as one
CHUNK_NUMEL: Final = 16_384  # activations of one chunk stay in the second-level cache

_NUM_DECAYS: Final = len(MOMENTUM_DECAYS) + len(SQUARE_DECAYS) + len(FACTORED_DECAYS)
_TRUNCATED_NORMAL_STD: Final = 0.87962566  # std of a standard normal cut at +-2


# Changes one tensor of all networks in place, or returns its new accumulators and parameters; arguments of
# `reference_update` after the second.
Kernel = Callable[..., tuple[Accumulators, Tensor] | None]


class MlpRule(TensorwiseRule):
    """small_fc_lopt.

    Args:
        hidden: width H of the two hidden layers.
        parametrization: "mup" or "sp": scale of the updates.
        reference: use the readable twin, which builds all features at once.
        native: on a CPU, True for the kernel in C, False for plain torch, "auto" for C where there is a compiler.
        chunk_numel: elements that plain torch handles at once, which bounds temporary memory.
    """

    name = "mlp"
    uses_horizon = False
    large_state = ("momentum", "square")

    def __init__(
        self,
        hidden: int = 32,
        parametrization: str = "mup",
        *,
        reference: bool = False,
        native: bool | str = "auto",
        chunk_numel: int = CHUNK_NUMEL,
    ) -> None:
        if hidden < 1 or chunk_numel < 1:
            raise ValueError(f"hidden and chunk_numel must be positive, got {hidden} and {chunk_numel}")
        if parametrization not in STEP_SIZES:
            raise ValueError(f"parametrization must be one of {sorted(STEP_SIZES)}, got {parametrization!r}")
        self.hidden = hidden
        self.parametrization = parametrization
        if native not in (True, False, "auto"):
            raise ValueError(f"native must be True, False or 'auto', got {native!r}")
        self.reference = reference
        self.native = native
        self.chunk_numel = chunk_numel
        self._sizes = (features.NUM_FEATURES, hidden, hidden, 2)

    @property
    def config(self) -> dict[str, RuleOption]:
        return {"hidden": self.hidden, "parametrization": self.parametrization}

    @property
    def num_theta(self) -> int:
        return sum(o * (i + 1) for i, o in pairwise(self._sizes)) + _NUM_DECAYS

    @torch_defaults()
    def init_theta(self, rng: torch.Generator) -> Tensor:
        """Weights from a normal cut at two standard deviations with variance 1 / fan_in, zero biases and offsets."""
        parts = []
        for fan_in, fan_out in pairwise(self._sizes):
            weight = torch.empty(fan_out, fan_in)
            torch.nn.init.trunc_normal_(weight, std=1.0, a=-2.0, b=2.0, generator=rng)
            parts += [weight.flatten() / (_TRUNCATED_NORMAL_STD * fan_in**0.5), torch.zeros(fan_out)]
        return torch.cat([*parts, torch.zeros(_NUM_DECAYS)])

    def init_state(self, specs: Sequence[TensorSpec], params: Sequence[Tensor]) -> RuleState:
        return features.init_accumulators([spec.shape for spec in specs], params)

    def unpack(self, theta: Tensor) -> tuple[list[Layer], Decays]:
        """Layers and decays of meta-parameters (N, M)."""
        layers, rest = unpack_layers(theta, self._sizes)
        momentum, square, factored = rest.split([len(MOMENTUM_DECAYS), 1, len(FACTORED_DECAYS)], dim=1)
        decays = Decays(
            learned_decay(MOMENTUM_DECAYS, momentum),
            learned_decay(SQUARE_DECAYS, square).clamp(0, 1),
            learned_decay(FACTORED_DECAYS, factored).clamp(0, 1),
        )
        return layers, decays

    def update_tensors(
        self, theta: Tensor, tensors: Sequence[TensorUpdate], *, inner_step: StepCount, num_steps: StepCount | None
    ) -> None:
        """See `TensorwiseRule`; the horizon `num_steps` is not used."""
        kernel = self._kernel(theta)
        time = per_network(inner_step, tensors[0].param)
        if self.reference or theta.device.type == "cpu":
            for tensor in tensors:
                self._update(kernel, tensor, time)
            return
        for batch in batches(tensors, STACK_NUMEL):
            if len(batch) == 1:
                self._update(kernel, batch[0], time)
            else:
                self._update_stack(theta, batch, time)

    def _update_stack(self, theta: Tensor, batch: Sequence[TensorUpdate], time: Tensor) -> None:
        """Update K tensors of one shape as if they were those of K times as many networks."""
        chunk, count = Chunk(batch, slice(len(batch))), len(batch)
        masks = [tensor.active for tensor in batch if tensor.active is not None]
        stack = TensorUpdate(
            batch[0].spec,
            chunk.read(lambda tensor: tensor.param).flatten(0, 1),
            chunk.read(lambda tensor: tensor.raw_grad).flatten(0, 1),
            {kind: chunk.state(kind).flatten(0, 1) for kind in features.STATE_KEYS},
            batch[0].lr,
            batch[0].weight_decay,
            torch.stack(masks, dim=1).flatten() if masks else None,
        )
        time = time if len(time) == 1 else time.repeat_interleave(count)
        self._update(self._kernel(theta.unsqueeze(1).expand(-1, count, -1).flatten(0, 1)), stack, time)
        size = (-1, count)
        torch._foreach_copy_([tensor.param for tensor in batch], unstacked(stack.param.unflatten(0, size)))
        for kind in features.STATE_KEYS:
            chunk.write_state(kind, stack.state[kind].unflatten(0, size), in_place=True)

    def _update(self, kernel: Kernel, tensor: TensorUpdate, time: Tensor) -> None:
        shape, role = tensor.spec.shape, tensor.spec.role
        base = tensor.lr * STEP_SIZES[self.parametrization]
        param = features.canonical(tensor.param, shape)
        new = kernel(
            features.accumulators_of(tensor.state, shape),
            param=param,
            grad=features.canonical(tensor.grad(), shape),
            inner_step=time,
            step_size=base * update_scale(role, tensor.spec.width, self.parametrization),
            shrink=1 - base * tensor.weight_decay if tensor.weight_decay else 1.0,
            active=tensor.active,
        )
        if new is not None:
            accumulators, param = new
            tensor.state |= {kind: getattr(accumulators, kind) for kind in features.STATE_KEYS}
            tensor.param = features.uncanonical(param, shape)
        elif not param._is_view():  # the canonical form had to be a copy
            tensor.param.copy_(features.uncanonical(param, shape))

    def _kernel(self, theta: Tensor) -> Kernel:
        """The fastest that can run under meta-parameters (N, M), or the readable twin."""
        if self.reference:
            return partial(reference_update, *self.unpack(theta))
        if theta.device.type == "cpu" and (is_available() if self.native == "auto" else self.native):
            if torch.is_grad_enabled() and theta.requires_grad:
                raise RuntimeError("the native kernel has no derivative with respect to theta; use reference=True")
            theta = theta.float() if theta.stride(1) == 1 else theta.float().contiguous()
            return partial(native_update_, theta, self.hidden)
        layers, decays = self.unpack(theta)
        if theta.device.type == "cuda" and find_spec("triton"):
            from learned_opt.rules.kernels.triton_mlp import SUPPORTED_HIDDEN, fused_update_

            if self.hidden in SUPPORTED_HIDDEN:
                return partial(fused_update_, layers, decays)
        return partial(chunked_update_, layers, decays, chunk_numel=self.chunk_numel)


def learned_decay(initial: tuple[float, ...], offset: Tensor) -> Tensor:
    """1 - exp(10 (log(1 - initial) / 10 + offset)), equal to `initial` at offset 0."""
    return 1 - torch.exp(torch.log1p(-constant(initial, offset.device)) + 10 * offset)


def reference_update(
    layers: Sequence[Layer],
    decays: Decays,
    accumulators: Accumulators,
    *,
    param: Tensor,
    grad: Tensor,
    inner_step: Tensor,
    step_size: float,
    shrink: float,
    active: Tensor | None = None,
) -> tuple[Accumulators, Tensor]:
    """New accumulators and parameters (N, E, R, C): the readable, differentiable twin of the kernels."""
    layers, decays, shrink_of = only_active(layers, decays, shrink, active)
    accumulators = features.accumulate(accumulators, grad, decays)
    x = features.all_features(param, grad, accumulators, inner_step).flatten(2)  # (N, 39, n)
    for layer in layers[:-1]:
        x = torch.relu(layer.weight @ x + layer.bias[..., None])  # (N, H, n)
    direction, magnitude = (layers[-1].weight @ x + layers[-1].bias[..., None]).unbind(1)
    step = (direction * torch.exp(MAGNITUDE_SCALE * magnitude)).view_as(param)
    return accumulators, shrink_of * param - step_size * step
