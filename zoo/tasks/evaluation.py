"""How much is evaluated at once, so that activations fit a budget of memory, and which examples stand for a split.

Legend: B examples.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from zoo.devices import sent
from zoo.tasks.dataset import Split

# Bytes of activations in one chunk, by kind of device: on a CPU what its caches hold.
_MEMORY_BUDGETS: Final = {"cpu": 4 * 2**20}
_OTHER_MEMORY_BUDGET: Final = 256 * 2**20


def activation_bytes(module: nn.Module, inputs: Tensor) -> int:
    """Size of all activations of one network on inputs (B, ...), counted by running the module once."""
    sizes: list[int] = []

    def count(module: nn.Module, inputs: object, output: object) -> None:
        parts = output if isinstance(output, tuple | list) else (output,)
        sizes.extend(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))

    parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]  # they take no hooks
    hooks = [part.register_forward_hook(count) for part in parts]
    with torch.no_grad():
        module(inputs)
    for hook in hooks:
        hook.remove()
    return max(1, sum(sizes))


def pairs_at_once(
    bytes_per_example: int, device: torch.device, memory_budget: int | None = None, *, network_bytes: int = 0
) -> int:
    """How many networks, times examples, to run together.

    By default in 4 MiB on a CPU, 256 MiB elsewhere, or as much as one network takes.
    """
    if memory_budget is None:
        memory_budget = max(network_bytes, _MEMORY_BUDGETS.get(device.type, _OTHER_MEMORY_BUDGET))
    return max(1, memory_budget // bytes_per_example)


def evenly_chosen(split: Split, most: int) -> Split:
    """At most this many examples of a split, always the same; the split itself if it has no more."""
    if len(split) <= most:
        return split
    chosen = even_indices(len(split), most, split.inputs.device)
    return Split(split.inputs[chosen], split.targets[chosen])


def even_indices(count: int, most: int, device: torch.device) -> Tensor:
    """Indices of at most this many of `count` examples, evenly spaced from the first to the last."""
    if count <= most:
        return torch.arange(count, device=device)
    return sent(torch.linspace(0, count - 1, most, dtype=torch.float64).long(), device)
