"""The per-tensor controller of the normalised rule: its meta-parameters, statistics and outputs.

It sees a handful of numbers for each tensor and returns how long the next step is and how much the newest gradient
counts in its direction. Nothing here has the size of a parameter.

Legend: N networks, R tensors, M meta-parameters, T horizon, L depth, f = t / T fraction of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor

from learned_opt.rules.rule import TensorSpec
from zoo.networks.roles import MATRIX_ROLES, PARAM_ROLES

REFERENCE_HORIZON: Final = 400  # scales of the tasks for which theta = 0 is meant
REFERENCE_WIDTH: Final = 32
REFERENCE_DEPTH: Final = 2
WIDTH_POWER: Final = 0.5  # of 32 / width in the step of matrices: not learned, as narrow networks do not determine it
SHORTEST_HORIZON: Final = 16  # below it powers of T, learned on longer runs, make steps that throw small networks off

FAST_WEIGHT: Final = 0.1
SLOW_AGREEMENT_WEIGHT: Final = 0.02
LOG_STEP_RANGE: Final = (-4.0, 3.0)
LOG_SIZE_RANGE: Final = (-5.0, 4.0)
NESTEROV_RANGE: Final = (-4.0, 4.0)
INPUT_LIMIT: Final = 3.0
CHANGE_LIMIT: Final = 0.3  # of a matrix by one update, to its RMS or, if that is more, that of a usual start
GROWTH_LIMIT: Final = 2.5  # of a matrix, to a usual start: that of He et al. has 2.45
GROWTH_POWER: Final = 6.0  # by which steps fall where weights beyond this limit and their gradients both grow
DISAGREEMENT: Final = 0.06  # at which growth is no matter, as it is for `log_step` to shorten steps
INITIAL_STEPS: Final = 5  # after which the initial gradient scale is fixed

MEMORY_RANGE: Final = (0.0, 2.5)  # of the logarithm of how much longer than its scalar says the momentum lasts
REACTION_RANGE: Final = (-6.0, 0.0)  # the same for the rate of the agreement

NUM_STATISTICS: Final = 7  # columns of the statistics, see `Statistics`, without the last two
NUM_INPUTS: Final = 9 + len(PARAM_ROLES)
GRADIENT_INPUTS: Final = slice(3, 9)  # those of the inputs that depend on gradients
NUM_OUTPUTS: Final = 3
USUAL_AGREEMENT: Final = 5  # place of that input, six times the cosine
NUM_MEMORY_OUTPUTS: Final = 2  # of the second layer
MEMORY_START_WEIGHTS: Final = (-1.0, 4.0)
MEMORY_START_BIASES: Final = (0.0, 1.2)

_TINY: Final = 1e-24


@dataclass(frozen=True)
class Scalar:
    """A named meta-parameter and the map from theta, which gives `start` at 0.

    Kinds: "shift" start + z; "scale" start * exp(z); "decay" 1 - min(start * exp(z), limit) with start = 1 - value;
    "share" sigmoid(logit(start) + 3 z).
    """

    name: str
    kind: str
    start: float
    limit: float = math.inf

    def decode(self, z: Tensor) -> Tensor:
        """Value from theta."""
        if self.kind == "shift":
            return self.start + z
        if self.kind == "scale":
            return self.start * z.exp()
        if self.kind == "decay":
            return 1 - (self.start * z.exp()).clamp(max=self.limit)
        return torch.sigmoid(_logit(self.start) + 3 * z)

    def encode(self, value: float) -> float:
        """Theta from a value: inverse of `decode`."""
        if self.kind == "shift":
            return value - self.start
        if self.kind == "scale":
            return math.log(value / self.start)
        if self.kind == "decay":
            return math.log((1 - value) / self.start)
        return (_logit(value) - _logit(self.start)) / 3


def _logit(x: float) -> float:
    return math.log(x / (1 - x))


SCALARS: Final = (
    Scalar("rate", "scale", 0.009),
    Scalar("log_input", "shift", 0.5),  # log multipliers of the step by role
    Scalar("log_hidden", "shift", -0.3),
    Scalar("log_output", "shift", 0.4),
    Scalar("log_bias", "shift", -0.3),
    Scalar("log_norm", "shift", -0.3),
    Scalar("log_embedding", "shift", 0.5),
    Scalar("noise_power", "shift", 0.6),  # gamma
    Scalar("momentum_decay", "decay", 0.13, 0.7),  # b1
    Scalar("square_decay", "decay", 0.05, 0.5),  # b2
    Scalar("slow_decay", "decay", 0.005, 0.3),
    Scalar("nesterov", "scale", 0.12),
    Scalar("horizon_power", "shift", -0.3),  # a
    Scalar("depth_power", "shift", -0.6),  # b
    Scalar("agreement_rate", "scale", 0.04),  # kappa
    Scalar("agreement_target", "shift", 0.0),
    Scalar("relaxation", "scale", 12.0),  # r: log_step forgets over T / r updates
    Scalar("schedule_power", "scale", 1.0),  # p
    Scalar("mix_input", "share", 0.95),  # share of the orthogonalised direction
    Scalar("mix_hidden", "share", 0.95),
    Scalar("mix_output", "share", 0.8),
    Scalar("weight_decay", "scale", 0.1),  # of matrices, in units of rate x schedule
    Scalar("agreement_horizon", "shift", -0.5),  # powers of T / 400: a controller and a decay that act as much in a
    Scalar("decay_horizon", "shift", -0.5),  # long run as in a short one have -1, as much at every step 0
)
SCALAR_NAMES: Final = tuple(scalar.name for scalar in SCALARS)
NUM_FEEDBACK: Final = NUM_OUTPUTS * (NUM_INPUTS + 1)
NUM_OFFSETS: Final = NUM_OUTPUTS  # added to the outputs in networks with embeddings
NUM_MEMORY: Final = NUM_MEMORY_OUTPUTS * (NUM_INPUTS + 1)

Scalars = dict[str, Tensor]  # name -> (N, 1)


class LinearLayer(NamedTuple):
    """The controller's feedback from statistics to steps; a hidden layer of eight tanh units did no better."""

    weight: Tensor  # (N, 15, 3)
    bias: Tensor  # (N, 1, 3)
    embedding_offset: Tensor | None  # (N, 1, 3) added to the outputs in networks with embeddings
    memory_weight: Tensor | None = None  # (N, 15, 2) of the second layer, whose answers count from the next update on
    memory_bias: Tensor | None = None  # (N, 1, 2)


