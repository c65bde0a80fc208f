"""Time and memory of an action, on whatever device it computes.

A GPU works on while Python goes ahead, so a clock is read only after waiting for it. Memory is what PyTorch has
allocated on a GPU; on the CPU it is the resident size of the process.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def use(device: torch.device) -> None:
    """Make it the device that `torch.cuda` means where none is named, as the functions below do."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    torch.get_device_module(device).synchronize()


def seconds(
    action: Callable[[], object], device: torch.device, num_repeats: int, *, by_cpu: bool = False
) -> list[float]:
    """Wall time of each repeat, after one that is not counted; CPU time of the process if `by_cpu`."""
    clock = time.process_time if by_cpu else time.perf_counter
    times = []
    for _ in range(num_repeats + 1):
        synchronize(device)
        began = clock()
        action()
        synchronize(device)
        times.append(clock() - began)
    return times[1:]


def forget_peak(device: torch.device) -> None:
    """Let `peak_bytes` count from now on, where the system can (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif device.type == "cpu" and STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Most memory in use since `forget_peak`; on Apple's GPUs, which keep no peak, what the driver holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if STATUS.exists():
        return _status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def used_bytes(device: torch.device) -> int:
    """Memory in use now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return _status_bytes("VmRSS") if STATUS.exists() else peak_bytes(device)


def _status_bytes(field: str) -> int:
    return int(next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith(field))) * 1024
