"""Torch as it is by itself: what a program has set for all of it does not change what this package computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

_AUTOCAST_DEVICES: Final = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def torch_defaults(dtype: torch.dtype | None = torch.float32) -> Iterator[None]:
    """While it lasts, tensors are made on the CPU and in `dtype` unless told otherwise, and there is no autocast.

    Nor is there inference mode, whose tensors cannot be trained; but under `torch.no_grad` it stays.

    Args:
        dtype: that new tensors of real numbers have; None for that of the program.
    """
    with ExitStack() as stack:
        if dtype is not None and torch.get_default_dtype() != dtype:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(dtype)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                # its cache of weights, which nothing empties inside, would outlive their updates
                stack.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        yield


@dataclass(frozen=True)
class BuiltIn:
    """What builds a module, always under one default dtype."""

    dtype: torch.dtype
    build: Callable[[], nn.Module]

    def __call__(self) -> nn.Module:
        with torch_defaults(self.dtype):
            return self.build()