class Horizon(NamedTuple):
    """Where a run stands; (1,) or (N,)."""

    fraction: Tensor  # f, of the steps of the whole run
    num_steps: Tensor  # T


class Statistics(NamedTuple):
    """What the controller remembers of each tensor, (N, R) each."""

    age: Tensor  # updates so far
    recent_square: Tensor  # fast average of the mean squared gradient
    usual_square: Tensor  # slow average of it
    recent_agreement: Tensor
    usual_agreement: Tensor
    log_step: Tensor
    initial_square: Tensor  # recent_square after the first few updates
    log_memory: Tensor | None = None  # of the momentum's duration, to that of the scalar
    log_reaction: Tensor | None = None  # of the agreement's rate, to that of the scalar


class Signals(NamedTuple):
    """What the controller is told at each update, (N, R) each."""

    grad_square: Tensor  # mean squared gradient
    agreement: Tensor  # cosine of the gradient and the normalised momentum before it
    momentum_share: Tensor  # mean squared momentum / mean second moment
    weight_square: Tensor  # mean squared parameter


class Controls(NamedTuple):
    """What the controller answers, (N, R) each."""

    size: Tensor  # RMS of the update before the learning-rate multiplier, schedule included
    nesterov: Tensor  # weight of the newest gradient in the direction
    decay_unit: Tensor  # (N, 1) what a weight decay of 1 takes off: rate x schedule
    learned_decay: Tensor  # (N, 1) weight decay of matrices


