"""One training step of N networks: loss, gradient and update as one program, compiled if wanted.

Whatever trains networks here takes this step: populations of a zoo, the particles of a meta-training, the networks of
a comparison of optimizers.

Legend: N networks, P numbers of one network, T of them trainable.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Final, Generic, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from zoo.networks.layout import ParamLayout
from zoo.tasks.task import Batch
from zoo.training.optimizers import CompilableOptimizer, InnerOptimizer, State
from zoo.training.schedules import StepCount

COMPILE_THRESHOLD: Final = 1_000_000  # model-steps whose saving pays for about ten seconds of compiling
MAX_PROGRAMS: Final = 64  # compiled in one process; torch's own limit of 8 is soon met, and ends compiling in silence

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Trainable(Protocol):
    """What a step asks of a task."""

    layout: ParamLayout

    @property
    def is_compilable(self) -> bool:
        """Whether a step is the same program whatever the parameters."""
        ...

    def loss_and_grad(self, params: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (N,) and their gradients (N, T); buffers in `params` advance in place."""
        ...


class InnerStep:
    """A task, an optimizer and the program that the two make.

    Attributes:
        coefficients: makes what `with_coefficients` takes; None if the optimizer is no CompilableOptimizer.

    Args:
        task: what to train on.
        optimizer: how. One with an attribute `uses_loss` that is true is given `loss` (N,) with each update.
        compile: compile the step with the optimizer in it. The first step takes some ten seconds; later ones with an
            equal layout, N and kind of optimizer share the result, whoever bound them. An optimizer that is no
            CompilableOptimizer stays outside, and so does a task whose step is not always the same program. Results
            differ from eager ones in the last bits.
    """

    def __init__(self, task: Trainable, optimizer: InnerOptimizer, *, compile: bool = False) -> None:
        self.task = task
        self.optimizer = optimizer
        compile = compile and task.is_compilable
        self._loss_and_grad = _Compiled(task.loss_and_grad, task.layout) if compile else task.loss_and_grad
        self.coefficients: Callable[[StepCount, StepCount, Tensor], State] | None = None
        if isinstance(optimizer, CompilableOptimizer):

            def step(params: Tensor, state: State, batch: Batch, coefficients: State) -> Tensor:
                loss, grads = task.loss_and_grad(params, batch)
                optimizer.apply(task.layout, params, grads, state, coefficients)
                return loss

            self.coefficients = optimizer.coefficients
            self._with_coefficients = _Compiled(step, task.layout) if compile else step

    @torch.no_grad()
    def __call__(
        self, params: Tensor, state: State, batch: Batch, *, inner_step: StepCount, num_steps: StepCount
    ) -> Tensor:
        """Losses (N,) before the step; `params` (N, P) and `state` move on in place.

        Args:
            params: (N, P).
            state: from `optimizer.init_state`.
            batch: from `task.batch`.
            inner_step: number of steps taken before this one, of all networks or of each.
            num_steps: number of steps of the whole run, likewise.
        """
        if self.coefficients is not None:
            coefficients = self.coefficients(inner_step, num_steps, params)
            return self.with_coefficients(params, state, batch, coefficients)
        loss, grads = self._loss_and_grad(params, batch)
        clock = {"inner_step": inner_step, "num_steps": num_steps}
        told = {"loss": loss} if getattr(self.optimizer, "uses_loss", False) else {}
        self.optimizer.update(self.task.layout, params, grads, state, **clock, **told)
        return loss

    @torch.no_grad()
    def with_coefficients(self, params: Tensor, state: State, batch: Batch, coefficients: State) -> Tensor:
        """The same with the coefficients of the step, of a CompilableOptimizer: work on tensors alone."""
        return self._with_coefficients(params, state, batch, coefficients)


def should_compile(num_model_steps: int, device: torch.device) -> bool:
    """Whether compiling pays for that many steps of one network in all, and there is a compiler."""
    return num_model_steps >= COMPILE_THRESHOLD and (device.type != "cpu" or has_compiler())


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++", "cl")
    return any(name and shutil.which(name) for name in names)


class _Compiled(Generic[_Arguments, _Result]):
    """A compiled function that falls back to the uncompiled one, with a warning, where compiling fails."""

    def __init__(self, function: Callable[_Arguments, _Result], layout: ParamLayout) -> None:
        # Dynamo cannot enter the lock that Python 3.11's cached_property takes on first use.
        _ = (layout.num_params, layout.num_trainable, [slot.numel for slot in layout])
        self._function = function
        self._compiled: Callable[_Arguments, _Result] | None = torch.compile(function, dynamic=False)
        self._is_first = True

    def __call__(self, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if self._compiled is None:
            return self._function(*args, **kwargs)
        try:
            if not self._is_first:
                return self._compiled(*args, **kwargs)
            self._is_first = False
            with torch._dynamo.config.patch(recompile_limit=MAX_PROGRAMS):
                return self._compiled(*args, **kwargs)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            first_line = str(error).strip().partition("\n")[0]
            warnings.warn(f"cannot compile the training step, which runs uncompiled: {first_line}", stacklevel=3)
            self._compiled = None
            return self._function(*args, **kwargs)
