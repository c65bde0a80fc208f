"""Gradients of the meta-loss with respect to theta, by perturbing it or by backpropagation through training.

The mathematics is in pure functions at the end; the classes draw perturbations, train networks and hold state. Every
random number comes from the generator passed in, and all processes draw all of them, so that an estimate depends
neither on what came before (beyond the state) nor on the number of processes.

Legend: M meta-parameters, Q antithetic pairs, N networks, K inner steps of a truncation, T inner steps of a training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import ClassVar, Final, Protocol

import torch
from torch import Tensor

from learned_opt.meta_training.devices import Devices
from learned_opt.meta_training.objective import Objective
from learned_opt.meta_training.task_family import TaskFamily
from learned_opt.meta_training.truncated_step import InnerState, LogUniformHorizon, TruncatedStep
from learned_opt.rules.rule import UpdateRule

_SHAPING_FLOOR: Final = 0.02  # added to the spread of differences, so that equal particles give no large gradient


@dataclass(frozen=True)
class MetaGradient:
    """An estimate: gradient (M,), meta-loss averaged over particles, network steps spent over all processes."""

    grad: Tensor
    meta_loss: float
    num_inner_steps: int


class GradientEstimator(Protocol):
    """Anything that gives a gradient for theta; `state_dict` holds what an exact resume needs, on the CPU."""

    def estimate(self, theta: Tensor, rng: torch.Generator) -> MetaGradient: ...

    def to(self, device: torch.device) -> None:
        """Train networks there from now on."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...


@dataclass(eq=False)
class FullUnrollES:
    """Antithetic evolution strategies over whole trainings: no truncation bias, any meta-objective.

    One task and one seed an outer step, shared by all particles, so that their differences are due to theta.

    Args:
        rule: the learned update rule.
        sample_task: draws a family of one task, and the horizon.
        objective: meta-loss (N,) of capped losses (T, N) and a function that evaluates the final networks.
        num_pairs: Q.
        std: standard deviation of the perturbation, a number or (M,); zero freezes a meta-parameter.
        normalise: clamp differences to +-1 and divide them by their spread, so that all tasks count equally.
    """

    rule: UpdateRule
    sample_task: Callable[[torch.Generator], tuple[TaskFamily, int]]
    objective: Objective
    _: KW_ONLY
    num_pairs: int
    std: float | Tensor
    normalise: bool = True
    devices: Devices = field(default_factory=Devices)
    device: torch.device | None = field(default=None, init=False)  # None: where a task's data is

    def to(self, device: torch.device) -> None:
        self.device = device

    @torch.no_grad()
    def estimate(self, theta: Tensor, rng: torch.Generator) -> MetaGradient:
        family, num_steps = self.sample_task(rng)
        if self.device is not None:
            family, theta = family.to(self.device), theta.to(self.device)
        std = _as_vector(self.std, theta)
        perturbations = draw_perturbations(rng, self.num_pairs, std)  # (Q, M)
        held = perturbations[self.devices.share(self.num_pairs)]
        particles = antithetic(theta, held)  # (2 Q, M), of one group: all networks have the same seed and data
        step = TruncatedStep(
            self.rule, family, LogUniformHorizon(num_steps, num_steps), num_groups=1, num_copies=len(particles)
        )
        meta_loss = whole_unroll(step, particles, num_steps, self.objective, rng)
        pos, neg = self.devices.gather(meta_loss.view(2, -1).T).T  # (Q,) each
        difference = pos - neg
        if self.normalise:
            difference = normalised_differences(difference)
        grad = es_gradient(difference, perturbations, std)
        return MetaGradient(grad, float((pos + neg).mean() / 2), 2 * self.num_pairs * num_steps)

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        if state:
            raise ValueError(f"full unrolls keep no state, got {sorted(state)}; is it another estimator's checkpoint?")


