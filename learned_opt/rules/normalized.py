"""The self-tuning normalised rule "mulo-norm": an orthogonalised direction, and a controller of its size per tensor.

With gradient g of one tensor, seen as a matrix of fan_out rows (vectors, norms and embeddings are not orthogonalised):

    m <- lerp(m, g, 1 - b1);  v <- lerp(v, g^2, 1 - b2)
    d  = rms_normalised(lerp(m, g, nesterov) / sqrt(v))
    u  = rms_normalised(lerp(d, rms_normalised(NewtonSchulz(d)), mix[role]))
    rho       = log(rms of recent gradients / rms of all gradients)          gradients that shrink ask for smaller steps
    agreement = cosine(g, m / sqrt(v)), m and v before this gradient          while gradients agree, steps grow
    log_step <- log_step + r/T (o2 - log_step) + kappa (T/400)^k (agreement - target),  within [-4, 3]
    W <- W - lr (1 - t/T)^p (exp(base + clamp(gamma rho + log_step + o1, -5, 4)) u + rate decay (T/400)^d W)
    base      = log rate + a log(T/400) + b log(L/2) + c[role] + 1/2 log(32/width) [matrices]

Only matrices decay by themselves; what the user asks for, 0 included, goes before that. What agreement has done to
log_step is forgotten over T / r steps: while steps are too long at first it shortens them, and it leaves the end of a
run, where gradients are noise, to the schedule. A linear layer, 15 -> 3, on the statistics of the tensor adds o1, draws
log_step to o2 (0 without it) and multiplies `nesterov` by exp(o3); networks with embeddings, whose hidden matrices
disagree with their momentum at steps that serve them, add three numbers of their own to these outputs. The width is
fan_in without the area of kernels; its power 1/2 is µP's spectral condition for orthogonalised updates of unit RMS in
hidden matrices. For outputs, whose rows do not grow in number, the condition is 1; with 1/2 final losses were lower up
to widths of 2,048 (tried before log_step was forgotten), though logits move more with width and mean losses at 2,048
were better with 3/4.

The state is that of Adam: 8 bytes for each parameter.

Theta: the scalars of SCALARS in that order, each through its own map so that 0 is a sane start, then weights (15, 3)
and biases (3,) of the layer, then the three for networks with embeddings. Without `embedding_offset` the last are none,
and without `feedback` ("mulo-norm-scalars") there are only the scalars.

Source: Jordan et al. 2024 (Muon) for the direction; Yang et al. 2023 (arXiv 2310.17813) for the spectral condition.

Legend: N networks, R tensors, M meta-parameters, T horizon, L depth, f = t / T.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from learned_opt.rules.controller import (
    NUM_FEEDBACK,
    NUM_OFFSETS,
    NUM_STATISTICS,
    REFERENCE_HORIZON,
    SCALARS,
    Horizon,
    Scalars,
    Signals,
    Statistics,
    control,
    decode,
)
from learned_opt.rules.rule import (
    RuleOption,
    RuleState,
    TensorSpec,
    batched_theta,
    per_network,
    per_tensor,
)
from zoo.networks.roles import MATRIX_ROLES
from zoo.training.muon import orthogonalize
from zoo.training.schedules import StepCount

CONSTANT_FRACTION: Final = 0.5  # of the run, at which the step stays where the horizon is not known
MAX_BATCH_NUMEL: Final = 2**22  # equally shaped tensors are orthogonalised together up to this many numbers
MIN_BFLOAT16_SIZE: Final = 256  # smaller side of a matrix from which on it is orthogonalised in bfloat16

_TINY: Final = 1e-24


class NormalizedRule:
    """The rule above.

    Args:
        feedback: False for the scalars alone.
        embedding_offset: whether theta has the three numbers for networks with embeddings.
        reference: put new tensors into the lists instead of changing them in place, which autograd can follow.
    """

    name = "normalized"
    uses_horizon = True

    def __init__(self, *, feedback: bool = True, embedding_offset: bool = False, reference: bool = False) -> None:
        if embedding_offset and not feedback:
            raise ValueError("embedding_offset=True adds to the outputs of the layer that feedback=False leaves out")
        self.feedback = feedback
        self.embedding_offset = embedding_offset
        self.reference = reference

    @classmethod
    def from_config(cls, *, network: bool = True, tokens: bool = False, reference: bool = False) -> NormalizedRule:
        """The rule of a file of meta-parameters, whose hash covers these names of `feedback` and `embedding_offset`."""
        return cls(feedback=network, embedding_offset=tokens, reference=reference)

    @property
    def config(self) -> dict[str, RuleOption]:
        options: dict[str, RuleOption] = {"network": self.feedback}
        return options | {"tokens": True} if self.embedding_offset else options

    @property
    def num_theta(self) -> int:
        return len(SCALARS) + NUM_FEEDBACK * self.feedback + NUM_OFFSETS * self.embedding_offset

    def init_theta(self, rng: torch.Generator) -> Tensor:
        """Scalars at their starts, a layer whose outputs are zero."""
        return torch.zeros(self.num_theta)

    def init_state(self, specs: Sequence[TensorSpec], params: Sequence[Tensor]) -> RuleState:
        state: RuleState = {
            kind: [torch.zeros_like(p, dtype=torch.float32) for p in params] for kind in ("momentum", "square")
        }
        state["statistics"] = [p.new_zeros(p.shape[0], NUM_STATISTICS, dtype=torch.float32) for p in params]
        return state

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
        """Change `params` and `state`, see `UpdateRule.update`; without `num_steps` the step stays constant."""
        used = [i for i, param in enumerate(params) if param.numel()]
        if not used:
            return
        theta = batched_theta(theta, self, params[0].shape[0])
        scalars, layer = decode(theta, feedback=self.feedback, embedding_offset=self.embedding_offset)
        signals = self._accumulate(scalars, [params[i] for i in used], [grads[i] for i in used], state, used)
        statistics = Statistics(*torch.stack([state["statistics"][i] for i in used], dim=1).unbind(2))
        horizon = horizon_of(inner_step, num_steps, like=params[used[0]])
        statistics, controls = control(
            scalars,
            layer,
            specs=[specs[i] for i in used],
            statistics=statistics,
            signals=signals,
            horizon=horizon,
        )
        for i, row in zip(used, torch.stack(statistics, dim=2).unbind(1), strict=True):
            self._set(state["statistics"], i, row)

        lrs, decay_rates = per_tensor(lr, len(specs)), per_tensor(weight_decay, len(specs))
        unit, learned_decay = controls.decay_unit[:, 0], controls.learned_decay[:, 0]
        columns = {i: column for column, i in enumerate(used)}
        for i, update in self._updates(
            scalars, controls.nesterov, specs=specs, grads=grads, state=state, columns=columns
        ):
            size = lrs[i] * controls.size[:, columns[i]]
            asked = decay_rates[i]
            own = learned_decay if specs[i].role in MATRIX_ROLES else 0.0
            kept = params[i] * _like(1 - lrs[i] * unit * (own if asked is None else asked), params[i])
            self._set(params, i, torch.addcmul(kept, update, _like(size, kept), value=-1))

    def _accumulate(
        self, scalars: Scalars, params: list[Tensor], grads: list[Tensor], state: RuleState, used: list[int]
    ) -> Signals:
        """Update momenta and second moments of the used tensors; the signals of the gradients."""
        columns = []
        for param, grad, i in zip(params, grads, used, strict=True):
            momentum, square = state["momentum"][i], state["square"][i]
            agreement = cosine(grad, momentum * (square + _TINY).rsqrt_())
            momentum = self._lerp(state["momentum"], i, grad, 1 - scalars["momentum_decay"])
            square = self._lerp(state["square"], i, grad.square(), 1 - scalars["square_decay"])
            share = mean_square(momentum) / (_flat(square).mean(1) + 1e-30)
            columns.append(Signals(mean_square(grad), agreement, share, mean_square(param)))
        return Signals(*(torch.stack(column, dim=1) for column in zip(*columns, strict=True)))

    def _updates(
        self,
        scalars: Scalars,
        nesterov: Tensor,
        *,
        specs: Sequence[TensorSpec],
        grads: Sequence[Tensor],
        state: RuleState,
        columns: dict[int, int],
    ) -> Iterator[tuple[int, Tensor]]:
        """Index and update (N, *shape), of unit RMS, of each tensor; equal shapes are orthogonalised together."""
        groups: dict[int | tuple[int, ...], list[int]] = defaultdict(list)
        for i in columns:
            alone = specs[i].role not in MATRIX_ROLES or self.reference
            groups[i if alone else specs[i].shape].append(i)
        for group in groups.values():
            per_batch = max(1, MAX_BATCH_NUMEL // grads[group[0]].numel())
            for start in range(0, len(group), per_batch):
                batch = group[start : start + per_batch]
                directions = []
                for i in batch:
                    weight = _like(nesterov[:, columns[i]], grads[i])
                    direction = state["momentum"][i].lerp(grads[i], weight)
                    directions.append(rms_normalised(direction.mul_((state["square"][i] + _TINY).rsqrt_())))
                if specs[batch[0]].role in MATRIX_ROLES:
                    mixes = torch.stack([scalars[f"mix_{specs[i].role}"][:, 0] for i in batch], dim=1)
                    directions = orthogonal_mix(directions, mixes)
                yield from zip(batch, directions, strict=True)

    def _lerp(self, tensors: list[Tensor], i: int, value: Tensor, weight: Tensor) -> Tensor:
        weight = _like(weight[:, 0], value)
        tensors[i] = tensors[i].lerp(value, weight) if self.reference else tensors[i].lerp_(value, weight)
        return tensors[i]

    def _set(self, tensors: list[Tensor], i: int, value: Tensor) -> None:
        if self.reference:
            tensors[i] = value
        else:
            tensors[i].copy_(value)


def horizon_of(inner_step: StepCount, num_steps: StepCount | None, like: Tensor) -> Horizon:
    """Where runs stand; past their end they stay at the last step size."""
    if num_steps is None:
        return Horizon(like.new_tensor([CONSTANT_FRACTION]), like.new_tensor([float(REFERENCE_HORIZON)]))
    total = per_network(num_steps, like)
    return Horizon(torch.minimum(per_network(inner_step, like), total - 1) / total, total)


def mean_square(x: Tensor) -> Tensor:
    """(N, *shape) -> (N,)."""
    return torch.linalg.vector_norm(_flat(x), dim=1).square() / x[0].numel()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two tensors (N, *shape) for each network, 0 where one of them is zero: (N,)."""
    a, b = _flat(a), _flat(b)
    dot = (a.unsqueeze(1) @ b.unsqueeze(2)).flatten()
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return dot / norms.clamp(min=1e-30)


def rms_normalised(x: Tensor) -> Tensor:
    """Each network's tensor (N, *shape) brought to root mean square one."""
    return x * _like((mean_square(x) + _TINY).rsqrt(), x)


def orthogonal_mix(directions: Sequence[Tensor], mixes: Tensor) -> list[Tensor]:
    """Directions (N, *shape), mixed with their orthogonalised selves by `mixes` (N, K), of unit RMS again."""
    stacked = torch.stack(list(directions), dim=1).flatten(3)  # (N, K, fan_out, fan_in)
    if stacked.ndim == 3:
        stacked = stacked.unsqueeze(2)
    batch = stacked.flatten(0, 1)
    dtype = torch.bfloat16 if min(batch.shape[1:]) >= MIN_BFLOAT16_SIZE else None
    mixed = batch.lerp(rms_normalised(orthogonalize(batch, dtype)), _like(mixes.flatten(), batch))
    return list(rms_normalised(mixed).view(stacked.shape[:2] + directions[0].shape[1:]).unbind(1))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


def _like(x: Tensor, other: Tensor) -> Tensor:
    """(N,) -> (N, 1, ..., 1) with as many dims as `other`."""
    return x.reshape(-1, *(1,) * (other.ndim - 1))
