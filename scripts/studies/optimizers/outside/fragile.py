"""Problems that steps meant for fresh networks and full batches spoil, for choices: no model or data of "outside".

Minibatches of one and two examples, 3-D convolutions without norms, and networks that are trained already, also where
they are at once continued on what they were trained on.

Legend: B examples, L tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import nn
from torch.nn import functional as F

from zoo.networks.architectures import MLP

from . import models
from .problems import (
    Problem,
    classification,
    minibatch,
    point_denoising,
    prose,
    recurrent_language,
    trained_before,
)


def signals_one_by_one(batch_size: int) -> Problem:
    """MNIST-1D by a tanh MLP of three layers."""
    return classification(partial(MLP, 40, (48, 48), 10, "tanh"), "mnist1d", batch_size=batch_size)


def images_one_by_one() -> Problem:
    """MNIST by a GELU MLP, one image a step."""
    return classification(partial(MLP, 784, (48, 48), 10, "gelu"), batch_size=1)


def signals_by_convolutions(batch_size: int) -> Problem:
    """MNIST-1D by plain 1-D convolutions."""
    return classification(models.conv1d, "mnist1d", batch_size=batch_size, view=lambda x: x.unsqueeze(1))


def regression_one_by_one() -> Problem:
    """A noisy function of eight variables by a ReLU MLP, one example a step."""
    model, rng = MLP(8, (64, 64), 1), torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=rng)
    y = (x[:, :1] * x[:, 1:2]).sin() + x[:, 2:3].abs() + 0.3 * torch.randn(512, 1, generator=rng)

    def loss(rng: torch.Generator) -> torch.Tensor:
        inputs, targets = minibatch(rng, 1, x, y)
        return F.mse_loss(model(inputs), targets)

    return Problem(model, loss, num_measured=512)


def bodies() -> Problem:
    """Which of five bodies a noisy cube of 8 x 8 x 8 holds: plain 3-D convolutions with pooling."""
    model = models.conv3d_pooled(5)
    line = torch.linspace(-1, 1, 8)
    x, y, z = torch.meshgrid(line, line, line, indexing="ij")
    absolute = torch.stack([x, y, z]).abs()
    shapes = torch.stack(
        [
            x**2 + y**2 + z**2 < 0.5,
            absolute.amax(0) < 0.6,
            absolute.sum(0) < 1.0,
            (x**2 + y**2 < 0.3) & (z.abs() < 0.9),
            (x**2 + y**2 < (0.4 - 0.4 * z) ** 2),
        ]
    ).float()

    def loss(rng: torch.Generator) -> torch.Tensor:
        kinds, shifts = torch.randint(5, (16,), generator=rng), torch.randint(-1, 2, (3,), generator=rng)
        noise = torch.randn(16, 1, 8, 8, 8, generator=rng)
        cubes = 3 * shapes[kinds].unsqueeze(1).roll(shifts.tolist(), (2, 3, 4)) + noise
        return F.cross_entropy(model(cubes), kinds)

    return Problem(model, loss)


def next_image() -> Problem:
    """The next image of a film of two bouncing points, from four, by plain 3-D convolutions."""
    model = models.conv3d_to_image()
    line = torch.arange(8.0)

    def loss(rng: torch.Generator) -> torch.Tensor:
        start, speed = 7 * torch.rand(16, 2, 2, generator=rng), 2 * torch.rand(16, 2, 2, generator=rng) - 1
        places = start.unsqueeze(1) + speed.unsqueeze(1) * torch.arange(5)[:, None, None]
        places = 7 - (places % 14 - 7).abs()  # (B, 5, points, axes)
        rows, columns = (torch.exp(-((places[..., axis, None] - line) ** 2)) for axis in (0, 1))
        film = torch.einsum("btpi,btpj->btij", rows, columns)
        return F.mse_loss(model(film[:, None, :4]), film[:, 4:])

    return Problem(model, loss)


def tuned_recurrent() -> Problem:
    """An LSTM language model of source code goes on with prose."""
    model, tokens = models.copied(trained_before(recurrent_language)), prose()

    def loss(rng: torch.Generator) -> torch.Tensor:
        (x,) = minibatch(rng, 16, tokens)
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return Problem(model, loss)


def tuned_encoder() -> Problem:
    """A transformer encoder for images goes on with them upside down."""
    model = models.copied(trained_before(_ENCODER_START))
    return classification(lambda: model, view=lambda x: x.flip(2))


def continued_mlp() -> Problem:
    """An MLP goes on with the digits that it was trained on."""
    model = models.copied(trained_before(_MLP_START))
    return classification(lambda: model, "digits")


def continued_denoiser() -> Problem:
    """A denoiser of points goes on with what it was trained on."""
    return point_denoising(models.copied(trained_before(point_denoising)))


def tuned_head() -> Problem:
    """A new output layer on a frozen encoder of images."""
    model = models.copied(trained_before(_ENCODER_START))
    model.requires_grad_(False)
    model.output = nn.Linear(model.output.in_features, 10)
    return classification(lambda: model, view=lambda x: x.flip(3))


_ENCODER_START: Final = partial(classification, models.RowEncoder)
_MLP_START: Final = partial(classification, partial(MLP, 64, (64, 64), 10), "digits")
