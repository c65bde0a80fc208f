"""A module is tried before it is used: can it be run, what runs it fastest, and would its runs repeat?

A population does what the plain module does in a plain loop, or is refused: found out by trying, on two networks. What
runs a population is chosen by comparing one training step under `torch.func` with that of the module itself; large
networks gain nothing from `torch.func`. Whether a
module can be a population at all depends on what it does beside its parameters and persistent buffers, which are all
that a zoo keeps of it: a stream must give its random numbers, and a reloaded network must train as before.

The architectures of this package are not tried: the tests hold them to their modules.

Legend: N = 2 networks, P numbers of one network, B examples, K outputs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.base import shared_names, with_own_memory
from zoo.networks.counter_rng import at
from zoo.networks.layout import ParamLayout, low_rank_groups
from zoo.networks.low_rank import holds
from zoo.networks.module_randomness import DrawnFromStream
from zoo.networks.randomness import draws_random_numbers, preserved_randomness, seeded_module
from zoo.tasks.backend import Backend, Networks, first_line, output_tensor
from zoo.tasks.batched_mlp import BatchedMLP
from zoo.tasks.checks import described
from zoo.tasks.looped_module import LoopedModule
from zoo.tasks.vmapped_module import VmappedModule

_NUM_TRIED: Final = 8  # examples, at most
_NUM_STEPS: Final = 4
_OWN_ARCHITECTURES: Final = (MLP, CNN, ByteTransformer)
# Of a tensor's norm, and of the norm of all gradients: float32 through the BatchNorm of a few examples loses digits,
# and biases before it have no gradient but rounding. What is wrong is wrong by far more.
_RELATIVE_TOLERANCE: Final = 1e-2
_ABSOLUTE_TOLERANCE: Final = 1e-4
# What torch.func says, each time and in many lines, of an operator that it runs for one network after another.
_SLOW_OPERATOR: Final = re.compile(r"There is a performance drop because we .* the batching rule for (\S+?)\. ")


class Trial(NamedTuple):
    """What trying a module has shown.

    Attributes:
        backend: the fastest that gives what the module gives.
        slow: why that is slow, in words; None if it is not.
        flaw: why runs would not follow from their seeds and parameters, in words; None if they do.
        is_random: whether the module draws random numbers in training.
        unused: trainable parameters of which the loss is no function, as torch's optimizers would leave them.
    """

    backend: Backend
    slow: str | None = None
    flaw: str | None = None
    is_random: bool = False
    unused: tuple[str, ...] = ()


def checked_module(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that `build` makes under seed 0; ValueError unless it is a new one, of which something is trained."""
    module = seeded_module(build, 0)
    if not isinstance(module, nn.Module):
        raise ValueError(f"build must return a module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError("build must return the module itself, got one compiled by torch.jit; leave that out")
    trained = {id(param) for param in module.parameters() if param.requires_grad}
    if (again := seeded_module(build, 0)) is module or not trained.isdisjoint(map(id, again.parameters())):
        raise ValueError("build must make a new module each time it is called, got the same trained parameters twice")
    lazy = [name for name, param in module.named_parameters() if is_lazy(param)]
    if lazy:
        raise ValueError(f"{lazy} have no size before they have seen data; run the module on an example in build")
    if not any(param.numel() for param in module.parameters()):
        raise ValueError("the module has no parameters that could be trained")
    if not any(param.numel() for param in module.parameters() if param.requires_grad):
        raise ValueError("all parameters of the module are frozen (requires_grad=False), so nothing would be trained")
    return module


def examples_to_try(module: nn.Module, inputs: Tensor) -> Tensor:
    """Indices (B,) of examples on which a module shows what it does: those with padding first, if it knows padding."""
    symbols = {getattr(part, "padding_idx", None) for part in module.modules()} - {None}
    has_padding = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    if symbols and not inputs.is_floating_point():
        has_padding = torch.isin(inputs, torch.tensor(sorted(symbols), device=inputs.device)).flatten(1).any(1)
    return has_padding.logical_not().to(torch.uint8).argsort(stable=True)[:_NUM_TRIED]


def layout_of(build: Callable[[], nn.Module], inputs: Tensor) -> ParamLayout:
    """Layout of what training changes of a module; its `base` is what all networks share.

    Symmetries of low-rank adapters that names suggest are kept if the module, run on the inputs, really has them.

    Args:
        build: makes the module.
        inputs: (B, ...) to run it on.

    Raises:
        ValueError: if frozen parameters depend on the seed.
    """
    module, other = (with_own_memory(seeded_module(build, seed)).to(inputs.device) for seed in (0, 1))
    try:
        shared = shared_names(module, other, inputs)
    except RuntimeError as error:  # modules may run into anything
        raise ValueError(f"the module cannot be trained: {first_line(error)}") from error
    layout = ParamLayout.of(module, shared=shared)
    tensors = module.eval().state_dict()

    def forward(values: dict[str, Tensor]) -> Tensor:
        return output_tensor(functional_call(module, values, (inputs,)))

    low_rank = {group.name for group in low_rank_groups({slot.name: slot.shape for slot in layout})}
    groups = [one for one in layout.groups if one.name not in low_rank or holds(forward, tensors, one)]
    return replace(layout, groups=tuple(groups))


@torch.no_grad()
def trial_outputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs (B, ..., K) in evaluation mode on inputs (B, ...).

    Raises:
        ValueError: if there are none, or those for an example depend on the other examples: evaluation goes by parts.
    """
    try:
        outputs = output_tensor(module.eval()(inputs))
    except Exception as error:  # modules may run into anything
        raise ValueError(f"the module cannot be run on inputs {described(inputs)}: {first_line(error)}") from error
    if outputs.ndim < 2 or len(outputs) != len(inputs):
        raise ValueError(
            f"expected outputs ({len(inputs)}, ..., K) for {len(inputs)} examples, got {tuple(outputs.shape)}"
        )
    if not outputs.isfinite().all():
        raise ValueError("the module's outputs are NaN or infinite on some of the first examples, before any training")
    try:
        alone = output_tensor(module(inputs[-1:]))
        depends = alone.shape != outputs[-1:].shape or not torch.allclose(
            alone, outputs[-1:], rtol=1e-2, atol=1e-3 * outputs.abs().max().item()
        )
    except ValueError:  # of normalisation that wants several examples
        depends = True
    if depends:
        raise ValueError(
            "the module's outputs for an example depend on the others, also in evaluation (batch_first=False? "
            "normalisation by the batch? random numbers?); evaluation goes by parts, and would depend on their size"
        )
    return outputs


def try_module(networks: Networks, batches: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Trial:
    """What runs populations of a module, and whether they are what their seeds say.

    Args:
        networks: of that module.
        batches: inputs, targets and streams to try: shared by both networks, and with own ones for each.

    Raises:
        ValueError: if the module cannot be trained on the data at all.
    """
    module, (inputs, _, stream) = networks.module(), batches[0]
    is_whole = networks.layout.base is None
    if type(module) is MLP and is_whole:
        return Trial(BatchedMLP(networks.layout, module.activation, networks.objective, networks.input_ndim))
    if type(module) in _OWN_ARCHITECTURES and is_whole:
        return Trial(VmappedModule(networks, inputs.device))
    params = torch.stack([networks.layout.flatten(networks.module(seed)) for seed in (1, 2)]).to(inputs.device)
    with preserved_randomness(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            looped = LoopedModule(networks, inputs.device)
            is_random = _num_draws(networks, inputs, stream) > 0
            flaw = _why_runs_would_differ(networks, inputs, stream)
            expected = _behaviour(looped, networks.layout, params, batches, trains=flaw is None)
            unused = tuple(looped.unused()) if flaw is None else ()
            if is_random and flaw is None:
                torch.rand(())  # moves the global generator, of which nothing may depend
                again = _behaviour(looped, networks.layout, params, batches, trains=True)
                if _different(again, expected):
                    flaw = (
                        "it draws random numbers again in the backward pass (activation checkpointing?); switch it off"
                    )
                    return Trial(looped, None, flaw, is_random)
        except Exception as error:  # modules may run into anything
            raise ValueError(f"the module cannot be trained: {first_line(error)}") from error
        if networks.layout.is_large:
            return Trial(looped, None, flaw, is_random, unused)
        try:
            vmapped = VmappedModule(networks, inputs.device, is_random=is_random)
            found = _behaviour(vmapped, networks.layout, params, batches, trains=flaw is None)
            different = _different(found, expected)
            replaced = _replaced_buffers(networks, inputs, stream)
            wrong = f"torch.func gives another {different[0]} than the module" if different else None
            wrong = (
                f"torch.func loses what the module puts in place of its buffer {replaced[0]!r}" if replaced else wrong
            )
        except Exception as error:  # in torch.func, too
            wrong = f"torch.func cannot run the module ({first_line(error)})"
    if wrong:
        return Trial(looped, wrong, flaw, is_random, unused)
    operators = {match[1]: None for warning in caught if (match := _SLOW_OPERATOR.search(str(warning.message)))}
    slow = f"torch.func has no batched form of {', '.join(operators)}" if operators else None
    if slow:
        warnings.filterwarnings("ignore", _SLOW_OPERATOR.pattern)  # the task says it, once
    return Trial(vmapped, slow, flaw, is_random, unused)


def _num_draws(networks: Networks, inputs: Tensor, stream: Tensor) -> int:
    """How often the module draws random numbers in a forward pass of training."""
    mode = DrawnFromStream(stream)
    with mode, torch.no_grad():
        networks.module().to(inputs.device).train()(inputs)
    return mode.rng.num_calls


@torch.no_grad()
def _replaced_buffers(networks: Networks, inputs: Tensor, stream: Tensor) -> list[str]:
    """Names of persistent buffers that a forward pass of training does not write to, but exchanges for others."""
    module = networks.module().to(inputs.device).train()
    before = module.state_dict(keep_vars=True)
    _output(module, inputs, stream)
    return [name for name, value in module.state_dict(keep_vars=True).items() if value is not before[name]]


def _why_runs_would_differ(networks: Networks, inputs: Tensor, stream: Tensor) -> str | None:
    """Why runs of a module would not follow from their seeds and parameters, or None if they do.

    A module makes a few forward passes as in training, and one as in evaluation. A second one, built under another seed
    and loaded with the state of the first before each, must do the same.

    Args:
        networks: of that module.
        inputs: (B, ...).
        stream: (4,) from which random numbers are drawn.
    """
    for slot in networks.layout:
        if slot.kind == "param" and slot.dtype in ("float16", "bfloat16"):
            return f"{slot.name!r} is {slot.dtype}, but populations train in float32; build it in float32"
    first, second, third = (networks.module(seed).to(inputs.device).train() for seed in (1, 2, 1))
    states = zip(first.state_dict().values(), third.state_dict().values(), strict=True)
    if not all(torch.equal(one, other) for one, other in states):
        return "its initial values do not follow from torch.manual_seed; draw them from torch's own generator"
    with DrawnFromStream(stream):
        draws_others = draws_random_numbers(second, inputs)  # and what it counts by itself is now ahead of the first's
    if draws_others:
        return (
            "it draws random numbers in training that its runs' seeds do not decide (of NumPy or Python, of recurrent "
            "layers, or by a function of torch other than dropout, bernoulli, rand, randn, uniform_ and normal_)"
        )
    with preserved_randomness(), torch.no_grad():
        for step in range(_NUM_STEPS):
            second.load_state_dict(first.state_dict())
            is_last = step == _NUM_STEPS - 1
            got, expected = (
                _output(module.train(not is_last), inputs, at(stream, step=step)) for module in (second, first)
            )
            if not torch.allclose(got, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
                break
        else:
            return None
    found = ", ".join(_unsaved_state(first, second)) or "hooks, or random numbers of its own?"
    return (
        f"what it computes depends on more than its parameters and persistent buffers ({found}), so that a reloaded "
        "network would be another; register such tensors as persistent buffers, or leave them out"
    )


def _output(module: nn.Module, inputs: Tensor, stream: Tensor) -> Tensor:
    with DrawnFromStream(stream):
        return output_tensor(module(inputs))


def _behaviour(
    backend: Backend,
    layout: ParamLayout,
    params: Tensor,
    batches: Sequence[tuple[Tensor, Tensor, Tensor]],
    *,
    trains: bool,
) -> list[dict[str, Tensor]]:
    """What networks give on each batch, by name: outputs, and where they can train losses, gradients and new state."""
    results = []
    for inputs, targets, stream in batches:
        with torch.no_grad():
            result = {"output": backend.outputs(params, inputs)}
        if trains:
            state = params.clone()
            result["loss"], grads = backend.loss_and_grad(state, inputs, targets, stream)
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
