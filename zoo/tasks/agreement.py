"""A population does what the plain module does in a plain loop, or is refused: found out by trying, on two networks.

What runs a population is chosen by comparing one training step under `torch.func` with that of the module itself.
Whether a module can be a population at all depends on what it does beside its parameters and persistent buffers, which
are all that a zoo keeps of it: it must draw no random numbers, and a reloaded network must train as before.

The architectures of this package are not tried: the tests hold them to their modules.

Legend: N = 2 networks, P numbers of one network, B examples.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import ParamLayout
from zoo.tasks.backend import Backend, first_line, output_tensor, seeded_module
from zoo.tasks.batched_mlp import BatchedMLP
from zoo.tasks.looped_module import LoopedModule
from zoo.tasks.objectives import Objective
from zoo.tasks.vmapped_module import VmappedModule

NUM_TRIED: Final = 8  # examples, at most
_NUM_STEPS: Final = 4
_OWN_ARCHITECTURES: Final = (MLP, CNN, ByteTransformer)
# Of a tensor's norm, and of the norm of all gradients: float32 through the BatchNorm of a few examples loses digits,
# and biases before it have no gradient but rounding. What is wrong is wrong by far more.
_RELATIVE_TOLERANCE: Final = 1e-2
_ABSOLUTE_TOLERANCE: Final = 1e-4


def examples_to_try(module: nn.Module, inputs: Tensor) -> Tensor:
    """Indices (B,) of examples on which a module shows what it does: those with padding first, if it knows padding."""
    symbols = {getattr(part, "padding_idx", None) for part in module.modules()} - {None}
    has_padding = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    if symbols and not inputs.is_floating_point():
        has_padding = torch.isin(inputs, torch.tensor(sorted(symbols), device=inputs.device)).flatten(1).any(1)
    return has_padding.logical_not().to(torch.uint8).argsort(stable=True)[:NUM_TRIED]


def choose_backend(
    build: Callable[[], nn.Module],
    layout: ParamLayout,
    objective: Objective,
    *,
    batches: Sequence[tuple[Tensor, Tensor]],
    input_ndim: int,
    target_ndim: int,
) -> tuple[Backend, str | None]:
    """The fastest way to run populations of a module that gives what the module gives, and why if that is slow.

    Args:
        build: makes the module.
        layout: of the module.
        objective: whose losses are taken.
        batches: inputs and targets to try: shared by both networks, and with own ones for each.
        input_ndim, target_ndim: dims of inputs and targets that networks share; own ones have one more.

    Raises:
        ValueError: if the module cannot be trained on the data at all.
    """
    module = seeded_module(build, 0)
    if type(module) is MLP:
        return BatchedMLP(layout, module.activation, objective, input_ndim), None
    device = batches[0][0].device
    if type(module) in _OWN_ARCHITECTURES:
        return VmappedModule(build, layout, objective, input_ndim=input_ndim, device=device), None
    looped = LoopedModule(build, layout, objective, input_ndim=input_ndim, target_ndim=target_ndim, device=device)
    params = torch.stack([layout.flatten(seeded_module(build, seed)) for seed in (1, 2)]).to(device)
    with preserved_randomness(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.func about operations that it runs one by one
        try:
            trains = not draws_random_numbers(module.to(device).train(), batches[0][0])
            expected = _behaviour(looped, layout, params, batches, trains=trains)
        except Exception as error:  # modules may run into anything
            raise ValueError(f"the module cannot be trained: {first_line(error)}") from error
        try:
            vmapped = VmappedModule(build, layout, objective, input_ndim=input_ndim, device=device)
            found = _behaviour(vmapped, layout, params, batches, trains=trains)
        except Exception as error:  # in torch.func, too
            return looped, f"torch.func cannot run the module ({first_line(error)})"
    different = _different(found, expected)
    if different:
        return looped, f"torch.func gives another {different[0]} than the module"
    return vmapped, None


def why_not_a_population(build: Callable[[], nn.Module], inputs: Tensor) -> str | None:
    """Why runs of a module would not follow from their seeds and parameters, or None if they do.

    A module makes a few forward passes as in training, and one as in evaluation. A second one, built under another seed
    and loaded with the state of the first before each, must do the same.

    Args:
        build: makes the module.
        inputs: (B, ...).
    """
    first, second, third = (seeded_module(build, seed).to(inputs.device).train() for seed in (1, 2, 1))
    if type(first) in _OWN_ARCHITECTURES:
        return None
    states = zip(first.state_dict().values(), third.state_dict().values(), strict=True)
    if not all(torch.equal(one, other) for one, other in states):
        return "its initial values do not follow from torch.manual_seed; draw them from torch's own generator"
    if draws_random_numbers(second, inputs):  # and whatever it counts by itself, it is now ahead of the first in
        return "it draws random numbers while it trains (dropout?), so its runs would not follow from their seeds"
    with preserved_randomness(), torch.no_grad():
        for step in range(_NUM_STEPS):
            second.load_state_dict(first.state_dict())
            is_last = step == _NUM_STEPS - 1
            got, expected = (output_tensor(module.train(not is_last)(inputs)) for module in (second, first))
            if not torch.allclose(got, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
                break
        else:
            return None
    found = ", ".join(_unsaved_state(first, second)) or "hooks, or random numbers of its own?"
    return (
        f"what it computes depends on more than its parameters and persistent buffers ({found}), so that a reloaded "
        "network would be another; register such tensors as persistent buffers, or leave them out"
    )


def draws_random_numbers(module: nn.Module, inputs: Tensor) -> bool:
    """Whether a forward pass draws from the random generators of torch, NumPy or Python; these stay as they were."""
    with preserved_randomness(), torch.no_grad():
        before = _random_states(inputs.device)
        module(inputs)
        return _random_states(inputs.device) != before


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Leaves the random generators of torch, NumPy and Python as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _random_states(device: torch.device) -> tuple[object, ...]:
    on_device = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None
    _, keys, *rest = np.random.get_state()
    return torch.random.get_rng_state().tolist(), on_device, random.getstate(), np.asarray(keys).tolist(), rest


def _behaviour(
    backend: Backend, layout: ParamLayout, params: Tensor, batches: Sequence[tuple[Tensor, Tensor]], *, trains: bool
) -> list[dict[str, Tensor]]:
    """What networks give on each batch, by name: outputs, and where they can train losses, gradients and new state."""
    results = []
    for inputs, targets in batches:
        with torch.no_grad():
            result = {"output": backend.outputs(params, inputs)}
        if trains:
            state = params.clone()
            result["loss"], grads = backend.loss_and_grad(state, inputs, targets)
            for slot in layout:
                if slot.kind == "param":
                    result[f"gradient of {slot.name!r}"] = grads[:, slot.span]
                result[f"{slot.name!r}"] = state[:, slot.span]
        results.append(result)
    return results


def _different(found: Sequence[dict[str, Tensor]], expected: Sequence[dict[str, Tensor]]) -> list[str]:
    names = []
    for got, wanted in zip(found, expected, strict=True):
        gradients = [value.flatten() for name, value in wanted.items() if name.startswith("gradient")]
        scale = torch.cat(gradients).nan_to_num().norm() if gradients else torch.zeros(())
        for name, value in wanted.items():
            error = (got[name] - value).nan_to_num().norm() + (got[name].isnan() != value.isnan()).sum()
            slack = scale if name.startswith("gradient") else 1.0
            if error > _RELATIVE_TOLERANCE * value.nan_to_num().norm() + _ABSOLUTE_TOLERANCE * slack:
                names.append(name)
    return names


def _unsaved_state(first: nn.Module, second: nn.Module) -> list[str]:
    """Names of tensors and numbers that two modules of one state dict hold differently."""
    saved = set(first.state_dict())
    names = []
    for (prefix, one), other in zip(first.named_modules(), second.modules(), strict=True):
        mine, theirs = ({**vars(module), **module._buffers} for module in (one, other))
        for name, value in mine.items():
            full_name = f"{prefix}.{name}" if prefix else name
            if full_name in saved or name.startswith("_"):
                continue
            if isinstance(value, Tensor | np.ndarray):
                same = np.array_equal(
                    torch.as_tensor(value).detach().cpu(), torch.as_tensor(theirs[name]).detach().cpu()
                )
            else:
                same = not isinstance(value, int | float) or value == theirs.get(name)
            names += [] if same else [repr(full_name)]
    return names
