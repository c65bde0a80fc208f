"""Inner training by a learned rule, a few steps at a time: clocks and resets around the one inner step.

Networks come in C copies of G groups, N = C x G, the copies outermost: network n belongs to group n mod G. A group
has one initialisation, one stream of data, one clock; its copies differ in theta alone. Antithetic particles are the
two copies of a group; a task that all particles share is one group with as many copies as there are particles.

Legend: N networks, C copies, G groups, P numbers of one network, K inner steps, M meta-parameters, B examples,
T horizon in inner steps.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from learned_opt.meta_training.objective import cap_loss
from learned_opt.meta_training.task_family import TaskFamily
from learned_opt.rules.population import PopulationOptimizer
from learned_opt.rules.rule import UpdateRule
from zoo.devices import widest_float
from zoo.tasks.task import Batch
from zoo.training.inner_step import InnerStep
from zoo.training.optimizers import State
from zoo.training.recorded_steps import MAX_ROWS, RecordedSteps, Row
from zoo.training.schedules import StepCount

_MAX_SEED: Final = 2**31


@dataclass(frozen=True)
class LogUniformHorizon:
    """Horizons whose logarithm is uniform between those of `low` and `high` (both included).

    Long trainings are rare but no length is left out, so a rule learns what to do at every scale of time.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(f"horizons must satisfy 1 <= low <= high, got low {self.low}, high {self.high}")

    def sample(self, rng: torch.Generator, count: int) -> Tensor:
        """(count,) int64 horizons."""
        low, high = math.log(self.low), math.log(self.high)
        uniform = torch.rand(count, generator=rng, dtype=torch.float64)
        return (low + (high - low) * uniform).exp().round().long()


@dataclass(eq=False)
class InnerState:
    """Half-trained networks.

    Args:
        params: (N, P).
        optimizer: state of the rule, see `PopulationOptimizer`.
        inner_step: (G,) int64 updates so far. On the CPU, as all that follows: Python asks it when to reset.
        num_steps: (G,) int64 horizons.
        members: (G,) index of each group's task in the family.
    """

    params: Tensor
    optimizer: State
    inner_step: Tensor
    num_steps: Tensor
    members: Tensor

    def to(self, device: torch.device | str) -> InnerState:
        """The networks on another device."""
        optimizer = {name: tensor.to(device) for name, tensor in self.optimizer.items()}
        return replace(self, params=self.params.to(device), optimizer=optimizer)


@dataclass(frozen=True)
class Truncation:
    """What K inner steps showed: capped `losses` (K, N) and whether each step came after a reset, `fresh` (K, G)."""

    losses: Tensor
    fresh: Tensor


class _Unroll:
    """The inner steps of some networks, with all that they read in tensors that stay where they are.

    Attributes:
        theta: (M,) or (N, M), to be set before.
        losses: (K, N) capped, as far as steps have been done.

    Args:
        step: of which group of tasks.
        theta: such a one.
        state: of the networks.
        num_inner_steps: K.
    """

    def __init__(self, step: TruncatedStep, theta: Tensor, state: InnerState, num_inner_steps: int) -> None:
        self.theta = torch.empty_like(theta)
        self.losses = state.params.new_empty(num_inner_steps, len(state.params))
        self._family, self._params, self._optimizer = step.family, state.params, state.optimizer
        self._inner_step = InnerStep(step.family, PopulationOptimizer(step.rule, self.theta))
        self._clocks = state.params.new_empty(2, len(state.params), dtype=widest_float(state.params.device))
        self._members = torch.empty_like(state.members[step.held], device=state.params.device)
        self._steps = RecordedSteps(state.params.device)

    def is_of(self, theta: Tensor, state: InnerState, num_inner_steps: int) -> bool:
        """Whether these are the steps of that state."""
        same_memory = self._params is state.params and self._optimizer is state.optimizer
        return same_memory and theta.shape == self.theta.shape and num_inner_steps == len(self.losses)

    def run(self, clocks: Tensor, members: Tensor, places: Tensor, *, first: int) -> None:
        """Do some steps.

        Args:
            clocks: (2, N) steps so far and horizons.
            members: (G,) tasks.
            places: (number of steps, G, B) of minibatches.
            first: row of `losses` from which on the losses go there.
        """
        self._clocks.copy_(clocks, non_blocking=True)
        self._members.copy_(members, non_blocking=True)
        rows = torch.arange(first, first + len(places), device=places.device)[:, None]
        self._steps.run(self._take, {"places": places, "row": rows})

    def _take(self, row: Row) -> None:
        batch = self._family.batch(self._members, row["places"], len(self._params))
        inner_step, num_steps = self._clocks
        loss = self._inner_step(self._params, self._optimizer, batch, inner_step=inner_step, num_steps=num_steps)
        self.losses.index_copy_(0, row["row"], cap_loss(loss)[None])
        inner_step.add_(1)


