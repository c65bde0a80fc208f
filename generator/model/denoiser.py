"""Transformer blocks that denoise tokens: attention biased by edge values, messages along edges, adaptive norms.

"Weights as attention": a weight between two units is to the two tokens what a query-key product is, so edges bias the
attention logits of adjacent groups and carry linear messages, as the network they describe would. Nothing depends on
the order of the units in a group.

Source: Vaswani et al. 2017 (arXiv 1706.03762); adaptive norms: Perez et al. 2018 (arXiv 1709.07871), Peebles and Xie
2023 (arXiv 2212.09748); biased attention: Ying et al. 2021 (arXiv 2106.05234).

Legend: B networks, n tokens, d token width, H heads, e edge width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SHORT_SEQUENCE: Final = 256  # tokens


@dataclass(frozen=True)
class EdgePair:
    """Tokens of a target group and of a source group, with an edge between each two of them."""

    target: slice
    source: slice


class DenoiserBlock(nn.Module):
    """Attention and MLP with adaptive norms: tokens (B, n, d) -> (B, n, d).

    Args:
        width: d.
        num_heads: H, a divisor of `width`.
        edge_width: e; 0 for a block without edges.
        mlp_ratio: hidden width of the MLP over d.
    """

    def __init__(self, width: int, num_heads: int, edge_width: int, mlp_ratio: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got {width} and {num_heads}")
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zero_init(nn.Linear(width, 4 * width))
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))
        self.has_edges = edge_width > 0
        if self.has_edges:
            self.edge_norm = nn.LayerNorm(edge_width)
            self.edge_bias = nn.Linear(edge_width, 2 * num_heads)
            self.edge_message = nn.Linear(edge_width, 2 * num_heads)
            self.message_value = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, condition: Tensor, edges: Sequence[Tensor], pairs: Sequence[EdgePair]) -> Tensor:
        """Denoise one round further.

        Args:
            x: (B, n, d) tokens.
            condition: (B, d).
            edges: one (B, n_target, n_source, e) for each pair.
            pairs: the tokens that each tensor of edges connects.
        """
        scale1, shift1, scale2, shift2 = self.modulation(condition)[:, None].chunk(4, dim=-1)  # (B, 1, d)
        h = self.attention_norm(x) * (1 + scale1) + shift1
        query, key, value = self.query_key_value(h).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if edges and self.has_edges:
            mixed = self._attend_along_edges(h, (query, key, value), edges, pairs)
        else:
            mixed = attend(query, key, value)  # (B, H, n, d / H)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x) * (1 + scale2) + shift2)

    def _attend_along_edges(
        self, h: Tensor, heads: tuple[Tensor, Tensor, Tensor], edges: Sequence[Tensor], pairs: Sequence[EdgePair]
    ) -> Tensor:
        query, key, value = heads
        normed = [self.edge_norm(edge) for edge in edges]
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (B, H, n, n)
        bias = torch.zeros_like(logits)
        for edge, pair in zip(normed, pairs, strict=True):
            up, down = self.edge_bias(edge).permute(0, 3, 1, 2).chunk(2, dim=1)  # (B, H, n_target, n_source)
            bias[:, :, pair.target, pair.source] = up
            bias[:, :, pair.source, pair.target] = down.transpose(-1, -2)
        mixed = (logits + bias).softmax(-1).to(value.dtype) @ value  # (B, H, n, d / H)

        to_target, to_source = self.message_value(h).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        messages = torch.zeros_like(mixed)
        for edge, pair in zip(normed, pairs, strict=True):
            up, down = self.edge_message(edge).permute(0, 3, 1, 2).chunk(2, dim=1)
            num_targets, num_sources = edge.shape[1:3]
            messages[:, :, pair.target] += up @ to_target[:, :, pair.source] * num_sources**-0.5
            messages[:, :, pair.source] += down.transpose(-1, -2) @ to_source[:, :, pair.target] * num_targets**-0.5
        return mixed + messages


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention (B, H, n, d / H): fused, except for short sequences on a CPU.

    There the fused kernel's backward pass in bfloat16 takes 1.3 to 7 times as long as the plain products.
    """
    if query.device.type == "cpu" and query.shape[-2] <= _SHORT_SEQUENCE:
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return logits.softmax(-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


class EdgeDecoder(nn.Module):
    """Hidden features (B, n_target, n_source, 2e) of edges from their encoding and the tokens at both ends.

    Args:
        width: d.
        edge_width: e.
        num_products: bilinear forms of the two tokens.
    """

    def __init__(self, width: int, edge_width: int, num_products: int = 8) -> None:
        super().__init__()
        self.num_products = num_products
        self.edge_norm = nn.LayerNorm(edge_width)
        self.target_factors = nn.Linear(width, 8 * num_products)
        self.source_factors = nn.Linear(width, 8 * num_products)
        self.target_term = nn.Linear(width, 2 * edge_width)
        self.source_term = nn.Linear(width, 2 * edge_width)
        self.edge_term = nn.Linear(edge_width + num_products, 2 * edge_width)

    def forward(self, edge: Tensor, target: Tensor, source: Tensor) -> Tensor:
        left = self.target_factors(target).unflatten(-1, (self.num_products, 8)).transpose(1, 2)
        right = self.source_factors(source).unflatten(-1, (self.num_products, 8)).transpose(1, 2)
        products = (left @ right.transpose(-1, -2)).permute(0, 2, 3, 1) * 8**-0.5  # (B, n_target, n_source, products)
        hidden = self.edge_term(torch.cat((self.edge_norm(edge).to(products.dtype), products), dim=-1))
        return F.gelu(hidden + self.source_term(source)[:, None] + self.target_term(target)[:, :, None])


def zero_init(layer: nn.Linear) -> nn.Linear:
    """The layer with weight and bias zero, so that what it is added to begins unchanged."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
