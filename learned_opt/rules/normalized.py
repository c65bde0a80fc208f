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
    TensorUpdate,
    TensorwiseRule,
    constant,
    expanded,
    per_network,
)
from zoo.networks.roles import MATRIX_ROLES
from zoo.training.muon import orthogonalize
from zoo.training.schedules import StepCount

CONSTANT_FRACTION: Final = 0.5  # of the run, at which the step stays where the horizon is not known
MAX_BATCH_NUMEL: Final = 2**22  # equally shaped tensors are orthogonalised together up to this many numbers
MIN_BFLOAT16_SIZE: Final = 256  # smaller side of a matrix from which on it is orthogonalised in bfloat16

_TINY: Final = 1e-24


class NormalizedRule(TensorwiseRule):
    """The rule above.

    Args:
        feedback: False for the scalars alone.
        embedding_offset: whether theta has the three numbers for networks with embeddings.
        reference: put new tensors into the lists instead of changing them in place, which autograd can follow.
    """

    name = "normalized"
    uses_horizon = True
    large_state = ("momentum", "square")

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

    def update_tensors(
        self, theta: Tensor, tensors: Sequence[TensorUpdate], *, inner_step: StepCount, num_steps: StepCount | None
    ) -> None:
        """See `TensorwiseRule`; without `num_steps` the step stays constant."""
        scalars, layer = decode(theta, feedback=self.feedback, embedding_offset=self.embedding_offset)
        signals = [self._accumulate(scalars, tensor) for tensor in tensors]
        statistics, controls = control(
            scalars,
            layer,
            specs=[tensor.spec for tensor in tensors],
            statistics=Statistics(*torch.stack([tensor.state["statistics"] for tensor in tensors], dim=1).unbind(2)),
            signals=Signals(*(torch.stack(column, dim=1) for column in zip(*signals, strict=True))),
            horizon=horizon_of(inner_step, num_steps, like=tensors[0].param),
        )
        rows = torch.stack(statistics, dim=2).unbind(1)
        unit, learned_decay = controls.decay_unit[:, 0], controls.learned_decay[:, 0]
        for i, update in self._updates(scalars, controls.nesterov, tensors):
            tensor = tensors[i]
            asked, own = tensor.weight_decay, learned_decay if tensor.spec.role in MATRIX_ROLES else 0.0
            kept = tensor.param * expanded(1 - tensor.lr * unit * (own if asked is None else asked), update)
            size = expanded(tensor.lr * controls.size[:, i], update)
            param = torch.addcmul(kept, update, size, value=-1)
            tensor.write(param, {"statistics": rows[i]}, in_place=not self.reference)

    def _accumulate(self, scalars: Scalars, tensor: TensorUpdate) -> Signals:
        """Update momentum and second moment; what is seen of the gradient, (N,) each."""
        grad, state = tensor.grad(), tensor.state
        agreement = cosine(grad, state["momentum"] * (state["square"] + _TINY).rsqrt_())
        self._lerp(tensor, "momentum", grad, 1 - scalars["momentum_decay"])
        self._lerp(tensor, "square", grad.square(), 1 - scalars["square_decay"])
        share = mean_square(state["momentum"]) / (_flat(state["square"]).mean(1) + 1e-30)
        return Signals(mean_square(grad), agreement, share, mean_square(tensor.param))

    def _lerp(self, tensor: TensorUpdate, kind: str, value: Tensor, weight: Tensor) -> None:
        weight = weight[:, 0] if tensor.active is None else weight[:, 0] * tensor.active
        weight = expanded(weight, value)
        old = tensor.state[kind]
        tensor.state[kind] = old.lerp(value, weight) if self.reference else old.lerp_(value, weight)

    def _updates(
        self, scalars: Scalars, nesterov: Tensor, tensors: Sequence[TensorUpdate]
    ) -> Iterator[tuple[int, Tensor]]:
        """Index and update (N, *shape), of unit RMS, of each tensor; equal shapes are orthogonalised together."""
        groups: dict[int | tuple[int, ...], list[int]] = defaultdict(list)
        for i, tensor in enumerate(tensors):
            alone = tensor.spec.role not in MATRIX_ROLES or self.reference
            groups[i if alone else tensor.spec.shape].append(i)
        for group in groups.values():
            per_batch = max(1, MAX_BATCH_NUMEL // tensors[group[0]].param.numel())
            for start in range(0, len(group), per_batch):
                batch = group[start : start + per_batch]
                directions = [direction_of(tensors[i], nesterov[:, i]) for i in batch]
                if tensors[batch[0]].spec.role in MATRIX_ROLES:
                    mixes = torch.stack([scalars[f"mix_{tensors[i].spec.role}"][:, 0] for i in batch], dim=1)
                    directions = orthogonal_mix(directions, mixes)
                yield from zip(batch, directions, strict=True)


def direction_of(tensor: TensorUpdate, nesterov: Tensor) -> Tensor:
    """(N, *shape) of unit RMS: the momentum with some of the newest gradient, over the root of the second moment."""
    momentum, square, grad = tensor.state["momentum"], tensor.state["square"], tensor.grad()
    return rms_normalised(momentum.lerp(grad, expanded(nesterov, grad)).mul_((square + _TINY).rsqrt_()))


def horizon_of(inner_step: StepCount, num_steps: StepCount | None, like: Tensor) -> Horizon:
    """Where runs stand; past their end they stay at the last step size."""
    if num_steps is None:
        return Horizon(*(constant((x,), like.device) for x in (CONSTANT_FRACTION, float(REFERENCE_HORIZON))))
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
    return x * expanded((mean_square(x) + _TINY).rsqrt(), x)


def orthogonal_mix(directions: Sequence[Tensor], mixes: Tensor) -> list[Tensor]:
    """Directions (N, *shape), mixed with their orthogonalised selves by `mixes` (N, K), of unit RMS again."""
    stacked = torch.stack(list(directions), dim=1).flatten(3)  # (N, K, fan_out, fan_in)
    if stacked.ndim == 3:
        stacked = stacked.unsqueeze(2)
    batch = stacked.flatten(0, 1)
    dtype = torch.bfloat16 if min(batch.shape[1:]) >= MIN_BFLOAT16_SIZE else None
    mixed = batch.lerp(rms_normalised(orthogonalize(batch, dtype)), expanded(mixes.flatten(), batch))
    return list(rms_normalised(mixed).view(stacked.shape[:2] + directions[0].shape[1:]).unbind(1))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)
