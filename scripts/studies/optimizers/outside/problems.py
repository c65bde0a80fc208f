"""The problems of the panel: networks that timm, transformers, peft and torch define, with their losses.

Each function draws initial weights from torch's global generator, which the caller seeds, and returns the model with
its training loss on a minibatch drawn by the generator that it is given. Dropout is off, so that the loss of what was
trained can be measured.

Legend: B examples, L tokens, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.architectures import MLP
from zoo.tasks.datasets import get_dataset

from . import models

_NUM_PRETRAINING_STEPS: Final = 300


class Problem(NamedTuple):
    """A model and its loss on a minibatch."""

    model: nn.Module
    loss: Callable[[torch.Generator], Tensor]
    num_measured: int = 24  # minibatches on which a loss is measured
    measured: Callable[[torch.Generator], Tensor] | None = None  # to be judged by instead, such as on held-out data


def classification(
    make_model: Callable[[], nn.Module],
    data: str = "mnist5k",
    *,
    batch_size: int = 32,
    view: Callable[[Tensor], Tensor] = lambda x: x,
) -> Problem:
    model, (inputs, targets) = make_model(), data_of(data)

    def loss(rng: torch.Generator) -> Tensor:
        x, y = minibatch(rng, batch_size, view(inputs), targets)
        return F.cross_entropy(model(x), y)

    return Problem(model, loss, num_measured=max(24, 512 // batch_size))


def language(make_model: Callable[[], nn.Module], text: Callable[[], Tensor] | None = None) -> Problem:
    """Next-byte prediction by a model of transformers."""
    model = make_model()
    tokens = text() if text else data_of("python_source", context=48)[0]

    def loss(rng: torch.Generator) -> Tensor:
        (x,) = minibatch(rng, 8, tokens)
        return model(input_ids=x, labels=x).loss

    return Problem(model, loss)


def masked_language() -> Problem:
    model, tokens = models.bert(), data_of("python_source", context=48)[0]

    def loss(rng: torch.Generator) -> Tensor:
        (x,) = minibatch(rng, 8, tokens)
        is_hidden = torch.rand(x.shape, generator=rng) < 0.15
        return model(input_ids=x.masked_fill(is_hidden, 0), labels=x.masked_fill(~is_hidden, -100)).loss

    return Problem(model, loss)


def reversal() -> Problem:
    """Sequence to sequence: bytes in reversed order."""
    model, tokens = models.t5(), data_of("python_source", context=24)[0]

    def loss(rng: torch.Generator) -> Tensor:
        (x,) = minibatch(rng, 8, tokens)
        return model(input_ids=x, labels=x.flip(1)).loss

    return Problem(model, loss)


def recurrent_language() -> Problem:
    model, (inputs, targets) = models.LSTMLanguageModel(), data_of("python_source", context=48)

    def loss(rng: torch.Generator) -> Tensor:
        x, y = minibatch(rng, 16, inputs, targets)
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    return Problem(model, loss)


def point_denoising(start: nn.Module | None = None) -> Problem:
    """Noise of points on a spiral, predicted from the noisy point and the time."""
    model = start or models.TimeMLP(2, 64)

    def loss(rng: torch.Generator) -> Tensor:
        angle = 3 * math.pi * torch.rand(128, 1, generator=rng).sqrt()
        points = torch.cat([angle.cos(), angle.sin()], 1) * angle / 6
        t, noise = torch.rand(128, 1, generator=rng), torch.randn(points.shape, generator=rng)
        return F.mse_loss(model((t * math.pi / 2).cos() * points + (t * math.pi / 2).sin() * noise, t), noise)

    return Problem(model, loss)


def image_denoising() -> Problem:
    model, images = models.UNet(16), data_of("digits")[0].view(-1, 1, 8, 8)

    def loss(rng: torch.Generator) -> Tensor:
        (x,) = minibatch(rng, 32, images)
        level = torch.rand(len(x), 1, 1, 1, generator=rng)
        noise = torch.randn(x.shape, generator=rng)
        return F.mse_loss(model((1 - level) * x + level * noise, level), noise)

    return Problem(model, loss)


def smooth_regression() -> Problem:
    """A smooth function of two variables without noise, all examples in every step."""
    model = _tanh_network(2, 64)
    x = torch.rand(256, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = (3 * x[:, :1]).sin() * (2 * x[:, 1:]).cos() + 0.5 * x[:, :1] * x[:, 1:]
    return Problem(model, lambda rng: F.mse_loss(model(x), y))


def image_as_function() -> Problem:
    """Grey values of one image from coordinates, by a network of sines."""
    model, image = models.Siren(2, 48), data_of("mnist5k")[0][7].flatten().unsqueeze(1)
    line = torch.linspace(-1, 1, 28)
    places = torch.cartesian_prod(line, line)

    def loss(rng: torch.Generator) -> Tensor:
        x, y = minibatch(rng, 256, places, image)
        return F.mse_loss(model(x), y)

    return Problem(model, loss)


def poisson() -> Problem:
    """u'' = -pi^2 sin(pi x) + 4 x on [-1, 1], u = 0 at both ends."""
    model = _tanh_network(1, 32)

    def loss(rng: torch.Generator) -> Tensor:
        x = (torch.rand(64, 1, generator=rng) * 2 - 1).requires_grad_()
        residual = _derivative(_derivative(model(x), x), x) + math.pi**2 * (math.pi * x).sin() - 4 * x
        return residual.square().mean() + 10 * model(torch.tensor([[-1.0], [1.0]])).square().mean()

    return Problem(model, loss)


def oscillator() -> Problem:
    """u'' + .4 u' + 16 u = 0 on [0, 2] with u(0) = 1, u'(0) = 0, on a fixed grid."""
    model = _tanh_network(1, 32)

    def loss(rng: torch.Generator) -> Tensor:
        t = torch.linspace(0, 2, 64).unsqueeze(1).requires_grad_()
        u = model(t)
        speed = _derivative(u, t)
        residual = _derivative(speed, t) + 0.4 * speed + 16 * u
        return 0.01 * residual.square().mean() + (u[0] - 1).square().mean() + 0.1 * speed[0].square().mean()

    return Problem(model, loss)


def autoencoding(make_model: Callable[[], nn.Module], data: str, *, view: Callable[[Tensor], Tensor]) -> Problem:
    model, inputs = make_model(), view(data_of(data)[0])

    def loss(rng: torch.Generator) -> Tensor:
        (x,) = minibatch(rng, 32, inputs)
        return F.mse_loss(model(x), x)

    return Problem(model, loss)


def variational() -> Problem:
    model, images = models.VAE(64, 8), get_dataset("digits").train.inputs.flatten(1)
    images = images / images.max()

    def loss(rng: torch.Generator) -> Tensor:
        (x,) = minibatch(rng, 64, images)
        logits, mean, log_var = model(x, rng)
        divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
        return (F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1) + divergence).mean()

    return Problem(model, loss)


def contrastive() -> Problem:
    """Two noisy views of each image must find one another (InfoNCE)."""
    model, images = MLP(64, (64, 64), 16), data_of("digits")[0].flatten(1)

    def loss(rng: torch.Generator) -> Tensor:
        (x,) = minibatch(rng, 64, images)
        one, two = (F.normalize(model(x + 0.7 * torch.randn(x.shape, generator=rng)), dim=1) for _ in range(2))
        return F.cross_entropy(5 * one @ two.T, torch.arange(len(x)))

    return Problem(model, loss)


def factorisation() -> Problem:
    """A matrix of ratings of rank 4 with noise, from embeddings of rows and columns."""
    model, rng = models.Factorisation(200, 100, 8), torch.Generator().manual_seed(0)
    rows, columns = torch.randint(200, (6000,), generator=rng), torch.randint(100, (6000,), generator=rng)
    truth = torch.randn(200, 4, generator=rng) @ torch.randn(4, 100, generator=rng) / 2
    ratings = truth[rows, columns] + 0.3 * torch.randn(6000, generator=rng)

    def loss(rng: torch.Generator) -> Tensor:
        row, column, rating = minibatch(rng, 128, rows, columns, ratings)
        return F.mse_loss(model(row, column), rating)

    return Problem(model, loss)


def table_regression() -> Problem:
    """scikit-learn's diabetes, standardised."""
    from sklearn.datasets import load_diabetes

    table = load_diabetes()
    x, y = torch.tensor(table.data).float(), torch.tensor(table.target).float().unsqueeze(1)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    first, second = (nn.Sequential(nn.Linear(size, 64), nn.SiLU()) for size in (10, 64))
    model = nn.Sequential(first, nn.LayerNorm(64), second, nn.Linear(64, 1))

    def loss(rng: torch.Generator) -> Tensor:
        inputs, targets = minibatch(rng, 32, x, y)
        return F.mse_loss(model(inputs), targets)

    return Problem(model, loss)


