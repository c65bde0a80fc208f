"""Where tensors are computed: the one answer to `device=` of every command and function."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

_KINDS: Final = ("cuda", "xpu", "mps")


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name, with the index that its tensors will have.

    Args:
        name: "auto" for a CUDA or ROCm card if there is one and the CPU if not; "cpu", "cuda", "cuda:1", "mps" and what
            else PyTorch knows. Apple's "mps" has no float64, so it is used only where it is asked for.

    Raises:
        ValueError: if there is no such device; the text names those that there are.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(str(name))
        backend = torch.get_device_module(device)
        count = backend.device_count() if backend.is_available() else 0
    except RuntimeError:  # not a name, or of hardware that this build of PyTorch has no code for
        device, count = None, 0
    if device is None or (device.index or 0) >= count:
        there = ["cpu", *(f"{kind}:{i}" for kind in _KINDS for i in range(_count(kind)))]
        raise ValueError(f"there is no device {str(name)!r} on this machine; choose one of {there}, or 'auto'")
    if device.type == "cpu":
        return torch.device("cpu")
    return device if device.index is not None else torch.device(device.type, backend.current_device())


def sent(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on that device, for which nothing waits; but what comes to the CPU could be read before it is there."""
    return x.to(device, dtype, non_blocking=device.type != "cpu")


def widened(x: Tensor) -> Tensor:
    """A tensor in the widest floating point type of its device."""
    return x.to(widest_float(x.device))


@lru_cache(maxsize=8)
def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none, as Apple's."""
    try:
        return torch.zeros((), dtype=torch.float64, device=device).dtype
    except TypeError:
        return torch.float32


@lru_cache(maxsize=8)
def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Whether a CPU or CUDA device has matrix units for bfloat16; without them products in it are slow."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _count(kind: str) -> int:
    backend = torch.get_device_module(kind)
    return backend.device_count() if backend.is_available() else 0
