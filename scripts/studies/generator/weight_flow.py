"""DeepWeightFlow's recipe as a rival: finished networks aligned, projected on principal components, and flow matching.

It knows neither prompts nor starts, and with fewer components than numbers all that it makes lies in the span of the
networks that it was fitted to.

Source: Gupta et al. 2026 (arXiv 2601.05052), with the settings of the code that they published for MLPs.

Legend: N networks to learn from, B networks asked for, P numbers of one network, C components.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from zoo.networks.alignment import align
from zoo.networks.layout import ParamLayout


@dataclass(frozen=True, kw_only=True)
class WeightFlowConfig:
    """Settings of the published code for MLPs.

    Attributes:
        num_components: C; 0 for the parameters themselves.
        width: of the flow's hidden layers, the middle one of half as many units.
        time_width: of what it is told of the time.
        dropout: of its first two hidden layers.
        num_steps, batch_size: of AdamW.
        learning_rate: falls to a five-hundredth along a cosine.
        weight_decay: of AdamW.
        source_std: of the Gaussian from which the flow departs.
        noise_std: added to every point of the straight paths.
        num_sampling_steps: of Runge and Kutta's method of fourth order.
    """

    num_components: int = 99
    width: int = 512
    time_width: int = 64
    dropout: float = 0.1
    num_steps: int = 30_000
    batch_size: int = 8
    learning_rate: float = 5e-4
    weight_decay: float = 1e-5
    source_std: float = 0.01
    noise_std: float = 0.001
    num_sampling_steps: int = 100


class Velocity(nn.Module):
    """Velocity (B, C) of points (B, C) at times (B, 1) in [0, 1]."""

    def __init__(self, size: int, config: WeightFlowConfig) -> None:
        super().__init__()
        width = config.width
        self.time = nn.Sequential(
            nn.Linear(1, config.time_width), nn.GELU(), nn.Linear(config.time_width, config.time_width)
        )
        hidden: list[nn.Module] = []
        widths = (size + config.time_width, width, width // 2, width)
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            hidden += [nn.Linear(fan_in, fan_out), nn.LayerNorm(fan_out), nn.GELU()]
            hidden += [nn.Dropout(config.dropout)] * (i < 2)
        self.hidden, self.out = nn.Sequential(*hidden), nn.Linear(width, size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, points: Tensor, times: Tensor) -> Tensor:
        return self.out(self.hidden(torch.cat((points, self.time(times)), dim=1)))


@dataclass(frozen=True)
class WeightFlow:
    """A fitted flow, as a sampler of networks: it heeds neither starts nor prompts.

    Attributes:
        mean: (P,) of the networks that it was fitted to.
        components: (C, P), orthonormal.
    """

    velocity: Velocity
    mean: Tensor
    components: Tensor
    config: WeightFlowConfig

    @classmethod
    def fit(cls, layout: ParamLayout, params: Tensor, config: WeightFlowConfig, *, seed: int = 0) -> WeightFlow:
        """The flow from noise to networks (N, P), their units first brought to the order of the first one's."""
        aligned = align(layout, params, params[0]).params
        mean = aligned.mean(0) if config.num_components else torch.zeros_like(aligned[0])
        components = torch.eye(len(mean))
        if config.num_components:
            components = torch.linalg.svd(aligned - mean, full_matrices=False).Vh[: config.num_components]
        targets = (aligned - mean) @ components.T  # (N, C)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cls(_trained(Velocity(targets.shape[1], config), targets, config), mean, components, config)

    @torch.no_grad()
    def __call__(self, start: Tensor | None, prompt: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Networks (B, P), as many as there are prompts."""
        size = (len(next(iter(prompt.values()))), len(self.components))
        points = self.config.source_std * torch.randn(size, generator=rng)
        step = 1 / self.config.num_sampling_steps
        for i in range(self.config.num_sampling_steps):
            time = torch.full((len(points), 1), i * step)
            first = self.velocity(points, time)
            second = self.velocity(points + step / 2 * first, time + step / 2)
            third = self.velocity(points + step / 2 * second, time + step / 2)
            fourth = self.velocity(points + step * third, time + step)
            points = points + step / 6 * (first + 2 * second + 2 * third + fourth)
        return points @ self.components + self.mean


def _trained(velocity: Velocity, targets: Tensor, config: WeightFlowConfig) -> Velocity:
    """The velocity that had the lowest loss of a minibatch, as in the published code."""
    optimizer = torch.optim.AdamW(
        velocity.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, config.num_steps, eta_min=config.learning_rate / 500
    )
    lowest, best = float("inf"), velocity
    for _ in range(config.num_steps):
        clean = targets[torch.randint(len(targets), (config.batch_size,))]
        source, times = config.source_std * torch.randn_like(clean), torch.rand(len(clean), 1)
        points = source.lerp(clean, times) + config.noise_std * torch.randn_like(clean)
        loss = (velocity(points, times) - (clean - source)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if loss.item() < lowest:
            lowest, best = loss.item(), copy.deepcopy(velocity)
    return best.eval()