def table_classification() -> Problem:
    """scikit-learn's breast cancer, by logistic regression: a convex problem."""
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    x, y = torch.tensor(table.data).float(), torch.tensor(table.target)
    x = (x - x.mean(0)) / x.std(0)
    model = nn.Linear(30, 2)

    def loss(rng: torch.Generator) -> Tensor:
        inputs, targets = minibatch(rng, 32, x, y)
        return F.cross_entropy(model(inputs), targets)

    return Problem(model, loss)


def moving_squares() -> Problem:
    """Which of four ways a square moves in a noisy film, by plain 3-D convolutions."""
    model = models.conv3d()

    def loss(rng: torch.Generator) -> Tensor:
        ways = torch.randint(4, (16,), generator=rng)
        start, time = torch.randint(2, 6, (16, 2), generator=rng), torch.arange(5)
        steps = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])[ways]
        places = (start[:, None] + steps[:, None] * time[:, None]) % 8  # (B, 5, 2)
        film = 0.5 * torch.randn(16, 1, 5, 8, 8, generator=rng)
        film[torch.arange(16)[:, None], 0, time, places[..., 0], places[..., 1]] += 3
        return F.cross_entropy(model(film), ways)

    return Problem(model, loss)


def tuned_language(adapt: Callable[[nn.Module], nn.Module]) -> Problem:
    """A language model of source code goes on with prose."""
    start = trained_before(_LANGUAGE_START)
    return language(lambda: adapt(models.copied(start)), prose)


