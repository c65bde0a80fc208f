"""What runs N networks of one task at once: the interface of its three implementations, and what they share.

MLPs run through functions that are written out by hand (`zoo.tasks.batched_mlp`), other modules through `torch.func`
(`zoo.tasks.vmapped_module`), and what `torch.func` cannot run one after another (`zoo.tasks.looped_module`).
`zoo.tasks.trial` chooses.

Legend: N networks, P numbers of one network (T of them trainable), B examples, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from zoo.networks.base import with_own_memory
from zoo.networks.layout import ParamLayout
from zoo.networks.randomness import seeded_module
from zoo.tasks.objectives import Objective


class Backend(Protocol):
    """Networks (N, P) of one layout on inputs (B, ...) and targets that all share, or with N in front."""

    @property
    def is_compilable(self) -> bool:
        """Whether `torch.compile` makes one program of a training step."""
        ...

    def outputs(self, params: Tensor, inputs: Tensor) -> Tensor:
        """Outputs (N, B, ..., K) in evaluation mode, differentiable in `params`."""
        ...

    def loss(self, params: Tensor, inputs: Tensor, targets: Tensor, stream: Tensor | None = None) -> Tensor:
        """Losses (N,) in training mode, differentiable in `params`; buffers are left as they are.

        Random numbers, as of dropout, are drawn from a stream (4,) that networks share, or from streams (N, 4); without
        one from torch's global generator, as in the module itself.
        """
        ...

    def loss_and_grad(
        self, params: Tensor, inputs: Tensor, targets: Tensor, stream: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Losses (N,) and their gradients (N, T); buffers in `params` (BatchNorm statistics) advance in place."""
        ...

    def base(self) -> dict[str, Tensor]:
        """What all networks share in every step, by name, on the CPU; perhaps nothing."""
        ...

    def to(self, device: torch.device | str) -> Backend:
        """The same for networks on another device."""
        ...


@dataclass(frozen=True)
class Networks:
    """What is run: networks of one module, and what is asked of them.

    Args:
        build: makes the module.
        layout: of the module.
        objective: whose losses are taken.
        input_ndim, target_ndim: dims of inputs and targets that all networks share; own ones have one more.
    """

    build: Callable[[], nn.Module]
    layout: ParamLayout
    objective: Objective
    input_ndim: int
    target_ndim: int

    def module(self, seed: int = 0) -> nn.Module:
        """The module as it is built under a seed, on the CPU; only what is frozen may share memory with others."""
        return with_own_memory(seeded_module(self.build, seed))

    def base_of(self, module: nn.Module) -> dict[str, Tensor]:
        """What all networks share, by name, on the CPU, as a module of theirs has it."""
        tensors = module.state_dict() if self.layout.base is not None else {}
        return {slot.name: tensors[slot.name].cpu() for slot in self.layout.base or ()}


def output_tensor(output: object) -> Tensor:
    """The one tensor that a forward pass gives: what it returns, or what is called `logits` in that.

    It is float32 where it was computed in less: losses are not.

    Raises:
        ValueError: if there is no such tensor, or several.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(logits, Tensor):
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    content = f" of {list(output)}" if isinstance(output, Mapping) else ""
    content = f" of {len(output)}" if isinstance(output, tuple | list) else content
    raise ValueError(
        f"the module must return one tensor, or something that holds one called 'logits'; got {type(output).__name__}"
        f"{content}; return only what the objective takes"
    )


def first_line(error: Exception) -> str:
    """The first sentence of an error message, which those of torch.func put their pages after."""
    line = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
    return line if len(line) <= 300 else f"{line[:297]}..."
