"""A generator of classifiers: rows of a table become an MLP with one hidden layer.

Each weight is a sum over the rows of the table. Rows attend to each other by learned queries, by their distances under
learned relevances of the features, and by whether they share a class, and so find out where they stand. A hidden unit
is anchored at one row: its direction is the difference of two places, averages of rows near the anchor that do and do
not share its class, and its bias lies between them. The readout is a penalised logistic regression on the units and the
features, with a learned penalty. So any number of rows, features and classes will do, in any order.

Source: hidden units from pairs of rows: Bolager et al. 2023 (arXiv 2306.16830); readouts solved within a learned model:
Bertinetto et al. 2019 (arXiv 1805.08136); networks for tables from their rows: Müller et al. 2025 (arXiv 2312.08598).

Legend: B tables, n rows, D features, K classes, d token width, h heads, H hidden units.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generator.tabular.network import Networks, squashed, standardisation
from generator.tabular.readout import solve_readout
from zoo.devices import widest_float

_KEY_WIDTH: Final = 16
_NUM_STATISTICS: Final = 7
_NUM_ROW_FEATURES: Final = 5
_SHRINKAGE: Final = 0.02  # of the covariance that is inverted
_NEVER: Final = -1e4  # a logit


class TabularGenerator(nn.Module):
    """Rows and classes of B tables -> networks.

    Args:
        width: d.
        num_blocks: attention blocks of the rows.
        num_heads: h.
        num_units: most hidden units; there are as many as rows, if these are fewer.
        num_readout_steps: of the readout.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        num_blocks: int = 2,
        num_heads: int = 4,
        num_units: int = 128,
        num_readout_steps: int = 6,
    ) -> None:
        super().__init__()
        self.options = {
            "width": width,
            "num_blocks": num_blocks,
            "num_heads": num_heads,
            "num_units": num_units,
            "num_readout_steps": num_readout_steps,
        }
        self.rows = nn.Linear(_NUM_ROW_FEATURES, width)
        self.blocks = nn.ModuleList(RowBlock(width, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.units = HiddenUnits(width, num_units)
        self.mixture = nn.Linear(width, 4)  # penalty, and how much units, features and whitened features count
        self.rates = nn.Parameter(torch.ones(num_readout_steps))
        # Relevances of features: of each head of the blocks, of the units' ends, of their directions, of the readout.
        self.relevance_counts = [num_heads] * num_blocks + [2, 1, 1]
        self.statistics = nn.Linear(_NUM_STATISTICS, 32)
        self.relevance = nn.Linear(32, sum(self.relevance_counts), bias=False)
        with torch.no_grad():
            self.mixture.bias.copy_(torch.tensor([-1.5, 0.0, 0.0, -2.0]))
            self.relevance.weight.zero_()
            near = [torch.linspace(-1, 3, count) for count in self.relevance_counts[:-2]]
            self.usual_relevance = nn.Parameter(torch.cat([*near, torch.zeros(2)]))

    def forward(
        self, inputs: Tensor, labels: Tensor, num_classes: int, scaling: tuple[Tensor, Tensor] | None = None
    ) -> Networks:
        """Networks for tables.

        Args:
            inputs: (B, n, D) finite numbers on any scale.
            labels: (B, n) whole numbers from 0; classes that no row has are never predicted.
            num_classes: K.
            scaling: mean and one over the deviation (B, 1, D) of the features; default those of the rows.
        """
        mean, scale = standardisation(inputs) if scaling is None else scaling
        z = squashed((inputs - mean) * scale)  # (B, n, D)
        num_live = (scale > 0).sum(-1, keepdim=True).clamp(min=1).to(z.dtype)  # (B, 1, 1)
        classes = F.one_hot(labels, num_classes).to(z.dtype)  # (B, n, K)
        share = classes.mean(1, keepdim=True)  # (B, 1, K)
        covariance = z.mT @ z / z.shape[1]  # (B, D, D)
        precision = torch.linalg.inv(covariance + _SHRINKAGE * torch.eye(z.shape[-1], device=z.device))

        # How much each feature counts.
        statistics = feature_statistics(z, classes, covariance, num_live)
        learned = self.relevance(F.gelu(self.statistics(statistics)))
        relevances = (self.usual_relevance + 3 * torch.tanh(learned / 3)).exp() / num_live  # (B, D, *)
        *of_blocks, of_ends, of_directions, of_readout = relevances.split(self.relevance_counts, -1)

        # Where rows stand.
        tokens = self.rows(row_features(z, classes, share, num_live))  # (B, n, d)
        for block, relevance in zip(self.blocks, of_blocks, strict=True):
            tokens = block(tokens, weighted(z, relevance), classes)
        tokens = self.norm(tokens)

        # Hidden units, and the readout of these and of the features, in a metric between theirs and the whitened one.
        mixture = self.mixture(tokens.mean(1, keepdim=True)).clamp(-6, 6).exp()
        penalty, nonlinear, direct, whitened = mixture.split(1, -1)  # (B, 1, 1)
        in_weights, in_bias = self.units(
            tokens,
            z,
            classes,
            places=weighted(z, of_ends),
            relevance=of_directions * num_live,
            precision=precision,
        )
        size = nonlinear / in_bias.shape[-1] ** 0.5
        in_weights, in_bias = in_weights * size, in_bias * size
        hidden = torch.relu(z @ in_weights + in_bias)  # (B, n, H)
        metric = torch.diag_embed((direct * of_readout)[..., 0]) + whitened * precision / num_live  # (B, D, D)
        offset = torch.where(share > 0, share.clamp(min=1e-9).log(), _NEVER)
        exact = widest_float(z.device)  # units that nearly agree and a small penalty leave float32 no digits
        units, features = hidden.to(exact), z.to(exact)
        gram = units @ units.mT + features @ metric.to(exact) @ features.mT + 1
        solved = solve_readout(gram, classes.to(exact), offset.to(exact), penalty.to(exact), self.rates.to(exact))
        coefficients = solved.to(z.dtype)  # (B, n, K)
        return Networks(
            mean=mean,
            scale=scale,
            in_weights=in_weights,
            in_bias=in_bias,
            out_weights=hidden.mT @ coefficients,
            direct_weights=metric @ (z.mT @ coefficients),
            out_bias=coefficients.sum(1, keepdim=True) + offset,
        )


class RowAttention(nn.Module):
    """Logits of the attention of rows to all rows: learned queries, distances and shared classes in one product."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Linear(width, num_heads * _KEY_WIDTH)
        self.keys = nn.Linear(width, num_heads * _KEY_WIDTH)
        self.same = nn.Parameter(torch.zeros(num_heads))

    def forward(self, tokens: Tensor, places: Tensor, classes: Tensor, asking: Tensor | None = None) -> Tensor:
        """Logits (B, h, n or H, n).

        Args:
            tokens: (B, n, d).
            places: (B, h, n, D), whose squared distances are subtracted, up to a constant of the row that asks.
            classes: (B, n, K) one-hot.
            asking: (B, H) the rows that ask; None for all.
        """
        queries = self.queries(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) / _KEY_WIDTH**0.5
        keys = self.keys(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        shared = classes[:, None].expand(-1, self.num_heads, -1, -1)
        ones = torch.ones_like(queries[..., :1])
        left = torch.cat((queries, 2 * places, shared * self.same[:, None, None], ones), -1)
        right = torch.cat((keys, places, shared, -places.square().sum(-1, keepdim=True)), -1)
        if asking is not None:
            left = left.gather(2, asking[:, None, :, None].expand(-1, self.num_heads, -1, left.shape[-1]))
        return left @ right.mT


class RowBlock(nn.Module):
    """One layer: each row hears of the others, and how many of those that it listens to share its class."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = RowAttention(width, num_heads)
        self.values = nn.Linear(width, width)
        self.output = nn.Linear(width + 2 * num_heads, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor, places: Tensor, classes: Tensor) -> Tensor:
        inner = self.norm(tokens)
        logits = self.attention(inner, places, classes)
        not_itself = _NEVER * torch.eye(logits.shape[-1], device=logits.device)
        weights = (logits + not_itself).softmax(-1)  # (B, h, n, n)
        values = self.values(inner).unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
        heard = (weights @ values).transpose(1, 2).flatten(2)  # (B, n, d)
        shares = weights @ classes[:, None]  # (B, h, n, K) of the classes
        own = (shares * classes[:, None]).sum(-1).transpose(1, 2)
        purity = shares.square().sum(-1).transpose(1, 2)
        tokens = tokens + self.output(torch.cat((heard, own, purity), -1))
        return tokens + self.mlp(tokens)


class HiddenUnits(nn.Module):
    """Weights and biases of hidden units, each anchored at a row."""

    def __init__(self, width: int, num_units: int) -> None:
        super().__init__()
        self.num_units = num_units
        self.ends = RowAttention(width, 2)
        self.shape = nn.Linear(width, 3)
        self.sharpness = nn.Parameter(torch.zeros(()))
        self.whitening = nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            self.ends.same.copy_(torch.tensor([2.0, -2.0]))

    def forward(
        self, tokens: Tensor, z: Tensor, classes: Tensor, *, places: Tensor, relevance: Tensor, precision: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weights (B, D, H) and biases (B, 1, H).

        Args:
            tokens: (B, n, d).
            z: (B, n, D) standardised features.
            classes: (B, n, K) one-hot.
            places: (B, 2, n, D), whose distances say which rows are near, for either end.
            relevance: (B, D, 1) of the features for directions.
            precision: (B, D, D) inverse of the features' covariance.
        """
        anchors = self._anchors(tokens)
        near, far = (self.ends(tokens, places, classes, anchors).softmax(-1) @ z[:, None]).unbind(1)  # (B, H, D)
        between = near - far
        steep = (between.abs() + 1e-3).pow(self.sharpness.exp() - 1)  # prefers the features that differ most
        plain = _unit_length(between * steep * relevance.mT)
        whitened = _unit_length(between @ precision)  # as in linear discriminants
        direction = torch.lerp(plain, whitened, self.whitening.sigmoid())
        at = tokens.gather(1, anchors[..., None].expand(-1, -1, tokens.shape[-1]))
        slope, place, shift = self.shape(at).split(1, -1)  # (B, H, 1)
        slope = slope.clamp(-3, 3).exp() / ((direction * between).sum(-1, keepdim=True).abs() + 0.1)
        weights = direction * slope
        bias = shift - (weights * torch.lerp(near, far, place.sigmoid())).sum(-1, keepdim=True)
        return weights.mT, bias.mT

    def _anchors(self, tokens: Tensor) -> Tensor:
        """Rows (B, H), evenly spaced in the order of their tokens' first number: the order of the rows is nothing."""
        count = min(self.num_units, tokens.shape[1])
        ranks = torch.linspace(0, tokens.shape[1] - 1, count, device=tokens.device).round().long()
        return tokens[..., 0].argsort(1)[:, ranks]


def feature_statistics(z: Tensor, classes: Tensor, covariance: Tensor, num_live: Tensor) -> Tensor:
    """What is known of each feature (B, D, 7): how it goes with the classes and with other features, and its shape.

    The first four are the shares of the variance of z, z^2, |z| and sign z that classes explain.
    """
    counts = classes.sum(1)[..., None]  # (B, K, 1)
    explained = []
    for values in (z, z.square().clamp(max=9), z.abs(), z.sign()):
        centred = values - values.mean(1, keepdim=True)
        means = classes.mT @ centred / counts.clamp(min=1)  # (B, K, D)
        between = (counts * means.square()).sum(1) / z.shape[1]
        explained.append(between / (centred.square().mean(1) + 1e-6))
    others = covariance.square().sum(-1) - covariance.diagonal(dim1=1, dim2=2).square()
    live = num_live[:, 0]  # (B, 1)
    return torch.stack((*explained, others / live, z.pow(4).mean(1) / 9, (live.log() / 3).expand_as(others)), -1)


def row_features(z: Tensor, classes: Tensor, share: Tensor, num_live: Tensor) -> Tensor:
    """What is known of each row before it hears of others (B, n, 5): its size, its class's share, the table's size."""
    size = z.square().sum(-1, keepdim=True) / num_live
    own_share = (classes * share).sum(-1, keepdim=True)
    num_rows = torch.full_like(size, math.log(z.shape[1]) / 5)
    num_classes = (share > 0).sum(-1, keepdim=True).to(z.dtype)
    num_features, num_classes = (count.log().expand_as(size) for count in (num_live, num_classes))
    return torch.cat((size, own_share.log(), num_rows, num_features / 3, num_classes), -1)


def weighted(z: Tensor, relevance: Tensor) -> Tensor:
    """Places (B, h, n, D) whose squared distances are sums over features (B, n, D) by relevance (B, D, h)."""
    return z[:, None] * relevance.mT.sqrt()[:, :, None]


def _unit_length(vectors: Tensor) -> Tensor:
    return vectors / (vectors.square().sum(-1, keepdim=True) + 1e-6).sqrt()
