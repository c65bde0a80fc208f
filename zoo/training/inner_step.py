"""One training step of N networks: loss, gradient and update as one program, compiled if wanted.

Legend: N networks, P numbers of one network, T of them trainable.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Final, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from zoo.tasks.task import Batch, Task
from zoo.training.optimizers import CompilableOptimizer, InnerOptimizer, State

COMPILE_THRESHOLD: Final = 1_000_000  # model-steps whose saving pays for about ten seconds of compiling

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def train_step(
    task: Task,
    optimizer: InnerOptimizer,
    params: Tensor,
    state: State,
    batch: Batch,
    *,
    inner_step: int,
    num_steps: int,
    compile: bool = False,
) -> Tensor:
    """Losses (N,) before the step; `params` (N, P) and `state` move on in place.

    Args:
        task: what to train on.
        optimizer: how.
        params: (N, P).
        state: from `optimizer.init_state`.
        batch: from `task.batch`.
        inner_step: number of steps taken before this one.
        num_steps: number of steps of the whole run.
        compile: compile the step with the optimizer in it. The first call takes some ten seconds, later calls with
            the same task, N and kind of optimizer share the result. An optimizer that is no CompilableOptimizer
            stays outside, and so does a task whose step is not always the same program. Results differ from
            eager ones in the last bits.
    """
    compile = compile and task.is_compilable
    with torch.no_grad():
        if isinstance(optimizer, CompilableOptimizer):
            coefficients = optimizer.coefficients(inner_step, num_steps, params)
            return _whole_step(task, optimizer, compile)(params, state, batch, coefficients)
        loss, grads = _gradient_step(task, compile)(params, batch)
        optimizer.update(task.layout, params, grads, state, inner_step=inner_step, num_steps=num_steps)
        return loss


def should_compile(num_model_steps: int, device: torch.device) -> bool:
    """Whether compiling pays for that many steps of one network in all, and there is a compiler."""
    return num_model_steps >= COMPILE_THRESHOLD and (device.type != "cpu" or has_compiler())


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++", "cl")
    return any(name and shutil.which(name) for name in names)


def _whole_step(
    task: Task, optimizer: CompilableOptimizer, compile: bool
) -> Callable[[Tensor, State, Batch, State], Tensor]:
    def step(params: Tensor, state: State, batch: Batch, coefficients: State) -> Tensor:
        loss, grads = task.loss_and_grad(params, batch)
        optimizer.apply(task.layout, params, grads, state, coefficients)
        return loss

    if not compile:
        return step
    if optimizer.flags not in task.compiled:
        task.compiled[optimizer.flags] = _Compiled(step, task)
    return task.compiled[optimizer.flags]


def _gradient_step(task: Task, compile: bool) -> Callable[[Tensor, Batch], tuple[Tensor, Tensor]]:
    if not compile:
        return task.loss_and_grad
    if () not in task.compiled:
        task.compiled[()] = _Compiled(task.loss_and_grad, task)
    return task.compiled[()]


class _Compiled(Generic[_Arguments, _Result]):
    """A compiled function that goes on uncompiled, with a warning, where compiling fails."""

    def __init__(self, function: Callable[_Arguments, _Result], task: Task) -> None:
        # Dynamo cannot enter the lock that Python 3.11's cached_property takes on first use.
        _ = (task.layout.num_params, task.layout.num_trainable, [slot.numel for slot in task.layout])
        self._function = function
        self._compiled: Callable[_Arguments, _Result] | None = torch.compile(function, dynamic=False)

    def __call__(self, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if self._compiled is None:
            return self._function(*args, **kwargs)
        try:
            return self._compiled(*args, **kwargs)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            first_line = str(error).strip().partition("\n")[0]
            warnings.warn(f"cannot compile the training step, going on uncompiled: {first_line}", stacklevel=3)
            self._compiled = None
            return self._function(*args, **kwargs)