@dataclass(frozen=True, eq=False)
class TruncatedStep:
    """Trains a batch of networks by a rule, resetting those that reach their horizon.

    Args:
        rule: the learned update rule.
        family: what is trained on.
        horizon: distribution of training lengths.
        num_groups: G, over all processes.
        num_copies: C, networks of each group.
        group_range: the groups that this process holds, default all. Every process draws the random numbers of all
            groups, so results do not depend on how they are split.
    """

    rule: UpdateRule
    family: TaskFamily
    horizon: LogUniformHorizon
    _: KW_ONLY
    num_groups: int
    num_copies: int = 2
    group_range: range | None = None
    _unrolls: WeakKeyDictionary[InnerState, _Unroll] = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def __post_init__(self) -> None:
        held = self.group_range or range(self.num_groups)
        if not 0 <= held.start < held.stop <= self.num_groups or held.step != 1:
            raise ValueError(f"group_range must be a part of range({self.num_groups}), got {held}")

    @property
    def held(self) -> slice:
        """The groups that this process holds."""
        held = self.group_range or range(self.num_groups)
        return slice(held.start, held.stop)

    def start(self, rng: torch.Generator, *, stagger: bool = False) -> InnerState:
        """Untrained networks.

        Args:
            rng: of initialisations, horizons and tasks.
            stagger: shorten each first training by a random share: later resets then do not coincide, and an estimate
                does not see one phase of training at a time.
        """
        seeds, num_steps, members = self._draw_groups(rng)
        params = self.family.init(seeds[self.held]).repeat(self.num_copies, 1)
        if stagger:
            share = torch.rand(self.num_groups, generator=rng, dtype=torch.float64)
            num_steps = (num_steps * share).ceil().long().clamp(min=1)
        return InnerState(params, self._optimizer_state(params), torch.zeros_like(num_steps), num_steps, members)

    def evaluate(self, state: InnerState) -> tuple[Tensor, Tensor]:
        """Capped loss and error, (N,) each, of the networks on the validation split."""
        loss, error = self.family.evaluate(state.params, state.members[self.held])
        return cap_loss(loss), error

    def advance(self, theta: Tensor, state: InnerState, num_inner_steps: int, rng: torch.Generator) -> Truncation:
        """Do inner steps in place, resetting groups at the beginning of the step after their last.

        Nothing waits for the device: clocks are on the CPU, losses stay where the networks are. Without derivatives the
        steps between two resets are recorded where that is possible.

        Args:
            theta: (M,) shared by all networks, or (N, M). If it requires gradients, the losses can be differentiated.
            state: changed in place.
            num_inner_steps: K.
            rng: of minibatches and resets; the same draws for all copies of a group.
        """
        device = state.params.device
        theta = theta.to(device, non_blocking=True)
        places = torch.rand(num_inner_steps, self.num_groups, self.family.batch_size, generator=rng)
        places = places[:, self.held].to(device, non_blocking=True)
        differentiable = torch.is_grad_enabled() and theta.requires_grad
        unroll = None if differentiable else self._unroll(theta, state, num_inner_steps)
        losses: list[Tensor] = []
        fresh = torch.zeros(num_inner_steps, self.num_groups, dtype=torch.bool)
        done = 0
        while done < num_inner_steps:
            fresh[done:] |= self._reset_finished(state, rng)
            if unroll is None:
                stop = done + 1
                losses.append(self._differentiable_step(theta, state, places[done]))
            else:
                until_reset = int((state.num_steps - state.inner_step).min())
                stop = min(num_inner_steps, done + MAX_ROWS, done + until_reset)
                unroll.run(self._clocks(state), state.members[self.held], places[done:stop], first=done)
            state.inner_step += stop - done
            done = stop
        capped = torch.stack(losses) if unroll is None else unroll.losses.clone()
        return Truncation(capped, fresh[:, self.held].to(device, non_blocking=True))

    def _unroll(self, theta: Tensor, state: InnerState, num_inner_steps: int) -> _Unroll:
        """What does the steps of these networks, made once for as long as they stay where they are."""
        unroll = self._unrolls.get(state)
        if unroll is None or not unroll.is_of(theta, state, num_inner_steps):
            unroll = _Unroll(self, theta, state, num_inner_steps)
            self._unrolls[state] = unroll
        unroll.theta.copy_(theta)
        return unroll

    def _differentiable_step(self, theta: Tensor, state: InnerState, places: Tensor) -> Tensor:
        step = DifferentiableStep(self.family, PopulationOptimizer(self.rule, theta))
        batch = self.family.batch(state.members[self.held], places, len(state.params))
        inner_step, num_steps = self._clocks(state)
        return cap_loss(step(state.params, state.optimizer, batch, inner_step=inner_step, num_steps=num_steps))

    def _clocks(self, state: InnerState) -> Tensor:
        """(2, N) steps so far and horizons of the networks held, on the CPU."""
        return torch.stack([state.inner_step, state.num_steps])[:, self.held].double().repeat(1, self.num_copies)

    def _reset_finished(self, state: InnerState, rng: torch.Generator) -> Tensor:
        """Restart finished groups; returns which, (G,) bool. Draws nothing if none is."""
        finished = state.inner_step >= state.num_steps
        if not bool(finished.any()):
            return finished
        seeds, num_steps, members = self._draw_groups(rng)
        state.inner_step[finished] = 0
        state.num_steps[finished], state.members[finished] = num_steps[finished], members[finished]
        local = finished[self.held]
        if local.any():
            rows = local.repeat(self.num_copies).nonzero().flatten().to(state.params.device)
            fresh = self.family.init(seeds[self.held][local]).repeat(self.num_copies, 1)
            state.params[rows] = fresh
            for name, tensor in self._optimizer_state(fresh).items():
                if torch.is_grad_enabled():  # autograd still needs the old values
                    state.optimizer[name] = state.optimizer[name].clone()
                state.optimizer[name][rows] = tensor
        return finished

    def _optimizer_state(self, params: Tensor) -> State:
        return PopulationOptimizer(self.rule, torch.empty(0)).init_state(self.family.layout, params)

    def _draw_groups(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        seeds = torch.randint(_MAX_SEED, (self.num_groups,), generator=rng)
        num_steps = self.horizon.sample(rng, self.num_groups)
        members = torch.randint(len(self.family.tasks), (self.num_groups,), generator=rng)
        return seeds, num_steps, members


@dataclass(frozen=True)
class DifferentiableStep:
    """`InnerStep` with a graph from theta to the next parameters, Hessians included.

    The rule must put new tensors into the lists that it is given, as `MlpRule(reference=True)`.
    """

    family: TaskFamily
    optimizer: PopulationOptimizer

    def __call__(
        self, params: Tensor, state: State, batch: Batch, *, inner_step: StepCount, num_steps: StepCount
    ) -> Tensor:
        """Losses (N,) before the step; arguments as of `InnerStep`."""
        before = params.clone()
        if not before.requires_grad:
            before.requires_grad_()
        loss = self.family.loss(before, batch)
        (grads,) = torch.autograd.grad(loss.sum(), before, create_graph=True)
        layout = self.family.layout
        grads = grads[:, : layout.num_trainable]
        clock = {"inner_step": inner_step, "num_steps": num_steps}
        self.optimizer.update(layout, params, grads, state, **clock, loss=loss)
        return loss
