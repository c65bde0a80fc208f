"""Cart-pole: a pole stands on a cart that is pushed left or right at every step and should not fall.

Physics, limits and initial states are those of Gymnasium's CartPole-v1, a tensor operation for any number of carts.

A state is position, velocity, angle and angular velocity, in m, m/s, rad and rad/s.

Legend: n episodes, H steps of the horizon.

Source: Barto, Sutton and Anderson 1983; Towers et al. 2024 (arXiv 2407.17032).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_POSITION: Final = 2.4
MAX_ANGLE: Final = 12 * math.pi / 180
_GRAVITY: Final = 9.8
_POLE_MASS: Final = 0.1
_TOTAL_MASS: Final = 1.1  # with the cart
_HALF_LENGTH: Final = 0.5  # of the pole
_FORCE: Final = 10.0
_SECONDS: Final = 0.02  # of a step, by Euler's method
_INITIAL_BOUND: Final = 0.05
_SPREAD: Final = (0.6, 0.5, 0.08, 0.5)  # standard deviations of the states in which learning policies were seen


class CartPole:
    """The environment: how states follow each other, and when an episode has failed."""

    name: Final = "cartpole"
    num_actions: Final = 2

    def advance(self, states: Tensor, actions: Tensor) -> Tensor:
        """States (..., 4) one step after (..., 4), having pushed left (0) or right (1) as `actions` (...) say."""
        _, velocity, angle, angular_velocity = states.unbind(-1)
        force = _FORCE * (2.0 * actions - 1)
        sine, cosine = angle.sin(), angle.cos()
        push = (force + _POLE_MASS * _HALF_LENGTH * angular_velocity.square() * sine) / _TOTAL_MASS
        inertia = _HALF_LENGTH * (4 / 3 - _POLE_MASS * cosine.square() / _TOTAL_MASS)
        angular_acceleration = (_GRAVITY * sine - cosine * push) / inertia
        acceleration = push - _POLE_MASS * _HALF_LENGTH * angular_acceleration * cosine / _TOTAL_MASS
        rates = torch.stack((velocity, acceleration, angular_velocity, angular_acceleration), dim=-1)
        return states + _SECONDS * rates

    def has_failed(self, states: Tensor) -> Tensor:
        """Whether the pole has fallen or the cart has left the track, (...) for states (..., 4)."""
        return (states[..., 0].abs() > MAX_POSITION) | (states[..., 2].abs() > MAX_ANGLE)

    def sample_states(self, num_states: int, rng: torch.Generator) -> Tensor:
        """States (n, 4) spread about as widely as those that learning policies meet."""
        return torch.randn(num_states, 4, generator=rng) * torch.tensor(_SPREAD)


def cartpole_episodes(num_episodes: int, horizon: int, rng: np.random.RandomState) -> tuple[NDArray, NDArray]:
    """Initial states (n, 4), and the random numbers (n, H) in [0, 1) by which policies draw their actions, float32."""
    states = rng.uniform(-_INITIAL_BOUND, _INITIAL_BOUND, (num_episodes, 4))
    return states.astype(np.float32), rng.random_sample((num_episodes, horizon)).astype(np.float32)
