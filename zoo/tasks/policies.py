"""Tasks of control: N policies act in an environment, and learn by the policy gradient.

An example is an episode: its initial state, and for each step the random number by which a policy draws its action. So
episodes have splits as other data have, a minibatch is some of them, and all that a policy does follows from its
parameters. Every step that an episode lasts earns a reward of 1.

Source: REINFORCE: Williams 1992, with the other episodes of the minibatch as baseline: Kool et al. 2019.

Legend: N networks, P numbers of one network, B episodes, H steps of the horizon, T <= H steps until all have ended,
K actions, D numbers of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.tasks.cartpole import CartPole
from zoo.tasks.classification import probabilities
from zoo.tasks.dataset import Dataset
from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.task import Batch, Task

_STEPS_BETWEEN_CHECKS: Final = 16  # for whether any episode is still running
_NUM_DESCRIBED: Final = 64  # states by which an environment is known


class Environment(Protocol):
    """What policies act in. States are what policies see."""

    @property
    def name(self) -> str: ...

    @property
    def num_actions(self) -> int: ...

    def advance(self, states: Tensor, actions: Tensor) -> Tensor:
        """States (..., D) after actions (...) from 0 to K - 1 in states (..., D)."""
        ...

    def has_failed(self, states: Tensor) -> Tensor:
        """Which episodes (...) have ended before the horizon, by their states (..., D)."""
        ...

    def sample_states(self, num_states: int, rng: torch.Generator) -> Tensor:
        """States (n, D) as learning policies meet them, to compare policies by what they do there."""
        ...


class Episodes(NamedTuple):
    """Episodes that N policies played.

    Attributes:
        lengths: (N, B) steps, which are the returns.
        states: (N, T, B, D) in which actions were taken; empty if they were not kept. After the end they are zero.
        actions: (N, T, B) taken there.
    """

    lengths: Tensor
    states: Tensor
    actions: Tensor


class PolicyTask(Task):
    """Policies, whose outputs are logits of K actions, in an environment.

    The loss is the share of the horizon by which episodes end too early, 1 - return / H, and its gradient the policy
    gradient: an unbiased estimate of the gradient of the expected loss if a minibatch has at least two episodes.

    Args:
        environment: to act in.
        dataset: of episodes: inputs (n, D) initial states, targets (n, H) random numbers in [0, 1).
        Others: as for Task.
    """

    metric_names = ("return", "error")
    max_train_evaluated = 128
    plays_episodes = True
    is_compilable = False  # how long episodes last depends on the policies

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        build: Callable[[], nn.Module],
        environment: Environment,
        *,
        parametrization: str = "sp",
        config: Mapping[str, object] | None = None,
    ) -> None:
        self.environment = environment
        objective = OBJECTIVES["policy_gradient"]
        super().__init__(name, dataset, build, objective, parametrization=parametrization, config=config)

    def loss(self, params: Tensor, batch: Batch) -> Tensor:
        """Losses (N,) from 0 to 1, through which the policy gradient flows to `params` (N, P)."""
        lost, played = self._examples(params.detach(), batch)
        surrogate = super().loss(params, played)
        return lost + (surrogate - surrogate.detach())

    def loss_and_grad(self, params: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (N,) from 0 to 1, and their policy gradients by the trainable parameters."""
        lost, played = self._examples(params, batch)
        size = self.networks_at_once(played.inputs.shape[1])
        grads = []
        for first in range(0, len(params), size):
            some, stream = slice(first, first + size), batch.stream
            own = stream[some] if stream is not None and stream.ndim > 1 else stream
            part = Batch(played.inputs[some], played.targets[some], own)
            grads.append(super().loss_and_grad(params[some], part)[1])
        return lost, torch.cat(grads)

    @torch.no_grad()
    def evaluate(self, params: Tensor, split: str = "test", memory_budget: int | None = None) -> dict[str, Tensor]:
        """Mean return, in steps, and error, the share of episodes that fail, each (N,), over a split's episodes.

        Of "train" over at most 128 episodes, always the same.

        Args:
            params: (N, P).
            split: "train", "val" or "test".
            memory_budget: as for Task.
        """
        self.layout.check_vector(params)
        data = self.evaluated_examples(split)
        horizon = data.targets.shape[-1]
        size = self.networks_at_once(len(data), memory_budget)
        lengths = torch.cat([self._play(some, Batch(data.inputs, data.targets)).lengths for some in params.split(size)])
        return {"return": lengths.mean(1), "error": (lengths < horizon).to(lengths.dtype).mean(1)}

    @cached_property
    def _own_description(self) -> dict[str, object]:
        rng = torch.Generator().manual_seed(0)
        states = self.environment.sample_states(_NUM_DESCRIBED, rng)
        after = self.environment.advance(states, torch.zeros(len(states), dtype=torch.int64))
        environment = f"{self.environment.name}: states {states.norm():.4g}, then {after.norm():.4g}"
        return {**super()._own_description, "environment": environment}

    def trial_batch(self, num_networks: int = 2, *, own: bool = False) -> Batch:
        """Initial states, in each of which one action is to be made likelier."""
        states = self.dataset.train.inputs[self._tried]
        num_actions = self.environment.num_actions
        actions = torch.arange(len(states), device=states.device) % num_actions
        advantages = F.one_hot(actions, num_actions).to(states.dtype)  # (B, K)
        parts = (states, advantages)
        return Batch(*(torch.stack((part, part.flip(0))) for part in parts)) if own else Batch(*parts)

    def check_fit(self, outputs: Tensor) -> None:
        if outputs.shape[1:] != (self.environment.num_actions,):
            raise ValueError(
                f"expected {self.environment.num_actions} outputs, one for each action of "
                f"{self.environment.name!r}, got (n, {', '.join(map(str, outputs.shape[1:]))})"
            )

    def draw_examples(self, num_examples: int, rng: torch.Generator, splits: Sequence[str] = ("train",)) -> Batch:
        """Random states of the environment, whatever the splits; no action is right there, so targets are zeros."""
        states = self.environment.sample_states(num_examples, rng).to(self.device, non_blocking=True)
        return Batch(states, states.new_zeros(num_examples, self.environment.num_actions))

    @torch.no_grad()
    def _examples(self, params: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """Losses (N,), and what REINFORCE learns from: states (N, T * B, D), weights of their actions (N, T * B, K)."""
        horizon = batch.targets.shape[-1]
        lengths, states, actions = self._play(params, batch, keeps_states=True)
        num_steps = states.shape[1]
        advantages = leave_one_out_advantages(lengths, num_steps) * (num_steps / horizon)  # (N, T, B)
        weights = F.one_hot(actions, self.environment.num_actions) * advantages[..., None]  # (N, T, B, K)
        return 1 - lengths.mean(1) / horizon, Batch(states.flatten(1, 2), weights.flatten(1, 2), batch.stream)

    def _play(self, params: Tensor, batch: Batch, *, keeps_states: bool = False) -> Episodes:
        states = batch.inputs.expand(len(params), -1, -1)  # (N, B, D)
        goes_on = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        lengths = states.new_zeros(states.shape[:2])
        kept: list[tuple[Tensor, Tensor]] = []
        for t, draws in enumerate(batch.targets.unbind(-1)):  # (B,) or (N, B)
            chances = probabilities(self.predict(params, states))  # (N, B, K)
            actions = (draws[..., None] >= chances.cumsum(-1)[..., :-1]).sum(-1)  # (N, B)
            if keeps_states:
                kept.append((states, actions))
            lengths += goes_on
            states = self.environment.advance(states, actions)
            goes_on = goes_on & ~self.environment.has_failed(states)
            states = states.masked_fill(~goes_on[..., None], 0.0)  # what has failed would run away to infinity
            if (t + 1) % _STEPS_BETWEEN_CHECKS == 0 and not goes_on.any():
                break
        if not keeps_states:
            return Episodes(lengths, states[:, None, :0], actions[:, None, :0])
        return Episodes(lengths, *(torch.stack(parts, 1) for parts in zip(*kept, strict=True)))


def leave_one_out_advantages(lengths: Tensor, num_steps: int) -> Tensor:
    """Advantages (N, T, B): steps still to come, less their mean over the other episodes; 0 after an episode's end.

    Args:
        lengths: (N, B) of episodes.
        num_steps: T.
    """
    num_episodes = lengths.shape[1]
    remaining = (lengths[:, None] - torch.arange(num_steps, device=lengths.device)[:, None]).clamp(min=0)  # (N, T, B)
    if num_episodes == 1:
        return remaining
    advantages = (remaining - remaining.mean(2, keepdim=True)) * (num_episodes / (num_episodes - 1))
    return advantages * (remaining > 0)


ENVIRONMENTS: Final[dict[str, Environment]] = {CartPole.name: CartPole()}