def tuned_images(*, head_only: bool) -> Problem:
    """A network for MNIST goes on with the digits of scikit-learn, enlarged and rotated by a quarter."""
    model = models.copied(trained_before(_IMAGE_START))
    if head_only:
        model.requires_grad_(False)
    model.fc = nn.Linear(model.fc.in_features, 10)
    images, targets = data_of("digits")
    images = F.interpolate(images.view(-1, 1, 8, 8), size=(28, 28), mode="bilinear").rot90(1, (2, 3))

    def loss(rng: torch.Generator) -> Tensor:
        x, y = minibatch(rng, 32, images, targets)
        return F.cross_entropy(model(x), y)

    return Problem(model, loss)


_LANGUAGE_START: Final = partial(language, models.gpt2)
_IMAGE_START: Final = partial(classification, models.resnet)


@lru_cache(maxsize=8)
def data_of(name: str, **options: int) -> tuple[Tensor, Tensor]:
    """Training inputs, standardised unless they are bytes, and targets."""
    split = get_dataset(name, **options).train
    inputs = split.inputs
    return ((inputs - inputs.mean()) / inputs.std() if inputs.is_floating_point() else inputs), split.targets


def minibatch(rng: torch.Generator, size: int, *tensors: Tensor) -> list[Tensor]:
    chosen = torch.randint(len(tensors[0]), (size,), generator=rng)
    return [tensor[chosen] for tensor in tensors]


def _tanh_network(num_inputs: int, width: int) -> nn.Module:
    first, second = nn.Linear(num_inputs, width), nn.Linear(width, width)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(width, 1))


def _derivative(y: Tensor, x: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return slope


@lru_cache(maxsize=8)
def trained_before(make: Callable[[], Problem]) -> nn.Module:
    """The model after AdamW + cosine, where a fine-tuning begins: one for all seeds and optimizers, who copy it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        problem = make()
        optimizer = torch.optim.AdamW(problem.model.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _NUM_PRETRAINING_STEPS)
        rng = torch.Generator().manual_seed(0)
        for _ in range(_NUM_PRETRAINING_STEPS):
            optimizer.zero_grad()
            problem.loss(rng).backward()
            optimizer.step()
            schedule.step()
        return problem.model


@lru_cache(maxsize=1)
def prose() -> Tensor:
    """Bytes (sequences, 48) of the descriptions that come with scikit-learn's data sets."""
    from sklearn import datasets

    loaders = (datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer, datasets.load_diabetes)
    text = "".join(load().DESCR for load in loaders).encode()
    return torch.tensor(list(text)).unfold(0, 48, 8)
