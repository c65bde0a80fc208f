"""In what precision a population computes: the names of Lightning's `Trainer(precision=...)`, and TF32.

Parameters, optimizer state and snapshots are float32 whatever the precision, and so is evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PRECISIONS: Final = ("32", "tf32", "bf16-mixed")
_CONVOLUTIONS: Final = (
    *(F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ValueError unless there is such a precision on that device.

    Args:
        precision: "32": float32, as torch is set up. "tf32": products of matrices in TensorFloat-32, on CUDA.
            "bf16-mixed": forward and backward pass under autocast to bfloat16.
        device: of the task.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision 'tf32' is of CUDA devices, but the task is on {device}; use '32' or 'bf16-mixed'")


@contextmanager
def gradients_in(precision: str, device: torch.device) -> Iterator[None]:
    """While it lasts, forward and backward passes compute in that precision; it can be compiled."""
    if precision != "bf16-mixed":
        yield
        return
    # A cast that is cached would keep the tensors of one vmap for the next.
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False), _WhatAutocastMisses(torch.bfloat16):
        yield


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """While it lasts, float32 products of matrices are computed in that precision; it cannot be compiled.

    Of PyTorch's two ways to say so the older is asked only where the program has not used the newer one, by which it
    may not be asked any more.
    """
    if precision != "tf32" or torch.backends.cuda.matmul.fp32_precision == "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _WhatAutocastMisses(TorchFunctionMode):
    """Casts what `torch.vmap` takes apart before autocast sees it: convolutions, and inputs of BatchNorm to float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in _CONVOLUTIONS:
            args = tuple(_cast(value, self.dtype) for value in args)
            named = {name: _cast(value, self.dtype) for name, value in named.items()}
        elif func is F.batch_norm:
            args = (_cast(args[0], torch.float32), *args[1:])
        return func(*args, **named)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
