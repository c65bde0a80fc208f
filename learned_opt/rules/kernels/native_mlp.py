"""The MLP rule on a CPU in C: `native_mlp.c`, compiled for this processor when a process first needs it (a second).

Legend: N networks, M meta-parameters, H hidden units, E x R x C one tensor (see `features`).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from torch import Tensor

from learned_opt.rules.features import Accumulators

SOURCE: Final = Path(__file__).with_suffix(".c")
# No -ffast-math: NaN must pass through, and linking with it makes the whole process flush denormals to zero.
FLAGS: Final = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp")

_INT, _POINTER, _STRIDES = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64 * 4


class _Update(ctypes.Structure):
    """`Update` of the C source."""

    _fields_ = (
        *((name, _INT) for name in ("num_networks", "num_blocks", "num_rows", "num_columns", "factored", "hidden")),
        *((name, _POINTER) for name in ("theta", "inner_step", "param", "grad")),
        *((name, _INT) for name in ("theta_stride", "inner_step_stride")),
        *((name, _STRIDES) for name in ("param_strides", "grad_strides")),
        *((name, _POINTER) for name in ("momentum", "square", "row", "column")),
        ("active", _POINTER),
        *((name, ctypes.c_float) for name in ("step_size", "shrink")),
    )


class NativeKernelError(RuntimeError):
    """The native kernel could not be compiled."""


def native_update_(
    theta: Tensor,
    hidden: int,
    accumulators: Accumulators,
    *,
    param: Tensor,
    grad: Tensor,
    inner_step: Tensor,
    step_size: float | Tensor,
    shrink: float | Tensor,
    active: Tensor | None = None,
) -> None:
    """As `chunked_update_`, without features or activations of a whole tensor in memory.

    Args:
        theta: (N, M) with contiguous rows, for `hidden` units.
        inner_step: (1,) or (N,).

    Raises:
        NativeKernelError: if it could not be compiled.
        ValueError: for accumulators of another tensor, beyond whose memory C would write.
    """
    if not accumulators.momentum.shape[2:] == accumulators.square.shape[2:] == param.shape[1:]:
        raise ValueError(
            f"expected the state of a tensor {tuple(param.shape)}, got one of {tuple(accumulators.square.shape)}; a "
            "parameter that is replaced by one of another shape needs new state: optimizer.state.pop(parameter)"
        )
    state = (accumulators.momentum, accumulators.square, accumulators.row, accumulators.column)
    assert param.dtype == grad.dtype == torch.float32
    assert all(x.is_contiguous() for x in state)
    assert theta.stride(1) == 1
    assert active is None or active.is_contiguous()
    update = _Update(
        *param.shape,
        accumulators.factored,
        hidden,
        theta.data_ptr(),
        inner_step.data_ptr(),
        param.data_ptr(),
        grad.data_ptr(),
        theta.stride(0),
        inner_step.stride(0) if len(inner_step) > 1 else 0,
        param.stride(),
        grad.stride(),
        *(x.data_ptr() for x in state),
        None if active is None else active.data_ptr(),
        float(step_size),
        float(shrink),
    )
    if _library().mlp_update(ctypes.byref(update), torch.get_num_threads()):
        raise MemoryError("the native kernel of the MLP rule could not allocate its scratch memory")


@cache
def is_available() -> bool:
    """Whether the kernel runs here: on Linux with a C compiler (`CC`, else cc, gcc or clang) that takes its source.

    Compiles it. A compiler that fails is quoted in a warning.
    """
    if sys.platform != "linux" or _compiler() is None:
        return False
    try:
        _library()
    except NativeKernelError as error:
        warnings.warn(f"the MLP rule runs in plain torch, at half the speed: {error}", stacklevel=2)
        return False
    return True


def _compiler() -> str | None:
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@cache
def _library() -> ctypes.CDLL:
    compiler = _compiler()
    if compiler is None:
        raise NativeKernelError("no C compiler found for the native kernel; install one, set CC, or use native=False")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "native_mlp.so"
        command = [compiler, *FLAGS, "-shared", "-fPIC", "-o", str(path), str(SOURCE), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NativeKernelError(
                f"the native kernel did not compile; use native=False. {' '.join(command)} said:\n{done.stderr}"
            )
        library = ctypes.CDLL(str(path))
    library.mlp_update.argtypes = (ctypes.POINTER(_Update), ctypes.c_int)
    return library
