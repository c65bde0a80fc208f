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
from learned_opt.rules.features import Accumulators, Decays
from learned_opt.rules.kernels.chunked_mlp import chunked_update_
from learned_opt.rules.kernels.folding import MAGNITUDE_SCALE, Layer, unpack_layers
from learned_opt.rules.kernels.native_mlp import is_available, native_update_
from learned_opt.rules.rule import (
    RuleOption,
    RuleState,
    TensorSpec,
    batched_theta,
    per_network,
    per_tensor,
)
from zoo.networks.parametrization import update_scale
from zoo.training.schedules import StepCount

STEP_SIZES: Final = {"mup": 0.01, "sp": 0.001}
MOMENTUM_DECAYS: Final = (0.9, 0.99, 0.999)
SQUARE_DECAYS: Final = (0.999,)
FACTORED_DECAYS: Final = (0.9, 0.99, 0.999)
CHUNK_NUMEL: Final = 16_384  # activations of one chunk stay in the second-level cache

_NUM_DECAYS: Final = len(MOMENTUM_DECAYS) + len(SQUARE_DECAYS) + len(FACTORED_DECAYS)
_TRUNCATED_NORMAL_STD: Final = 0.87962566  # std of a standard normal cut at +-2


FastUpdate = Callable[..., None]  # changes one tensor of all networks; arguments of `fused_update_` after the third


class MlpRule:
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

    def update(
        self,
        theta: Tensor,
        specs: Sequence[TensorSpec],
        params: list[Tensor],
        grads: Sequence[Tensor],
        state: RuleState,
        *,
        inner_step: StepCount,
        num_steps: StepCount | None,
        lr: Sequence[float] | float = 1.0,
        weight_decay: Sequence[float | None] | float | None = None,
    ) -> None:
        """Change `params` and `state` in place, see `UpdateRule.update`; the horizon `num_steps` is not used."""
        if not params:
            return
        theta = batched_theta(theta, self, params[0].shape[0])
        fast_update = None if self.reference else self._fast_update(theta)
        time = per_network(inner_step, params[0])
        lrs, decay_rates = per_tensor(lr, len(specs)), per_tensor(weight_decay, len(specs))
        for i, spec in enumerate(specs):
            if params[i].numel() == 0:
                continue
            base = lrs[i] * STEP_SIZES[self.parametrization]
            step_size = base * update_scale(spec.role, spec.width, self.parametrization)
            shrink = 1 - base * (decay_rates[i] or 0.0)
            param, grad = features.canonical(params[i], spec.shape), features.canonical(grads[i], spec.shape)
            accumulators = features.accumulators_of(state, i, spec.shape)
            if fast_update is None:
                accumulators, step = reference_step(
                    *self.unpack(theta), accumulators, param=param, grad=grad, inner_step=time
                )
                params[i] = features.uncanonical(shrink * param - step_size * step, spec.shape)
                for key in features.STATE_KEYS:
                    state[key][i] = getattr(accumulators, key)
                continue
            fast_update(accumulators, param=param, grad=grad, inner_step=time, step_size=step_size, shrink=shrink)
            if param.data_ptr() != params[i].data_ptr():  # the canonical form could not be a view
                params[i].copy_(features.uncanonical(param, spec.shape))

    def _fast_update(self, theta: Tensor) -> FastUpdate:
        """The fastest of the kernels that can run under meta-parameters (N, M), as a function of one tensor."""
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


def learned_decay(initial: Sequence[float], offset: Tensor) -> Tensor:
    """1 - exp(10 (log(1 - initial) / 10 + offset)), equal to `initial` at offset 0."""
    start = torch.log1p(-torch.tensor(initial, dtype=torch.float32, device=offset.device))
    return 1 - torch.exp(start + 10 * offset)


def reference_step(
    layers: Sequence[Layer],
    decays: Decays,
    accumulators: Accumulators,
    *,
    param: Tensor,
    grad: Tensor,
    inner_step: Tensor,
) -> tuple[Accumulators, Tensor]:
    """New accumulators and step (N, E, R, C) before scaling: the readable, differentiable twin."""
    accumulators = features.accumulate(accumulators, grad, decays)
    x = features.all_features(param, grad, accumulators, inner_step).flatten(2)  # (N, 39, n)
    for layer in layers[:-1]:
        x = torch.relu(layer.weight @ x + layer.bias[..., None])  # (N, H, n)
    direction, magnitude = (layers[-1].weight @ x + layers[-1].bias[..., None]).unbind(1)
    return accumulators, (direction * torch.exp(MAGNITUDE_SCALE * magnitude)).view_as(param)
