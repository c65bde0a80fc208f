"""Inner training by a learned rule, advanced a few steps at a time: a batch of networks as one program.

Networks come in C copies of G groups, N = C x G, the copies outermost: network n belongs to group n mod G. A group
has one initialisation, one stream of data, one clock; its copies differ in theta alone. Antithetic particles are the
two copies of a group; a task that all particles share is one group with as many copies as there are particles.

Legend: N networks, C copies, G groups, P numbers of one network, K inner steps, M meta-parameters, B examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from learned_opt.meta_training.truncation import Clocks, LogUniformHorizon
from learned_opt.rules.rule import RuleState, TensorSpec, UpdateRule

DEFAULT_LOSS_CAP: Final = 20.0  # nats; an untrained classifier of ten classes has 2.3
_MAX_SEED: Final = 2**31


class InnerProblem(Protocol):
    """What is trained: networks of one shape, on one or more data sets of one shape."""

    name: str
    specs: tuple[TensorSpec, ...]
    batch_size: int
    num_datasets: int

    def init(self, seeds: Tensor) -> Tensor:
        """(G, P) initial networks; row i depends on seeds[i] alone."""

    def views(self, params: Tensor) -> list[Tensor]:
        """Views (N, *shape) of the trainable tensors in `specs`' order; writing to them changes `params`."""

    def pack(self, views: list[Tensor], params: Tensor) -> Tensor:
        """(N, P) of new trainable tensors, with the buffers of `params`."""

    def loss_and_grad(self, params: Tensor, datasets: Tensor, examples: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Training loss (N,) in nats on a minibatch, and its gradients (N, *shape).

        Args:
            params: (N, P); buffers in it are updated in place.
            datasets: (G,) index of each group's data set.
            examples: (G, B) in [0, 1), places in the training split.
        """

    def evaluate(self, params: Tensor, datasets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss in nats and error, (N,) each, on the validation split."""


@dataclass
class InnerState:
    """Half-trained networks: `params` (N, P), the rule's own state, clocks (G,) and data sets (G,)."""

    params: Tensor
    rule_state: RuleState
    clocks: Clocks
    datasets: Tensor

    def to_dict(self) -> dict[str, Tensor | RuleState]:
        """Plain tensors, for a checkpoint."""
        return {
            "params": self.params,
            "rule_state": self.rule_state,
            "inner_step": self.clocks.inner_step,
            "num_steps": self.clocks.num_steps,
            "datasets": self.datasets,
        }

    @classmethod
    def from_dict(cls, saved: dict) -> InnerState:
        clocks = Clocks(saved["inner_step"], saved["num_steps"])
        return cls(saved["params"], saved["rule_state"], clocks, saved["datasets"])


@dataclass(frozen=True)
class Truncation:
    """What K inner steps showed: capped `losses` (K, N) and whether each step came after a reset, `fresh` (K, G)."""

    losses: Tensor
    fresh: Tensor


class TruncatedStep:
    """Trains a batch of networks by a rule, resetting those that reach their horizon.

    Args:
        rule: the learned update rule.
        problem: what is trained.
        horizon: distribution of training lengths.
        num_groups: G, over all processes.
        num_copies: C, networks of each group.
        group_range: the groups that this process holds, default all. Every process draws the random numbers of all
            groups, so results do not depend on how they are split.
        loss_cap: larger (or not finite) losses count as this one.
    """

    def __init__(
        self,
        rule: UpdateRule,
        problem: InnerProblem,
        horizon: LogUniformHorizon,
        *,
        num_groups: int,
        num_copies: int = 2,
        group_range: range | None = None,
        loss_cap: float = DEFAULT_LOSS_CAP,
    ) -> None:
        held = range(num_groups) if group_range is None else group_range
        if not 0 <= held.start < held.stop <= num_groups or held.step != 1:
            raise ValueError(f"group_range must be a part of range({num_groups}), got {held}")
        self.rule = rule
        self.problem = problem
        self.horizon = horizon
        self.num_groups = num_groups
        self.num_copies = num_copies
        self.loss_cap = loss_cap
        self.held = slice(held.start, held.stop)

    def start(self, rng: torch.Generator, *, stagger: bool = False) -> InnerState:
        """Untrained networks; `stagger` shortens first trainings so that resets do not coincide."""
        seeds, num_steps, datasets = self._draw_groups(rng)
        params = self.problem.init(seeds[self.held]).repeat(self.num_copies, 1)
        clocks = Clocks.start(num_steps)
        if stagger:
            clocks.stagger(rng)
        rule_state = self.rule.init_state(self.problem.specs, self.problem.views(params))
        return InnerState(params, rule_state, clocks, datasets)

    def evaluate(self, state: InnerState) -> tuple[Tensor, Tensor]:
        """Capped loss and error, (N,) each, of the networks on the validation split."""
        loss, error = self.problem.evaluate(state.params, state.datasets)
        return cap_loss(loss, self.loss_cap), error

    def advance(self, theta: Tensor, state: InnerState, num_inner_steps: int, rng: torch.Generator) -> Truncation:
        """Do inner steps in place, resetting groups at the beginning of the step after their last.

        Args:
            theta: (M,) shared by all networks, or (N, M).
            state: changed in place.
            num_inner_steps: K.
            rng: of minibatches and resets; the same draws for all copies of a group.
        """
        places = torch.rand(num_inner_steps, self.num_groups, self.problem.batch_size, generator=rng)
        losses, fresh = [], []
        is_fresh = torch.zeros(self.num_groups, dtype=torch.bool)
        for k in range(num_inner_steps):
            is_fresh = is_fresh | self._reset_finished(state, rng)
            losses.append(self.step(theta, state, places[k]))
            fresh.append(is_fresh)
        return Truncation(torch.stack(losses), torch.stack(fresh)[:, self.held].to(state.params.device))

    def step(self, theta: Tensor, state: InnerState, examples: Tensor) -> Tensor:
        """One inner step in place; returns the capped losses (N,) before it. `examples` as in `InnerProblem`."""
        loss, grads = self.problem.loss_and_grad(state.params, state.datasets[self.held], examples[self.held])
        held_clocks = Clocks(state.clocks.inner_step[self.held], state.clocks.num_steps[self.held])
        inner_step, num_steps = held_clocks.for_rule(self.num_copies, state.params.device)
        tensors = self.problem.views(state.params)
        self.rule.update(
            theta,
            self.problem.specs,
            tensors,
            grads,
            state.rule_state,
            inner_step=inner_step,
            num_steps=num_steps,
        )
        if torch.is_grad_enabled():  # a differentiable rule has put new tensors into the list
            state.params = self.problem.pack(tensors, state.params)
        state.clocks.advance()
        return cap_loss(loss, self.loss_cap)

    def _reset_finished(self, state: InnerState, rng: torch.Generator) -> Tensor:
        """Restart finished groups; returns which, (G,) bool. Draws nothing if none is."""
        finished = state.clocks.finished()
        if not bool(finished.any()):
            return finished
        seeds, num_steps, datasets = self._draw_groups(rng)
        groups = finished.nonzero().flatten()
        state.clocks.restart(groups, num_steps[groups])
        state.datasets[groups] = datasets[groups]
        local = groups[(groups >= self.held.start) & (groups < self.held.stop)]
        if len(local):
            self._reset_rows(state, seeds[local], local - self.held.start)
        return finished

    def _reset_rows(self, state: InnerState, seeds: Tensor, groups: Tensor) -> None:
        held_groups = self.held.stop - self.held.start
        rows = (groups + held_groups * torch.arange(self.num_copies)[:, None]).flatten().to(state.params.device)
        fresh = self.problem.init(seeds).repeat(self.num_copies, 1)
        if torch.is_grad_enabled():  # autograd still needs the old values
            state.params, state.rule_state = state.params.clone(), map_state(state.rule_state, torch.Tensor.clone)
        state.params[rows] = fresh
        fresh_state = self.rule.init_state(self.problem.specs, self.problem.views(fresh))
        copy_rows(state.rule_state, fresh_state, rows)

    def _draw_groups(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        seeds = torch.randint(_MAX_SEED, (self.num_groups,), generator=rng)
        num_steps = self.horizon.sample(rng, self.num_groups)
        datasets = torch.randint(self.problem.num_datasets, (self.num_groups,), generator=rng)
        return seeds, num_steps, datasets


def cap_loss(loss: Tensor, cap: float) -> Tensor:
    """Losses with everything above the cap, and everything not finite, set to the cap."""
    return loss.nan_to_num(cap, cap, cap).clamp(max=cap)


def copy_rows(target: RuleState, source: RuleState, rows: Tensor) -> None:
    """Set the given rows (leading dim) of every tensor of a rule's state to those of a smaller state."""
    for name, tensors in target.items():
        for old, new in zip(tensors, source[name], strict=True):
            old[rows] = new


def map_state(state: RuleState, function: Callable[[Tensor], Tensor]) -> RuleState:
    """State of the same structure with a function applied to every tensor."""
    return {name: [function(tensor) for tensor in tensors] for name, tensors in state.items()}
