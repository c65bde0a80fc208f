"""What tells a task of your own from others: what its module is made of, and what module and objective compute.

Two modules may look the same and compute different things: a changed `forward`, another function in a closure, other
numbers in an objective. So a fixed network is run on fixed examples in float64, whose results have all the digits that
are kept here in common on all machines.

Legend: P numbers of one network, B examples.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from zoo.networks.counter_rng import streams_of
from zoo.networks.module_randomness import DrawnFromStream
from zoo.tasks.backend import Networks, output_tensor
from zoo.tasks.objectives import Objective


def structure(module: nn.Module) -> str:
    """Hash of the module's representation, that is of the kinds and sizes of its parts."""
    return f"sha256:{hashlib.sha256(repr(module).encode()).hexdigest()}"


@torch.no_grad()
def behaviour(networks: Networks, inputs: Tensor, targets: Tensor, *, is_random: bool = False) -> str:
    """A line of numbers: mean size of initial parameters, root mean square of outputs, loss and error.

    Args:
        networks: of which the one of seed 0 is taken.
        inputs: (B, ...) examples.
        targets: theirs, as the objective takes them.
        is_random: whether the loss in training is added, which depends on how much is dropped.
    """
    layout, objective = networks.layout, networks.objective
    initial = layout.flatten(networks.module()).double()
    fixed = initial.clone()
    stream = np.random.RandomState(0)  # which never changes
    for slot in layout:
        if slot.kind == "param" and len(slot.shape) > 1:  # vectors keep their zeros and ones
            fixed[slot.span] = torch.from_numpy(stream.uniform(-1, 1, slot.numel)) * slot.fan_in**-0.5
    module = networks.module().eval()
    module.load_state_dict(layout.unflatten(fixed), strict=False)  # the base stays
    digits = 6
    try:
        computed = _results(module.double(), objective, _doubled(inputs), _doubled(targets), is_random)
    except (RuntimeError, TypeError):  # a module that insists on float32
        digits = 3
        computed = _results(module.float(), objective, inputs, targets, is_random)
    trainable = initial[: layout.num_trainable]
    size = trainable.abs().mean().item() if len(trainable) else 0.0
    named = {"init": f"{size:.4g}"}
    named |= {name: f"{0.0 if abs(value) < 1e-9 else value:.{digits}g}" for name, value in computed.items()}
    return ", ".join(f"{name} {value}" for name, value in named.items())


def _results(
    module: nn.Module, objective: Objective, inputs: Tensor, targets: Tensor, is_random: bool
) -> dict[str, float]:
    outputs = output_tensor(module(inputs))[None]
    results = {
        "outputs": outputs.double().square().mean().sqrt().item(),
        "loss": objective.loss(outputs, targets).item(),
        "error": objective.error(outputs, targets).item(),
    }
    if is_random:
        with DrawnFromStream(streams_of([0])[0]):
            outputs = output_tensor(module.train()(inputs))[None]
        results["training loss"] = objective.loss(outputs, targets).item()
    return results


def _doubled(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values
