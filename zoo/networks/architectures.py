"""Network architectures whose interchangeable units are known.

Each is an ordinary module that also answers `symmetry_groups()`. Any other module can be used in a zoo as well; it
then has no symmetry groups unless it implements that method.

Those without residual connections also answer `hidden_layers(params, inputs)`: what their units compute in N networks.

Legend: N networks, B examples, D inputs, K outputs, L bytes, C channels, E embedding width, H heads, n units of a
layer, S positions in an image (1 elsewhere).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.layout import GroupAxis, SymmetryGroup

ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "selu": F.selu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class HiddenLayer(NamedTuple):
    """What the units of a layer compute: sums before the activation, and activities, each (B, N, n, S)."""

    sums: Tensor
    activities: Tensor


@runtime_checkable
class HasHiddenLayers(Protocol):
    """An architecture whose layers of interchangeable units can be looked into, in N networks at once."""

    def hidden_layers(self, params: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, dict[str, HiddenLayer]]:
        """Outputs (N, B, K), and each hidden layer by the name of its symmetry group, all of one graph.

        Args:
            params: tensors (N, *shape) by slot name, such as `layout.views(params)`.
            inputs: (B, ...) shared by all networks.
        """
        ...


class MLP(nn.Module):
    """Fully connected network (B, *) -> (B, K); inputs are flattened.

    Args:
        num_inputs: D.
        hidden: width of each hidden layer; empty for a linear model.
        num_outputs: K.
        activation: one of ACTIVATIONS.
    """

    def __init__(self, num_inputs: int, hidden: Sequence[int], num_outputs: int, activation: str = "relu") -> None:
        super().__init__()
        self.activation = _checked_activation(activation)
        sizes = [num_inputs, *hidden, num_outputs]
        if min(sizes) < 1:
            raise ValueError(f"layer sizes must be positive, got {sizes}")
        self.sizes = tuple(sizes)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)  # (B, D)
        for layer in self.layers[:-1]:
            x = ACTIVATIONS[self.activation](layer(x))  # (B, width)
        return self.layers[-1](x)  # (B, K)

    def hidden_layers(self, params: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, dict[str, HiddenLayer]]:
        """See HasHiddenLayers."""
        layers: dict[str, HiddenLayer] = {}
        x = inputs.flatten(1).mT  # (D, B), later (N, n, B)
        for i in range(len(self.layers)):
            x = params[f"layers.{i}.weight"] @ x + params[f"layers.{i}.bias"][..., None]
            if i < len(self.layers) - 1:
                sums = x.permute(2, 0, 1)[..., None]
                layers[f"hidden.{i}"] = HiddenLayer(sums, ACTIVATIONS[self.activation](sums))
                x = layers[f"hidden.{i}"].activities[..., 0].permute(1, 2, 0)
        return x.mT, layers

    def symmetry_groups(self) -> tuple[SymmetryGroup, ...]:
        scale = int(self.activation == "relu")
        return tuple(
            SymmetryGroup(
                f"hidden.{i}",
                size,
                (
                    GroupAxis(f"layers.{i}.weight", 0, scale_power=scale),
                    GroupAxis(f"layers.{i}.bias", 0, scale_power=scale),
                    GroupAxis(f"layers.{i + 1}.weight", 1, scale_power=-scale),
                ),
            )
            for i, size in enumerate(self.sizes[1:-1])
        )


class CNN(nn.Module):
    """Convolutions 3x3 of stride 2 with BatchNorm and ReLU, mean over pixels, linear head: (B, C, h, w) -> (B, K).

    Args:
        num_inputs: input channels C.
        channels: output channels of each convolution.
        num_outputs: K.
    """

    def __init__(self, num_inputs: int = 1, channels: Sequence[int] = (16, 32, 32), num_outputs: int = 10) -> None:
        super().__init__()
        sizes = [num_inputs, *channels]
        if not channels or min(sizes) < 1:
            raise ValueError(f"channels must be one or more positive numbers, got {sizes}")
        pairs = list(pairwise(sizes))
        self.channels = tuple(channels)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in pairs)
        self.head = nn.Linear(sizes[-1], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))  # (B, C, h, w)
        return self.head(x.mean((2, 3)))  # (B, K)

    def hidden_layers(self, params: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, dict[str, HiddenLayer]]:
        """See HasHiddenLayers; normalised by the batch. The population runs as one CNN of N groups."""
        layers: dict[str, HiddenLayer] = {}
        x, num_networks, groups = inputs, len(params["head.weight"]), 1
        for i in range(len(self.channels)):
            kernel, bias = params[f"convs.{i}.weight"].flatten(0, 1), params[f"convs.{i}.bias"].flatten()
            x = F.conv2d(x, kernel, bias, stride=2, padding=1, groups=groups)  # (B, N * n, h, w)
            gain, shift = params[f"norms.{i}.weight"].flatten(), params[f"norms.{i}.bias"].flatten()
            x = F.batch_norm(x, None, None, gain, shift, training=True)
            sums = x.unflatten(1, (num_networks, -1)).flatten(3)
            layers[f"channels.{i}"] = HiddenLayer(sums, F.relu(sums))
            x, groups = layers[f"channels.{i}"].activities.view(x.shape), num_networks
        pooled = x.mean((2, 3)).unflatten(1, (num_networks, -1)).transpose(0, 1)  # (N, B, n)
        return pooled @ params["head.weight"].mT + params["head.bias"][:, None], layers

    def symmetry_groups(self) -> tuple[SymmetryGroup, ...]:
        groups = []
        for i, size in enumerate(self.channels):
            is_last = i == len(self.channels) - 1
            consumer = "head.weight" if is_last else f"convs.{i + 1}.weight"
            produced = [f"convs.{i}.weight", f"convs.{i}.bias", f"norms.{i}.running_mean", f"norms.{i}.running_var"]
            axes = [GroupAxis(name, 0) for name in produced]
            axes += [GroupAxis(f"norms.{i}.{name}", 0, scale_power=1) for name in ("weight", "bias")]
            axes.append(GroupAxis(consumer, 1, scale_power=-1))
            groups.append(SymmetryGroup(f"channels.{i}", size, tuple(axes)))
        return tuple(groups)


class ByteTransformer(nn.Module):
    """Decoder-only transformer over bytes, pre-norm, learned positions: (B, L) integers -> (B, L, vocabulary) logits.

    Args:
        vocabulary: number of different symbols.
        context: longest L.
        width: E.
        num_blocks: residual blocks.
        num_heads: H, a divisor of `width`.
    """

    def __init__(
        self, vocabulary: int = 128, context: int = 64, width: int = 64, num_blocks: int = 2, num_heads: int = 4
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got {width} and {num_heads}")
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, num_heads, causal=True) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[-1], device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)  # (B, L, E)
        return self.head(self.norm(self.blocks(x)))  # (B, L, vocabulary)

    def symmetry_groups(self) -> tuple[SymmetryGroup, ...]:
        blocks = enumerate(cast("list[TransformerBlock]", list(self.blocks)))
        return tuple(group for i, block in blocks for group in block.symmetry_groups(f"blocks.{i}."))


class TransformerBlock(nn.Module):
    """Residual attention and MLP sublayers: (B, L, E) -> (B, L, E). Query, key and value are separate matrices."""

    def __init__(self, width: int, num_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        query, key, value = (self._heads(matrix(normed)) for matrix in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)  # (B, H, L, E / H)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))

    def symmetry_groups(self, prefix: str = "") -> tuple[SymmetryGroup, ...]:
        """Attention heads and MLP units, with slot names that begin with `prefix`."""
        head_width = self.query.out_features // self.num_heads
        head_axes = [
            GroupAxis(f"{prefix}{matrix}.{part}", 0, head_width)
            for matrix in ("query", "key", "value")
            for part in ("weight", "bias")
        ]
        head_axes.append(GroupAxis(f"{prefix}output.weight", 1, head_width))
        unit_axes = (
            GroupAxis(f"{prefix}up.weight", 0),
            GroupAxis(f"{prefix}up.bias", 0),
            GroupAxis(f"{prefix}down.weight", 1),
        )
        return (
            SymmetryGroup(f"{prefix}heads", self.num_heads, tuple(head_axes)),
            SymmetryGroup(f"{prefix}units", self.up.out_features, unit_axes),
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _checked_activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {name!r}")
    return name
