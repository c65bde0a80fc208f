"""Modules that draw random numbers, dropout above all, made to draw them from a stream of their own.

What a module does stays what it is: only where its numbers come from changes. So a run's masks follow from its seed and
the step, and the module in a plain loop, run under the same mode, computes the same as in a population.

Legend: B examples, C channels, H heads, L queries, S keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zoo.networks.counter_rng import CounterRng

_ALPHA: Final = 1.7580993408473766  # SELU's scale times its alpha: what alpha dropout sets units to, negated


class DrawnFromStream(TorchFunctionMode):
    """While it lasts, torch's random functions draw from a stream: dropout of all kinds, bernoulli, rand and randn.

    Attributes:
        rng: what is drawn from; counts the calls.

    Args:
        stream: (4,), see `zoo.networks.counter_rng`.
    """

    def __init__(self, stream: Tensor) -> None:
        super().__init__()
        self.rng = CounterRng(stream)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func is F.multi_head_attention_forward:  # its parts draw, and see no mode unless it is entered again
            with self:
                return _multi_head_attention_forward(*args, **named)
        draw = _DRAWN.get(func)
        if draw is None or named.get("generator") is not None:
            return func(*args, **named)
        return draw(self.rng, *args, **named)


# Its first line asks whether a mode is to handle it, which one just did.
_multi_head_attention_forward: Final = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda tensors: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


def _dropout(rng: CounterRng, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return _masked(rng, input, p, input.shape, training=training, inplace=inplace)


def _dropout_of_channels(num_dims: int) -> Callable[..., Tensor]:
    def dropout(rng: CounterRng, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        has_examples = input.ndim == num_dims + 2 or num_dims == 2  # torch takes (C, h, w) for (B, C, L)
        kept = 2 if has_examples else 1
        mask_shape = (*input.shape[:kept], *[1] * (input.ndim - kept))
        return _masked(rng, input, p, mask_shape, training=training, inplace=inplace)

    return dropout


def _masked(
    rng: CounterRng, input: Tensor, p: float, mask_shape: Sequence[int], *, training: bool, inplace: bool
) -> Tensor:
    if _changes_nothing(p, training):
        return input
    factors = rng.keeps(1 - p, mask_shape).to(input.dtype) * (1 / (1 - p) if p < 1 else 0.0)
    return input.mul_(factors) if inplace else input * factors


def _alpha_dropout(
    rng: CounterRng, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Source: Klambauer et al. 2017, self-normalizing neural networks."""
    return _alpha_masked(rng, input, p, input.shape, training=training, inplace=inplace)


def _feature_alpha_dropout(
    rng: CounterRng, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    mask_shape = (*input.shape[:2], *[1] * (input.ndim - 2))
    return _alpha_masked(rng, input, p, mask_shape, training=training, inplace=inplace)


def _alpha_masked(
    rng: CounterRng, input: Tensor, p: float, mask_shape: Sequence[int], *, training: bool, inplace: bool
) -> Tensor:
    if _changes_nothing(p, training):
        return input
    kept = rng.keeps(1 - p, mask_shape).to(input.dtype)
    scale = 1 / math.sqrt((_ALPHA**2 * p + 1) * (1 - p)) if p < 1 else 0.0
    factors, shift = scale * kept, _ALPHA * scale * (kept - 1 + p)
    return input.mul_(factors).add_(shift) if inplace else input * factors + shift


def _changes_nothing(p: float, training: bool) -> bool:
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability must be from 0 to 1, got {p}")
    return not training or p == 0


def _attention(  # noqa: PLR0917 (as torch calls it)
    rng: CounterRng,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if dropout_p == 0:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **options)
    identity = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device).expand(*key.shape[:-1], -1)
    weights = F.scaled_dot_product_attention(query, key, identity, attn_mask, **options)  # (B, H, L, S)
    if enable_gqa:
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    return _dropout(rng, weights, dropout_p) @ value


def _bernoulli(rng: CounterRng, input: Tensor, p: float | None = None, **options: object) -> Tensor:
    chance = input if p is None else p
    return (rng.uniform(input.shape) < chance).to(input.dtype)


def _bernoulli_(rng: CounterRng, input: Tensor, p: float | Tensor = 0.5, **options: object) -> Tensor:
    return input.copy_(rng.uniform(input.shape) < p)


def _rand(rng: CounterRng, *size: Any, **options: Any) -> Tensor:
    return _as_asked(rng.uniform, size, **options)


def _randn(rng: CounterRng, *size: Any, **options: Any) -> Tensor:
    return _as_asked(rng.normal, size, **options)


def _as_asked(
    draw: Callable[[Sequence[int]], Tensor],
    sizes: tuple[Any, ...],
    size: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    **options: object,
) -> Tensor:
    """Numbers of the size and type that a factory of torch was asked for; they are on the stream's device."""
    shape = size if size is not None else sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    return draw(shape).to(dtype or torch.get_default_dtype())


def _rand_like(rng: CounterRng, input: Tensor, *, dtype: torch.dtype | None = None, **options: object) -> Tensor:
    return rng.uniform(input.shape).to(dtype or input.dtype)


def _randn_like(rng: CounterRng, input: Tensor, *, dtype: torch.dtype | None = None, **options: object) -> Tensor:
    return rng.normal(input.shape).to(dtype or input.dtype)


def _uniform_(rng: CounterRng, input: Tensor, low: float = 0, high: float = 1, **options: float) -> Tensor:
    low, high = options.get("from", low), options.get("to", high)
    return input.copy_(low + (high - low) * rng.uniform(input.shape))


def _normal_(rng: CounterRng, input: Tensor, mean: float = 0, std: float = 1, **options: object) -> Tensor:
    return input.copy_(mean + std * rng.normal(input.shape))


_DRAWN: Final[Mapping[Callable[..., Any], Callable[..., Tensor]]] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    F.dropout1d: _dropout_of_channels(1),
    F.dropout2d: _dropout_of_channels(2),
    F.dropout3d: _dropout_of_channels(3),
    F.alpha_dropout: _alpha_dropout,
    F.feature_alpha_dropout: _feature_alpha_dropout,
    F.scaled_dot_product_attention: _attention,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    Tensor.bernoulli_: _bernoulli_,
    torch.rand: _rand,
    torch.rand_like: _rand_like,
    Tensor.uniform_: _uniform_,
    torch.randn: _randn,
    torch.randn_like: _randn_like,
    Tensor.normal_: _normal_,
}
