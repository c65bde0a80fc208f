"""Loss and error of N networks over whole splits, in chunks whose activations fit a budget of memory.

Legend: N networks, P numbers of one network, B examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from zoo.tasks.datasets import Split
from zoo.tasks.objectives import Objective

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


def pairs_at_once(bytes_per_example: int, device: torch.device, memory_budget: int | None = None) -> int:
    """How many networks, times examples, to run together; by default in 4 MiB on a CPU, 256 MiB elsewhere."""
    if memory_budget is None:
        memory_budget = _MEMORY_BUDGETS.get(device.type, _OTHER_MEMORY_BUDGET)
    return max(1, memory_budget // bytes_per_example)


def evenly_chosen(split: Split, most: int) -> Split:
    """At most this many examples of a split, always the same; the split itself if it has no more."""
    if len(split) <= most:
        return split
    chosen = torch.linspace(0, len(split) - 1, most, dtype=torch.float64, device=split.inputs.device).long()
    return Split(split.inputs[chosen], split.targets[chosen])


def mean_loss_and_error(
    params: Tensor,
    data: Split,
    predict: Callable[[Tensor, Tensor], Tensor],
    targets_for: Callable[[Tensor, int], Tensor],
    objective: Objective,
    *,
    pairs: int,
) -> tuple[Tensor, Tensor]:
    """Loss and error, each (N,), over all examples of `data`.

    Args:
        params: (N, P).
        data: the examples.
        predict: outputs of networks on inputs, as `Task.predict`.
        targets_for: targets as the objective takes them, as `Task.targets_for`.
        objective: loss and error.
        pairs: networks, times examples, to run together.
    """
    num_examples = min(len(data), pairs)
    num_networks = max(1, pairs // num_examples)
    loss, error = params.new_zeros(len(params)), params.new_zeros(len(params))
    for first in range(0, len(params), num_networks):
        networks = slice(first, first + num_networks)
        for start in range(0, len(data), num_examples):
            inputs = data.inputs[start : start + num_examples]
            targets = targets_for(data.targets[start : start + num_examples], len(params))
            if targets.ndim > data.targets.ndim:  # networks have targets of their own
                targets = targets[networks]
            outputs = predict(params[networks], inputs)
            share = len(inputs) / len(data)
            loss[networks] += share * objective.loss(outputs, targets)
            error[networks] += share * objective.error(outputs, targets)
    return loss, error