def decode(
    theta: Tensor, *, feedback: bool, embedding_offset: bool = False, memory: bool = False
) -> tuple[Scalars, LinearLayer | None]:
    """Scalars and linear layers of meta-parameters (N, M)."""
    count = len(SCALARS)
    scalars = {scalar.name: scalar.decode(theta[:, i : i + 1]) for i, scalar in enumerate(SCALARS)}
    if not feedback:
        return scalars, None
    sizes = (NUM_INPUTS * NUM_OUTPUTS, NUM_OUTPUTS, NUM_OFFSETS * embedding_offset, NUM_MEMORY * memory)
    weight, bias, offset, second = theta[:, count:].split(sizes, dim=1)
    weight = weight.unflatten(1, (NUM_INPUTS, NUM_OUTPUTS))
    layer = LinearLayer(weight, bias.unsqueeze(1), offset.unsqueeze(1) if embedding_offset else None)
    if memory:
        second = second.unflatten(1, (NUM_INPUTS + 1, NUM_MEMORY_OUTPUTS))
        layer = layer._replace(memory_weight=second[:, :-1], memory_bias=second[:, -1:])
    return scalars, layer


def encode_scalars(values: Mapping[str, float]) -> Tensor:
    """Leading part of theta that gives these scalars; those not named stay at their start.

    Raises:
        ValueError: for a name that is no scalar of the rule.
    """
    theta = torch.zeros(len(SCALARS))
    for index, value in encoded_scalars(values).items():
        theta[index] = value
    return theta


def encoded_scalars(values: Mapping[str, float]) -> dict[int, float]:
    """Places in theta, and what they must hold to give these scalars.

    Raises:
        ValueError: for a name that is no scalar of the rule.
    """
    if unknown := set(values) - set(SCALAR_NAMES):
        raise ValueError(f"unknown scalars {sorted(unknown)}; there are {SCALAR_NAMES}")
    return {i: scalar.encode(values[scalar.name]) for i, scalar in enumerate(SCALARS) if scalar.name in values}


def gradient_weights() -> slice:
    """Where theta holds the layer's weights of the inputs that depend on gradients."""
    return slice(*(len(SCALARS) + NUM_OUTPUTS * i for i in (GRADIENT_INPUTS.start, GRADIENT_INPUTS.stop)))


def memory_start() -> Tensor:
    """What the second layer begins with: where gradients disagree with the momentum by far more than noise does, which
    is how they swing through a smooth valley, momentum lasts longer and agreement does not shorten steps."""
    layer = torch.zeros(NUM_INPUTS + 1, NUM_MEMORY_OUTPUTS)
    layer[USUAL_AGREEMENT] = torch.tensor(MEMORY_START_WEIGHTS)
    layer[-1] = torch.tensor(MEMORY_START_BIASES)
    return layer.flatten()


def embedding_offset() -> slice:
    """Where theta holds what is added to the layer's outputs in networks with embeddings."""
    start = len(SCALARS) + NUM_FEEDBACK
    return slice(start, start + NUM_OFFSETS)


