"""Low-rank adapters on a frozen network: W + s B A with B (O, R) and A (R, I), of which only A and B are trained.

Adapted layers keep the names of their tensors and add `lora_A` and `lora_B` (PEFT's `lora_embedding_A` and `_B` in
embeddings), so the state dict of the network without adapters is that of the base. Many networks with adapters on one
base hold its memory once; in a population the base is one matrix product for all of them. BatchNorm that is frozen
normalises by the base's statistics in training, too, so that an adapter is its factors and nothing else.

Legend: I inputs, O outputs and R rank of an adapted layer.

Sources: Hu et al. 2021, "LoRA" (arXiv 2106.09685), section 4.1; Kalajdzievski 2023, "A rank stabilization scaling
factor" (arXiv 2312.03732), alpha / sqrt(R).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.ambient import torch_defaults
from zoo.networks.base import sharing_copy

SCALINGS: Final[Mapping[str, Callable[[float, int], float]]] = {
    "standard": lambda alpha, rank: alpha / rank,
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),
}


def scale_of(rank: int = 8, alpha: float | None = None, scaling: str = "standard") -> float:
    """Of the products of adapters with such options of `adapt`."""
    return 1.0 if alpha is None else SCALINGS[scaling](alpha, rank)


class LowRank(nn.Module):
    """What adapted layers have in common; `adapt` makes them of ordinary ones."""

    names = ("lora_A", "lora_B")
    scale: float

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """A (R, I), of a convolution (R, I, *kernel), of an embedding (R, symbols); and B (O, R)."""
        down, up = (getattr(self, name) for name in self.names)
        return down, up

    def delta(self) -> Tensor:
        """What the adapter adds to the weight, in its shape."""
        down, up = self.factors
        return self.scale * torch.tensordot(up, down, 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={len(self.factors[0])}, scale={self.scale:g}"


class LowRankLinear(LowRank, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        down, up = self.factors
        return super().forward(x) + F.linear(self.scale * F.linear(x, down), up)


class LowRankEmbedding(LowRank, nn.Embedding):
    names = ("lora_embedding_A", "lora_embedding_B")

    def delta(self) -> Tensor:
        return super().delta().T

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.factors
        return super().forward(x) + F.linear(self.scale * F.embedding(x, down.T, self.padding_idx), up)


class LowRankConv2d(LowRank, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        down, up = self.factors
        inner = self._conv_forward(x, down, None).movedim(-3, -1)  # (..., h, w, R)
        return super().forward(x) + F.linear(self.scale * inner, up).movedim(-1, -3)


_KINDS: Final[Mapping[type[nn.Module], type[LowRank]]] = {
    nn.Linear: LowRankLinear,
    nn.Embedding: LowRankEmbedding,
    nn.Conv2d: LowRankConv2d,
}


class FrozenNorm(nn.Module):
    """BatchNorm that stays in evaluation mode, so that its running statistics are constants of the base."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class FrozenNorm1d(FrozenNorm, nn.BatchNorm1d): ...


class FrozenNorm2d(FrozenNorm, nn.BatchNorm2d): ...


class FrozenNorm3d(FrozenNorm, nn.BatchNorm3d): ...


_NORMS: Final[Mapping[type[nn.Module], type[FrozenNorm]]] = {
    nn.BatchNorm1d: FrozenNorm1d,
    nn.BatchNorm2d: FrozenNorm2d,
    nn.BatchNorm3d: FrozenNorm3d,
}
_PLAIN: Final = {made: plain for plain, made in (*_KINDS.items(), *_NORMS.items())}