@dataclass(eq=False)
class _Truncations:
    """Buckets of half-trained networks, one of which an outer step advances."""

    steps: Sequence[TruncatedStep]
    _: KW_ONLY
    truncation_length: int
    log_floor: float | None = None
    devices: Devices = field(default_factory=Devices)
    states: list[InnerState | None] = field(init=False)

    num_copies: ClassVar[int]

    def __post_init__(self) -> None:
        if not self.steps or any(step.num_copies != self.num_copies for step in self.steps):
            name = type(self).__name__
            raise ValueError(f"steps of {name} must be one or more TruncatedStep with num_copies={self.num_copies}")
        self.states = [None] * len(self.steps)

    def to(self, device: torch.device) -> None:
        self.steps = [replace(step, family=step.family.to(device)) for step in self.steps]
        self.states = [state and state.to(device) for state in self.states]

    def draw_bucket(self, rng: torch.Generator) -> tuple[int, TruncatedStep, InnerState]:
        """One of the buckets, its networks begun if they are not yet."""
        bucket = int(torch.randint(len(self.steps), (), generator=rng))
        state = self.states[bucket]
        if state is None:
            state = self.states[bucket] = self.steps[bucket].start(rng, stagger=True)
        return bucket, self.steps[bucket], state

    def estimated(self, grad: Tensor, meta_loss: Tensor, step: TruncatedStep) -> MetaGradient:
        """What the processes have found together."""
        num_inner_steps = step.num_copies * step.num_groups * self.truncation_length
        return MetaGradient(self.devices.mean(grad), float(self.devices.mean(meta_loss)), num_inner_steps)

    def state_dict(self) -> dict[str, object]:
        return {"states": [state and vars(state.to("cpu")) for state in self.states]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        saved = zip(self._one_each(state, "states"), self.steps, strict=True)
        self.states = [one and InnerState(**one).to(step.family.device) for one, step in saved]

    def _one_each(self, state: dict[str, object], key: str) -> list:
        saved = state.get(key)
        if not isinstance(saved, list) or len(saved) != len(self.steps):
            raise ValueError(f"checkpoint must hold {key} of {len(self.steps)} buckets; was the config changed?")
        return saved


@dataclass(eq=False, kw_only=True)
class TruncatedES(_Truncations):
    """Antithetic evolution strategies over truncations, the networks being trained on between them.

    Biased: what a perturbation does after its truncation is not seen. PES removes that bias.

    Args:
        steps: one per bucket of equal shapes, two copies each; an outer step uses one of them, chosen at random.
        truncation_length: K.
        std: standard deviation of the perturbation, a number or (M,).
        log_floor: nats; a step counts as log(loss + log_floor), so that tasks, and early and late steps, count equally.
            None for the loss itself.
    """

    std: float | Tensor
    accumulators: list[Tensor | None] = field(init=False)

    num_copies = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.accumulators = [None] * len(self.steps)

    @torch.no_grad()
    def estimate(self, theta: Tensor, rng: torch.Generator) -> MetaGradient:
        bucket, step, state = self.draw_bucket(rng)
        theta = theta.to(state.params.device)
        std = _as_vector(self.std, theta)
        perturbations = draw_perturbations(rng, step.num_groups, std)[step.held]
        truncation = step.advance(antithetic(theta, perturbations), state, self.truncation_length, rng)
        losses = step_meta_loss(truncation.losses, self.log_floor)
        pos, neg = losses.unflatten(1, (2, -1)).unbind(1)  # (K, Q) each
        grad = self._gradient(bucket, pos - neg, truncation.fresh, perturbations, std)
        return self.estimated(grad, (pos + neg).mean() / 2, step)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.accumulators = [None if a is None else a.to(device) for a in self.accumulators]

    def _gradient(self, bucket: int, differences: Tensor, fresh: Tensor, perturbations: Tensor, std: Tensor) -> Tensor:
        return es_gradient(differences.mean(0), perturbations, std)

    def state_dict(self) -> dict[str, object]:
        return super().state_dict() | {"accumulators": [None if a is None else a.cpu() for a in self.accumulators]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        super().load_state_dict(state)
        saved = zip(self._one_each(state, "accumulators"), self.steps, strict=True)
        self.accumulators = [None if one is None else one.to(step.family.device) for one, step in saved]


class PES(TruncatedES):
    """Persistent evolution strategies: truncated, yet unbiased for the loss over whole trainings.

    Each particle keeps the sum of the perturbations that it has met since its reset. Arguments as `TruncatedES`.

    Source: Vicol, Metz and Sohl-Dickstein 2021 (arXiv 2112.13835), algorithm 2, with antithetic pairs.
    """

    def _gradient(self, bucket: int, differences: Tensor, fresh: Tensor, perturbations: Tensor, std: Tensor) -> Tensor:
        accumulator = self.accumulators[bucket]
        if accumulator is None:
            accumulator = torch.zeros_like(perturbations)
        grad = pes_gradient(differences, fresh, perturbations, accumulator, std)
        self.accumulators[bucket] = next_accumulator(fresh, perturbations, accumulator)
        return grad


class TruncatedBackprop(_Truncations):
    """Backpropagation through K inner steps, Hessians included: low variance, biased, blows up when training does.

    The rule must be differentiable: it puts new tensors into the lists that it is given, as `MlpRule(reference=True)`.

    Args:
        steps: one per bucket of equal shapes, one copy each.
        truncation_length: K.
        log_floor: as `TruncatedES`.
    """

    num_copies = 1

    @torch.enable_grad()
    def estimate(self, theta: Tensor, rng: torch.Generator) -> MetaGradient:
        _, step, state = self.draw_bucket(rng)
        leaf = theta.detach().to(state.params.device, copy=True).requires_grad_()
        losses = step_meta_loss(step.advance(leaf, state, self.truncation_length, rng).losses, self.log_floor)
        (grad,) = torch.autograd.grad(losses.mean(), leaf)
        state.params = state.params.detach()
        state.optimizer = {name: tensor.detach() for name, tensor in state.optimizer.items()}
        return self.estimated(grad, losses.detach().mean(), step)


def whole_unroll(
    step: TruncatedStep, theta: Tensor, num_steps: int, objective: Objective, rng: torch.Generator
) -> Tensor:
    """Meta-losses (N,) of networks that theta, (M,) or (N, M), trains for `num_steps` steps from their beginning."""
    state = step.start(rng)
    losses = step.advance(theta, state, num_steps, rng).losses
    return objective(losses, lambda: step.evaluate(state))


def step_meta_loss(losses: Tensor, log_floor: float | None) -> Tensor:
    """What each step counts in the meta-loss: its loss in nats, or log(loss + log_floor)."""
    return losses if log_floor is None else (losses + log_floor).log()


def draw_perturbations(rng: torch.Generator, num_pairs: int, std: Tensor) -> Tensor:
    """(Q, M) normal numbers of standard deviation std (M,)."""
    return torch.randn(num_pairs, len(std), generator=rng).to(std) * std


def antithetic(theta: Tensor, perturbations: Tensor) -> Tensor:
    """(2 Q, M): theta plus, then minus each of the perturbations (Q, M)."""
    return torch.cat([theta + perturbations, theta - perturbations])


def es_gradient(differences: Tensor, perturbations: Tensor, std: Tensor) -> Tensor:
    """(M,) mean over pairs of (L+ - L-) perturbation / (2 std^2); zero where std is.

    Args:
        differences: (Q,) L+ - L-.
        perturbations: (Q, M), of standard deviation std (M,).
    Source: Vicol et al. 2021, section 2 (antithetic ES).
    """
    return (differences[:, None] * perturbations).mean(0) / (2 * std.square()).clamp(min=torch.finfo(std.dtype).tiny)


def pes_gradient(differences: Tensor, fresh: Tensor, perturbations: Tensor, accumulator: Tensor, std: Tensor) -> Tensor:
    """(M,) unbiased truncated gradient of the loss per step.

    Losses before a reset are due to all perturbations since the reset before; losses after it to the current one.

    Args:
        differences: (K, Q) L+ - L- of each inner step.
        fresh: (K, Q) bool, the step came after a reset inside this truncation.
        perturbations: (Q, M) of this truncation.
        accumulator: (Q, M) sum of the earlier perturbations since the reset.
        std: (M,).
    Source: Vicol et al. 2021, algorithm 2.
    """
    num_steps = len(differences)
    before = (differences * ~fresh).sum(0) / num_steps  # (Q,)
    after = (differences * fresh).sum(0) / num_steps
    return es_gradient(before, accumulator + perturbations, std) + es_gradient(after, perturbations, std)


def next_accumulator(fresh: Tensor, perturbations: Tensor, accumulator: Tensor) -> Tensor:
    """(Q, M) perturbations met since the reset, this truncation's included; arguments as `pes_gradient`."""
    was_reset = fresh[-1][:, None]
    return torch.where(was_reset, perturbations, accumulator + perturbations)


def normalised_differences(differences: Tensor) -> Tensor:
    """(Q,) differences clamped to +-1 and divided by their spread: a task's scale of loss drops out."""
    clamped = differences.clamp(-1, 1)
    return clamped / (clamped.std() + _SHAPING_FLOOR)


def _as_vector(std: float | Tensor, theta: Tensor) -> Tensor:
    vector = torch.as_tensor(std, dtype=theta.dtype, device=theta.device)
    return vector.expand_as(theta)