def control(
    scalars: Scalars,
    layer: LinearLayer | None,
    *,
    specs: Sequence[TensorSpec],
    statistics: Statistics,
    signals: Signals,
    horizon: Horizon,
) -> tuple[Statistics, Controls]:
    """New statistics and the controls of the next update."""
    known = _static(tuple(specs), signals.grad_square.device)
    fraction = horizon.fraction[:, None]  # (1 or N, 1)
    num_steps = horizon.num_steps[:, None].clamp(min=SHORTEST_HORIZON)
    log_horizon = (num_steps / REFERENCE_HORIZON).log()
    base = _log_base(scalars, known, log_horizon)  # (N, R)
    statistics = _remember(scalars, statistics, signals, num_steps)
    rho = _half_log_ratio(statistics.recent_square, statistics.usual_square)
    log_step = statistics.log_step
    log_size = scalars["noise_power"] * rho + log_step
    nesterov = scalars["nesterov"].expand_as(rho)
    if layer is not None:
        inputs = _inputs(known, statistics, signals, rho=rho, base=base, fraction=fraction, log_horizon=log_horizon)
        output = torch.baddbmm(layer.bias, inputs, layer.weight)  # (N, R, 3)
        if layer.embedding_offset is not None:
            output = output + known.has_embedding * layer.embedding_offset
        log_size = log_size + output[..., 0]
        log_step = log_step + _relaxed_share(scalars, num_steps) * output[..., 1]
        nesterov = (nesterov * output[..., 2].clamp(*NESTEROV_RANGE).exp()).clamp(max=1.0)
        if layer.memory_weight is not None and layer.memory_bias is not None:
            memory, reaction = torch.baddbmm(layer.memory_bias, inputs, layer.memory_weight).unbind(2)
            statistics = statistics._replace(
                log_memory=memory.clamp(*MEMORY_RANGE), log_reaction=reaction.clamp(*REACTION_RANGE)
            )
    statistics = statistics._replace(log_step=log_step.clamp(*LOG_STEP_RANGE))
    schedule = (1 - fraction) ** scalars["schedule_power"]
    weight = signals.weight_square.sqrt()
    growth = _growth(statistics, weight / (GROWTH_LIMIT * known.usual_weight))
    size = schedule * (base + log_size.clamp(*LOG_SIZE_RANGE) - GROWTH_POWER * growth).exp()
    return statistics, Controls(
        size=torch.minimum(size, CHANGE_LIMIT * torch.maximum(weight, known.usual_weight)),
        nesterov=nesterov,
        decay_unit=scalars["rate"] * schedule,
        learned_decay=scalars["weight_decay"] * (scalars["decay_horizon"] * log_horizon).exp(),
    )


class _Static(NamedTuple):
    """What does not change during a run, (R,) each unless said."""

    role: Tensor  # index into PARAM_ROLES
    role_bits: Tensor  # (R, 6)
    log_width: Tensor  # log(width / 32) of matrices, else 0
    log_depth: Tensor  # log(L / 2)
    depth_input: Tensor  # log((L + 1) / 3)
    has_embedding: Tensor  # () whether the network looks up any
    usual_weight: Tensor  # RMS of matrices as torch begins them: 1 / sqrt(3 fan_in); else infinite


@lru_cache(maxsize=1024)  # what a recorded step reads must not be thrown away
def _static(specs: tuple[TensorSpec, ...], device: torch.device) -> _Static:
    role = torch.tensor([PARAM_ROLES.index(spec.role) for spec in specs])
    width = torch.tensor([max(1, spec.width) for spec in specs]).float()
    fan_in = torch.tensor([max(1, spec.fan_in) for spec in specs]).float()
    depth = torch.tensor([max(1, spec.depth) for spec in specs]).float()
    is_matrix = torch.tensor([spec.role in MATRIX_ROLES for spec in specs]).float()
    columns = _Static(
        role,
        torch.nn.functional.one_hot(role, len(PARAM_ROLES)).float(),
        is_matrix * (width / REFERENCE_WIDTH).log(),
        (depth / REFERENCE_DEPTH).log(),
        ((depth + 1) / (REFERENCE_DEPTH + 1)).log(),
        torch.tensor(any(spec.reads_tokens for spec in specs)).float(),
        torch.where(is_matrix > 0, (3 * fan_in).rsqrt(), math.inf),
    )
    return _Static(*(column.to(device, non_blocking=True) for column in columns))