@torch_defaults()
def adapt(
    base: nn.Module,
    *,
    rank: int = 8,
    alpha: float | None = None,
    scaling: str = "standard",
    targets: str | Sequence[str] = "*",
    train: str | Sequence[str] = (),
) -> nn.Module:
    """A copy of a network that shares its memory, frozen but for new adapters, which change nothing at first.

    One factor of each adapter is drawn from the CPU's global generator, the other is zero.

    Args:
        base: the network. It is left as it is.
        rank: R of each adapter.
        alpha: numerator of the scale; by default such that the scale is one.
        scaling: "standard" for s = alpha / R, "rslora" for s = alpha / sqrt(R).
        targets: patterns of the names of layers to adapt (`nn.Linear`, `nn.Embedding`, `nn.Conv2d`), such as
            "blocks.*.query" or, at any depth, "query".
        train: patterns of the names of parameters that are trained as well, such as "*.bias" or "head.*".

    Raises:
        ValueError: if a pattern fits nothing, or a layer cannot have an adapter.
    """
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a positive integer, got {rank!r}")
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of {sorted(SCALINGS)}, got {scaling!r}")
    scale = scale_of(rank, alpha, scaling)
    adapted = sharing_copy(base).requires_grad_(False)
    layers = {name: part for name, part in adapted.named_modules() if type(part) in _KINDS}
    for name in _fitting(targets, layers, "layer"):
        _check_layer(adapted, name)
        _add_adapter(layers[name], rank, scale)
    named = adapted.named_parameters(remove_duplicate=False)
    params = {name: param for name, param in named if not param.requires_grad}
    trained = {
        id(params[name]): nn.Parameter(params[name].detach().clone()) for name in _fitting(train, params, "parameter")
    }
    for part in adapted.modules():  # tied parameters stay tied
        for name, param in part._parameters.items():
            part._parameters[name] = trained.get(id(param), param)
        if type(part) in _NORMS and not any(param.requires_grad for param in part.parameters()):
            part.__class__ = _NORMS[type(part)]
            part.eval()
    return adapted


def merge(adapted: nn.Module) -> nn.Module:
    """The same network with ordinary layers of weight W + s B A; new memory for these weights, the rest is shared."""
    merged = sharing_copy(adapted)
    for part in merged.modules():
        if isinstance(part, LowRank):
            weight: Any = part.weight
            part.weight = nn.Parameter((weight + part.delta()).detach(), requires_grad=weight.requires_grad)
            for name in part.names:
                delattr(part, name)
        part.__class__ = _PLAIN.get(type(part), type(part))
    return merged


def adapted_layers(network: nn.Module) -> dict[str, LowRank]:
    """Layers of a network whose adapters are trained, by name."""
    return {
        name: part
        for name, part in network.named_modules()
        if isinstance(part, LowRank) and part.factors[0].requires_grad
    }


def _fitting(patterns: str | Sequence[str], names: Mapping[str, object], what: str) -> list[str]:
    """Names that patterns fit, in the order of the network."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    fits = {
        pattern: [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        for pattern in patterns
    }
    if missing := [pattern for pattern, found in fits.items() if not found]:
        raise ValueError(f"{missing} fits no {what} that can be adapted; there are {list(names)}")
    return [name for name in names if any(name in found for found in fits.values())]


def _check_layer(network: nn.Module, name: str) -> None:
    layer, around = network.get_submodule(name), network.get_submodule(name.rpartition(".")[0])
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        raise ValueError(f"{name!r} is a convolution of {layer.groups} groups, whose adapter would be no product B A")
    if isinstance(around, nn.TransformerEncoderLayer):
        raise ValueError(
            f"{name!r} is passed over by nn.TransformerEncoderLayer in evaluation; leave it out of targets"
        )


def _add_adapter(layer: nn.Module, rank: int, scale: float) -> None:
    """Make an ordinary layer a low-rank one, in place."""
    weight: Any = layer.weight
    is_embedding = isinstance(layer, nn.Embedding)
    outputs, inputs = (weight.shape[1], weight.shape[:1]) if is_embedding else (weight.shape[0], weight.shape[1:])
    down, up = (weight.new_zeros(shape, requires_grad=False) for shape in ((rank, *inputs), (outputs, rank)))
    drawn = torch.empty((up if is_embedding else down).shape)
    (nn.init.normal_ if is_embedding else _init_uniform)(drawn)
    (up if is_embedding else down).copy_(drawn)
    layer.__class__ = kind = _KINDS[type(layer)]
    for name, value in zip(kind.names, (down, up), strict=True):
        setattr(layer, name, nn.Parameter(value))
    layer.scale = scale  # type: ignore[assignment]


def _init_uniform(tensor: Tensor) -> Tensor:
    return nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
