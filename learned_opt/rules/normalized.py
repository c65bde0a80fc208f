"""The rule of "mulo-norm" and "mulo-wide": an orthogonalised direction, and a controller of its size per tensor.

With gradient g of one tensor, seen as a matrix of fan_out rows (vectors, norms and embeddings are not orthogonalised):

    m <- lerp(m, g, 1 - b1);  v <- lerp(v, g^2, 1 - b2)
    d  = rms_normalised(lerp(m, g, nesterov) / sqrt(v))
    u  = rms_normalised(lerp(d, rms_normalised(NewtonSchulz(d)), mix[role]))
    rho       = log(rms of recent gradients / rms of all gradients)          gradients that shrink ask for smaller steps
    agreement = cosine(g, m / sqrt(v)), m and v before this gradient          while gradients agree, steps grow
    log_step <- log_step + r/T (o2 - log_step) + kappa (T/400)^k (agreement - target),  within [-4, 3]
    size = (1 - t/T)^p exp(base + clamp(gamma rho + log_step + o1, -5, 4))
    W <- W - lr (min(size / grown^6, .3 max(rms(W), start)) u + (1 - t/T)^p rate decay (T/400)^d W)
    log grown = max(0, log min(rms(W) / (2.5 start), rms of recent gradients / rms of the first five))
                  clamp(1 + usual agreement / .06, 0, 1)
    base      = log rate + a log(T/400) + b log(L/2) + c[role] + 1/2 log(32/width) [matrices]

Steps of matrices have two limits, beside what torch begins them with, start = (3 fan_in)^-1/2, that are seldom reached
where networks begin as usual and minibatches are not tiny. No update changes one by more than .3 of itself: what suits
a layer of many inputs kills kernels of few channels. And where weights and gradients have both grown without
disagreement, which is how runs at batch size 1 begin to diverge, steps fall. The others have start = infinity.

In powers and shares of T, T is at least 16; the schedule ends with the run.

Only matrices decay by themselves; what the user asks for, 0 included, goes before that. What agreement has done to
log_step is forgotten over T / r steps: while steps are too long at first it shortens them, and it leaves the end of a
run, where gradients are noise, to the schedule. A linear layer, 15 -> 3, on the statistics of the tensor adds o1, draws
log_step to o2 (0 without it) and multiplies `nesterov` by exp(o3); networks with embeddings, whose hidden matrices
disagree with their momentum at steps that serve them, add three numbers of their own to these outputs. With `memory` a
second layer, 15 -> 2, divides 1 - b1 by exp(o4), o4 in [0, 2.5], and multiplies kappa by exp(o5), o5 in [-6, 0], from
the next update on: where gradients have little noise a long momentum is better, and agreement a bad guide, as they
disagree with it whatever the step. The width is fan_in without the area
of kernels; its power 1/2 is µP's spectral condition for orthogonalised updates of unit RMS in hidden matrices. For
outputs, whose rows do not grow in number, the condition is 1; with 1/2 final losses were lower up to widths of 2,048
(tried before log_step was forgotten), though logits move more with width and mean losses at 2,048 were better with 3/4.

With `basis` the rule sees the gradients of matrices of small sides in other coordinates, and turns updates back from
them, see `learned_opt.rules.basis`.

The state is that of Adam: 8 bytes for each parameter, at most 16 with `basis`. Tensors of one shape are handled
together, large ones in slices (see `batches`): few operations, and no temporary above one tensor. `reference=True`
takes them one by one.

Theta: the scalars of SCALARS in that order, each through its own map so that 0 is a sane start, then weights (15, 3)
and biases (3,) of the layer, then the three for networks with embeddings, then weights and biases (16, 2) of the second
layer. Without `memory` and `embedding_offset` these are none, and without `feedback` ("mulo-norm-scalars") there are
only the scalars.

Source: Jordan et al. 2024 (Muon) for the direction; Yang et al. 2023 (arXiv 2310.17813) for the spectral condition.

Legend: N networks, R tensors, M meta-parameters, T horizon, L depth, f = t / T.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from learned_opt.rules.basis import BASIS, COVARIANCE, gradient_of, has_basis, init_bases, turned_back, update_basis
from learned_opt.rules.batches import Chunk, batches, chunks, per_row, unstacked, whole_chunk
from learned_opt.rules.controller import (
    NUM_FEEDBACK,
    NUM_MEMORY,
    NUM_MEMORY_OUTPUTS,
    NUM_OFFSETS,
    NUM_STATISTICS,
    SCALARS,
    Controls,
    Horizon,
    Scalars,
    Signals,
    Statistics,
    control,
    decode,
    memory_start,
)
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
from zoo.devices import is_fast_in_bfloat16
from zoo.networks.roles import MATRIX_ROLES
from zoo.training.muon import orthogonalize
from zoo.training.schedules import StepCount

OPEN_FRACTION: Final = 0.1  # of a run without a horizon, at which it is thought to stand at every step
MIN_OPEN_HORIZON: Final = 100  # steps that such a run is thought to last at least
CPU_CHUNK_NUMEL: Final = 2**17  # numbers handled at once, so that they stay in the second-level cache
DEVICE_CHUNK_NUMEL: Final = 2**22  # so many that starting kernels matters little; twice as many are orthogonalised
MIN_LARGE_SIZE: Final = 256  # smaller side of a matrix from which on bfloat16 and Gram matrices save time

_TINY: Final = 1e-24
_NO_GRADIENT: Final = 1e-15  # norm of a gradient whose squares underflow: nothing is known of its angle


class NormalizedRule(TensorwiseRule):
    """The rule above.

    Args:
        feedback: False for the scalars alone.
        embedding_offset: whether theta has the three numbers for networks with embeddings.
        memory: whether a second layer sets how long momentum lasts and how fast agreement acts.
        basis: whether matrices are seen in the eigenvectors of their gradients' covariance, see `basis`.
        reference: put new tensors into the lists instead of changing them in place, which autograd can follow.
    """

    name = "normalized"
    uses_horizon = True
    large_state = ("momentum", "square", COVARIANCE, BASIS)

    def __init__(
        self,
        *,
        feedback: bool = True,
        embedding_offset: bool = False,
        memory: bool = False,
        basis: bool = False,
        reference: bool = False,
    ) -> None:
        if (embedding_offset or memory) and not feedback:
            raise ValueError("embedding_offset and memory need the layer that feedback=False leaves out")
        self.feedback = feedback
        self.embedding_offset = embedding_offset
        self.memory = memory
        self.basis = basis
        self.reference = reference

    @classmethod
    def from_config(
        cls,
        *,
        network: bool = True,
        tokens: bool = False,
        memory: bool = False,
        basis: bool = False,
        reference: bool = False,
    ) -> NormalizedRule:
        """The rule of a file of meta-parameters, whose hash covers these names of `feedback` and `embedding_offset`."""
        return cls(feedback=network, embedding_offset=tokens, memory=memory, basis=basis, reference=reference)

    @property
    def config(self) -> dict[str, RuleOption]:
        options: dict[str, RuleOption] = {"network": self.feedback}
        named = {"tokens": self.embedding_offset, "memory": self.memory, "basis": self.basis}
        return options | {name: True for name, is_on in named.items() if is_on}

    @property
    def num_theta(self) -> int:
        optional = NUM_FEEDBACK * self.feedback + NUM_OFFSETS * self.embedding_offset + NUM_MEMORY * self.memory
        return len(SCALARS) + optional

    @torch_defaults()
    def init_theta(self, rng: torch.Generator) -> Tensor:
        """Scalars at their starts, a layer whose outputs are zero, the second layer as `memory_start` gives it."""
        theta = torch.zeros(self.num_theta)
        if self.memory:
            theta[-NUM_MEMORY:] = memory_start()
        return theta

    def init_state(self, specs: Sequence[TensorSpec], params: Sequence[Tensor]) -> RuleState:
        state: RuleState = {
            kind: [torch.zeros_like(p, dtype=torch.float32) for p in params] for kind in ("momentum", "square")
        }
        count = NUM_STATISTICS + NUM_MEMORY_OUTPUTS * self.memory
        state["statistics"] = [p.new_zeros(p.shape[0], count, dtype=torch.float32) for p in params]
        if self.basis:
            state |= init_bases(specs, params)
        return state

    def updates_shards(self, spec: TensorSpec) -> bool:
        return spec.role not in MATRIX_ROLES and not self.reference

    def update_tensors(
        self, theta: Tensor, tensors: Sequence[TensorUpdate], *, inner_step: StepCount, num_steps: StepCount | None
    ) -> None:
        """See `TensorwiseRule`; without `num_steps` the step falls with the horizon that `horizon_of` supposes."""
        scalars, layer = decode(
            theta, feedback=self.feedback, embedding_offset=self.embedding_offset, memory=self.memory
        )
        per_chunk, per_batch = (sys.maxsize, 1) if self.reference else numel_at_once(theta.device)
        parts = [(batch, list(chunks(batch, per_chunk))) for batch in batches(tensors, per_batch)]
        tensors = [tensor for batch, _ in parts for tensor in batch]
        for batch, _ in parts:
            if has_basis(batch[0]):
                update_basis(whole_chunk(batch), inner_step, in_place=not self.reference)
        total = tensors[0].total or (lambda sums: sums)
        sums = [sum_of([self._accumulate(scalars, chunk) for chunk in slices]) for _, some in parts for slices in some]
        statistics, controls = control(
            scalars,
            layer,
            specs=[tensor.spec for tensor in tensors],
            statistics=Statistics(*torch.stack([tensor.state["statistics"] for tensor in tensors], dim=1).unbind(2)),
            signals=signals_of(total(torch.cat(sums, dim=1)), [tensor.numel for tensor in tensors]),
            horizon=horizon_of(inner_step, num_steps, like=tensors[0].param),
        )
        self._remember(tensors, torch.stack([column for column in statistics if column is not None], dim=2))
        counts = [len(batch) for batch, _ in parts]
        columns = zip(controls.size.split(counts, dim=1), controls.nesterov.split(counts, dim=1), strict=True)
        own = [controls._replace(size=size, nesterov=nesterov) for size, nesterov in columns]
        squares = [
            direction_squares(some, part.nesterov) if is_found_twice(batch[0], some[0][0]) else None
            for (batch, some), part in zip(parts, own, strict=True)
        ]
        if tensors[0].total is not None:
            squares = [*total(torch.cat([x for x in squares if x is not None], dim=1)).split(counts, dim=1)]
        for (batch, some), part, known in zip(parts, own, squares, strict=True):
            self._apply(scalars, part, batch, [chunk for slices in some for chunk in slices], known)

    def _accumulate(self, scalars: Scalars, chunk: Chunk) -> Tensor:
        """Update momentum and second moment; what is seen of the gradient, summed: (N, K, 6), see `signals_of`."""
        grad, momentum, square = gradient_of(chunk), chunk.state("momentum"), chunk.state("square")
        normalised = momentum * (square + _TINY).rsqrt_()
        norm, dot = square_sum(normalised), _flat(normalised * grad).sum(2)
        forgotten = 1 - scalars["momentum_decay"]
        if self.memory:
            log_memory = torch.stack([tensor.state["statistics"][:, NUM_STATISTICS] for tensor in chunk.tensors], dim=1)
            forgotten = (forgotten * (-log_memory).exp()).clamp(max=1.0)
        momentum = self._lerp(chunk, "momentum", momentum, grad, forgotten)
        square = self._lerp(chunk, "square", square, grad.square(), 1 - scalars["square_decay"])
        param = chunk.read(lambda tensor: tensor.param)
        squares = (square_sum(grad), dot, norm, square_sum(momentum), _flat(square).sum(2), square_sum(param))
        return torch.stack(squares, dim=2)

    def _lerp(self, chunk: Chunk, kind: str, old: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        weight = per_row(weight if chunk.active is None else weight * chunk.active, old)
        new = old.lerp(value, weight) if self.reference else old.lerp_(value, weight)
        chunk.write_state(kind, new, in_place=not self.reference)
        return new

    def _remember(self, tensors: Sequence[TensorUpdate], statistics: Tensor) -> None:
        """Store statistics (N, R, 7) of active networks."""
        kept = [tensor.state["statistics"] for tensor in tensors]
        if any(tensor.active is not None for tensor in tensors):
            everywhere = torch.ones_like(statistics[:, 0, 0], dtype=torch.bool)
            active = [everywhere if tensor.active is None else tensor.active for tensor in tensors]
            statistics = torch.where(torch.stack(active, dim=1)[..., None], statistics, torch.stack(kept, dim=1))
        if not self.reference:
            torch._foreach_copy_(kept, unstacked(statistics))
            return
        for tensor, row in zip(tensors, statistics.unbind(1), strict=True):
            tensor.state["statistics"] = row

    def _apply(
        self,
        scalars: Scalars,
        controls: Controls,
        batch: Sequence[TensorUpdate],
        parts: Sequence[Chunk],
        squares: Tensor | None,
    ) -> None:
        """Change the parameters of a batch.

        Args:
            scalars: of the rule.
            controls: of what it has per tensor, the columns of this batch.
            batch: K tensors.
            parts: the chunks of it.
            squares: (N, K) square sums of directions that are found again, chunk by chunk; None to find them here.
        """
        spec, lr, asked = batch[0].spec, batch[0].lr, batch[0].weight_decay
        is_matrix = spec.role in MATRIX_ROLES
        is_found = squares is None
        if squares is None:
            update = self._directions(batch, parts, controls.nesterov)  # (N, K, *shape)
            if is_matrix:
                update = orthogonal_mix(update, scalars[f"mix_{spec.role}"], exact=self.reference)
            if has_basis(batch[0]):
                update = turned_back(whole_chunk(batch), update)
            squares = square_sum(update)
        size = lr * controls.size * (squares / batch[0].numel + _TINY).rsqrt()
        decay = (controls.learned_decay if is_matrix else 0.0) if asked is None else asked
        kept = (1 - lr * controls.decay_unit * decay).expand(-1, len(batch))
        if batch[0].active is not None:
            active = torch.stack([tensor.active for tensor in batch if tensor.active is not None], dim=1)
            size, kept = size.masked_fill(~active, 0.0), kept.masked_fill(~active, 1.0)
        if self.reference:
            whole = batch[0].param.unsqueeze(1) * per_row(kept, update) - update * per_row(size, update)
            batch[0].param = whole.squeeze(1)
        elif is_found:
            step_([tensor.param for tensor in batch], update, size, kept if is_matrix or asked else None)
        else:
            for chunk in parts:
                update = direction_of(chunk, controls.nesterov[:, chunk.place])
                shrink = kept[:, chunk.place] if asked else None
                step_(chunk.params(), update, size[:, chunk.place], shrink)

    def _directions(self, batch: Sequence[TensorUpdate], parts: Sequence[Chunk], nesterov: Tensor) -> Tensor:
        """(N, K, *shape): the momentum with some of the newest gradient, over the root of the second moment."""
        if len(parts) == 1:
            return direction_of(parts[0], nesterov)
        first = batch[0].param
        directions = first.new_empty(first.shape[0], len(batch), *first.shape[1:])
        for chunk in parts:
            direction_of(chunk, nesterov[:, chunk.place], out=chunk.part_of(directions))
        return directions


def direction_of(chunk: Chunk, nesterov: Tensor, out: Tensor | None = None) -> Tensor:
    """Direction (N, K, *shape) of a chunk, not normalised."""
    momentum, square, grad = chunk.state("momentum"), chunk.state("square"), gradient_of(chunk)
    return torch.lerp(momentum, grad, per_row(nesterov, grad), out=out).mul_((square + _TINY).rsqrt_())


def is_found_twice(tensor: TensorUpdate, chunk: Chunk) -> bool:
    """Whether directions are found once to sum their squares and once more to be applied: where they have slices, and
    no room to be kept, or are shards, whose sums wait for those of others."""
    return tensor.spec.role not in MATRIX_ROLES and (chunk.rows is not None or tensor.total is not None)


def direction_squares(parts: Sequence[Sequence[Chunk]], nesterov: Tensor) -> Tensor:
    """Square sums (N, K) of the directions of a batch."""
    squares = [[square_sum(direction_of(chunk, nesterov[:, chunk.place])) for chunk in slices] for slices in parts]
    return torch.cat([sum_of(of_slices) for of_slices in squares], dim=1)


def step_(params: list[Tensor], update: Tensor, size: Tensor, kept: Tensor | None) -> None:
    """params <- kept * params - size * update, for K tensors, `update` (N, K, *shape) and numbers (N, K)."""
    if kept is not None:
        torch._foreach_mul_(params, unstacked(per_row(kept, update)))
    torch._foreach_sub_(params, unstacked(update.mul_(per_row(size, update))))


def numel_at_once(device: torch.device) -> tuple[int, int]:
    """Numbers in a chunk and in a batch."""
    if device.type == "cpu":
        return CPU_CHUNK_NUMEL, CPU_CHUNK_NUMEL
    return DEVICE_CHUNK_NUMEL, 2 * DEVICE_CHUNK_NUMEL


def sum_of(sums: Sequence[Tensor]) -> Tensor:
    """Sum over the slices of one tensor."""
    return sums[0] if len(sums) == 1 else torch.stack(list(sums)).sum(0)


def signals_of(sums: Tensor, numels: Sequence[int]) -> Signals:
    """Signals from the sums (N, R, 6) over each tensor of g^2, g n, n^2, m^2, v, W^2; n is the normalised momentum."""
    numel = constant(tuple(map(float, numels)), sums.device)
    grad, dot, normalised, momentum, square, param = sums.unbind(2)
    agreement = dot / ((grad.sqrt() + _NO_GRADIENT) * normalised.sqrt() + _TINY)
    share = momentum / numel / (square / numel + 1e-30)
    return Signals(grad / numel, agreement, share, param / numel)


def horizon_of(inner_step: StepCount, num_steps: StepCount | None, like: Tensor) -> Horizon:
    """Where runs stand; past their end they stay at the last step size.

    A run without a horizon always stands at the same fraction of one that grows with it, so that its steps become
    shorter as those of longer runs are.
    """
    if num_steps is None:
        done = per_network(inner_step, like) + 1
        return Horizon(constant((OPEN_FRACTION,), like.device), (2 * done).clamp(min=MIN_OPEN_HORIZON))
    total = per_network(num_steps, like)
    return Horizon(torch.minimum(per_network(inner_step, like), total - 1) / total, total)


def square_sum(x: Tensor) -> Tensor:
    """(N, K, *shape) -> (N, K)."""
    return torch.linalg.vector_norm(_flat(x), dim=2, dtype=torch.float32).square()


def mean_square(x: Tensor) -> Tensor:
    """(N, K, *shape) -> (N, K)."""
    return square_sum(x) / x[0, 0].numel()


def orthogonal_mix(directions: Tensor, mix: Tensor, *, exact: bool = False) -> Tensor:
    """Directions mixed with their orthogonalised selves, not normalised.

    Args:
        directions: (N, K, *shape) of any size; overwritten unless `exact`.
        mix: (N, 1) share of the orthogonalised.
        exact: orthogonalise in float32, by the iteration as it is written above.
    """
    num_networks, num_tensors, fan_out = directions.shape[:3]
    matrices = directions.reshape(num_networks * num_tensors, fan_out, -1)
    is_large = not exact and min(matrices.shape[1:]) >= MIN_LARGE_SIZE
    dtype = torch.bfloat16 if is_large and is_fast_in_bfloat16(matrices.device) else None
    orthogonal = orthogonalize(matrices, dtype, by_gram=is_large).view_as(directions)
    own = per_row((1 - mix) * (mean_square(directions) + _TINY).rsqrt(), directions)
    other = per_row(mix * (mean_square(orthogonal) + _TINY).rsqrt(), directions)
    return torch.addcmul(directions * own if exact else directions.mul_(own), orthogonal, other)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:2], -1)