def _log_base(scalars: Scalars, known: _Static, log_horizon: Tensor) -> Tensor:
    role_logs = torch.cat([scalars[f"log_{role}"] for role in PARAM_ROLES], dim=1)  # (N, 6)
    return (
        scalars["rate"].log()
        + scalars["horizon_power"] * log_horizon
        + scalars["depth_power"] * known.log_depth
        + role_logs[:, known.role]
        - WIDTH_POWER * known.log_width
    )


def _relaxed_share(scalars: Scalars, num_steps: Tensor) -> Tensor:
    """Share of log_step that an update forgets."""
    return (scalars["relaxation"] / num_steps).clamp(max=1.0)


def _growth(statistics: Statistics, weights: Tensor) -> Tensor:
    """How far weights and gradients have both grown without disagreement, a logarithm: the sign of steps so long that
    noise drives them, to which agreement is blind."""
    gradients = _half_log_ratio(statistics.recent_square, statistics.initial_square).clamp(min=0)
    return torch.minimum(weights.clamp(min=1).log(), gradients) * (1 + statistics.usual_agreement / DISAGREEMENT).clamp(
        0, 1
    )


def _remember(scalars: Scalars, statistics: Statistics, signals: Signals, num_steps: Tensor) -> Statistics:
    """Averages after an update; while a tensor is young they are plain means."""
    age = statistics.age
    young = 1 / (age + 1)
    is_first = age == 0
    agreement = signals.agreement.masked_fill(is_first, 0.0)
    recent_square = statistics.recent_square.lerp(signals.grad_square, young.clamp(min=FAST_WEIGHT))
    slow_weight = torch.maximum(1 - scalars["slow_decay"], young)
    kept = 1 - _relaxed_share(scalars, num_steps)
    rate = scalars["agreement_rate"] * (num_steps / REFERENCE_HORIZON) ** scalars["agreement_horizon"]
    if statistics.log_reaction is not None:
        rate = rate * statistics.log_reaction.exp()
    moved = rate * (agreement - scalars["agreement_target"])
    return Statistics(
        age=age + 1,
        recent_square=recent_square,
        usual_square=statistics.usual_square.lerp(signals.grad_square, slow_weight),
        recent_agreement=statistics.recent_agreement.lerp(agreement, young.clamp(min=FAST_WEIGHT)),
        usual_agreement=statistics.usual_agreement.lerp(agreement, young.clamp(min=SLOW_AGREEMENT_WEIGHT)),
        log_step=kept * statistics.log_step + moved.masked_fill(is_first, 0.0),
        initial_square=torch.where(age < INITIAL_STEPS, recent_square, statistics.initial_square),
        log_memory=statistics.log_memory,
        log_reaction=statistics.log_reaction,
    )


def _inputs(
    known: _Static,
    statistics: Statistics,
    signals: Signals,
    *,
    rho: Tensor,
    base: Tensor,
    fraction: Tensor,
    log_horizon: Tensor,
) -> Tensor:
    """Inputs of the layer (N, R, 15), each of order one; the width is none, so steps follow its power alone."""
    relative_step = 0.5 * (base + statistics.log_step - 0.5 * (signals.weight_square + 1e-8).log() + 2)
    columns = torch.broadcast_tensors(
        2 * fraction - 1,
        log_horizon,
        known.depth_input,
        rho,
        3 * statistics.recent_agreement,
        6 * statistics.usual_agreement,
        0.5 * (signals.momentum_share + 1e-6).log() + 1,
        0.5 * _half_log_ratio(statistics.recent_square, statistics.initial_square),
        relative_step,
    )
    inputs = torch.stack(columns, dim=2).clamp(-INPUT_LIMIT, INPUT_LIMIT)
    return torch.cat([inputs, known.role_bits.expand(*inputs.shape[:2], -1)], dim=2)


def _half_log_ratio(a: Tensor, b: Tensor) -> Tensor:
    return 0.5 * ((a + _TINY) / (b + _TINY)).log()
