"""A device that is not there: "sim" computes on the CPU, and refuses what a GPU would refuse.

    with pretended_device() as device:
        model.to(device)

Tensors on "sim" cannot be mixed with tensors on the CPU, random numbers for "sim" cannot come from a generator of the
CPU, there is no float64, as on Apple's GPUs, and inside `no_synchronization()` nothing may wait for the device
(`.item()`, `bool(tensor)`, `.cpu()`, `nonzero`).
What comes from it must be waited for: with `non_blocking=True` the CPU would read memory that is still to be written.
So code that runs here, with the numbers of the CPU, has no device written into it. Built on PyTorch's Python backend:
a wrapper subclass around a CPU tensor, and a dispatch mode for what is created on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

_SYNCHRONIZING = (
    *("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select", "aten.is_nonzero"),
    *("aten._unique", "aten.unique", "aten.bincount", "aten._linalg_check_errors", "aten.multinomial"),
)
_MAY_MIX = ("copy", "aten.index.", "aten.index_put")  # copies between devices, and indices that are moved
_state = {"exists": False, "may_synchronize": True}


class SynchronizationError(AssertionError):
    """The program waited for the device where it must not."""


class SimTensor(Tensor):
    """A tensor on "sim": its numbers are those of `raw`, on the CPU."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> SimTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device="sim:0"
        )
        tensor.raw = raw
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Backend(_DummyBackendModule):
    """`torch.sim`: there while it is pretended; it has no random numbers, which are drawn on the CPU."""

    def is_available(self) -> bool:
        return _state["exists"]

    def device_count(self) -> int:
        return int(_state["exists"])

    def synchronize(self) -> None:
        pass

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


class _Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return _state["exists"]


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """What happens in C++, below dispatch: `torch.tensor` and indices given as lists are built on the CPU and moved."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (Tensor.tolist, Tensor.__repr__, Tensor.__format__) and type(args[0]) is SimTensor:
            return func(args[0].cpu(), *args[1:], **kwargs)
        if func is Tensor.new_tensor and type(args[0]) is SimTensor:
            device = kwargs.pop("device", args[0].device)
            return torch.tensor(*args[1:], **kwargs).to(device)
        if func in (torch.tensor, torch.as_tensor) and _is_sim(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in (Tensor.__setitem__, Tensor.__getitem__) and type(args[0]) is SimTensor:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(list(one)).to("sim") if isinstance(one, list | range) else one for one in index)
            return func(args[0], index, *args[2:], **kwargs)
        return func(*args, **kwargs)


def register() -> None:
    """Make "sim" known to PyTorch: once, before the process's first backward pass, whose engine counts devices.

    Not beside a GPU: the engine would take "sim" for the device whose streams it has to order.
    """
    if torch.cuda.is_available():
        return
    _setup_privateuseone_for_python_backend("sim", backend_module=_Backend(), hook=_Hook())


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """While it lasts, the device "sim" exists."""
    before, _state["exists"] = _state["exists"], True
    try:
        with _Constructors(), _Dispatch():
            yield torch.device("sim", 0)
    finally:
        _state["exists"] = before


@contextmanager
def no_synchronization() -> Iterator[None]:
    """While it lasts, waiting for the device raises SynchronizationError."""
    before, _state["may_synchronize"] = _state["may_synchronize"], False
    try:
        yield
    finally:
        _state["may_synchronize"] = before


def _is_sim(device: object) -> bool:
    return device is not None and torch.device(device).type == "sim"


def _raw(value: object) -> object:
    return value.raw if isinstance(value, SimTensor) else value


def _run(func, args: tuple, kwargs: dict) -> object:
    """Compute on the CPU what an operator does with tensors on "sim"."""
    name = str(func)
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    sims = [value for value in tensors if isinstance(value, SimTensor)]
    target = kwargs.get("device")
    _check_mixture(name, tensors, sims)
    if name.startswith("aten.copy_"):
        _check_copy(name, args, kwargs)
    _check_generator(name, kwargs.get("generator"), on_sim=bool(sims) or _is_sim(target))
    if sims and (name.startswith(_SYNCHRONIZING) or (target is not None and not _is_sim(target))):
        _check_may_synchronize(name)
    if name.startswith("aten._to_copy") and sims and target is not None and not _is_sim(target):
        _check_is_waited_for(name, kwargs.get("non_blocking"))
    if name.startswith("aten._to_copy") and not sims and _is_sim(target) and not kwargs.get("non_blocking"):
        _check_may_synchronize(f"{name} to it")
    if name.startswith(("aten.index.", "aten.index_put")) and sims:
        indices = [value for value in args[1] if value is not None]
        if any(value.dtype == torch.bool or not isinstance(value, SimTensor) for value in indices):
            _check_may_synchronize(f"{name} by a mask, or by an index on the CPU,")
    kwargs = {key: "cpu" if key == "device" and value is not None else value for key, value in kwargs.items()}
    result = func(*tree_map(_raw, args), **tree_map(_raw, kwargs))
    if name.startswith("aten._local_scalar_dense") or not (_is_sim(target) or (target is None and sims)):
        return result
    if any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in tree_iter(result)):
        raise TypeError(f"{name}: there is no float64 on sim:0, as on Apple's devices")
    changed = {id(one.raw): one for one in sims}  # what is changed in place stays the tensor that it is

    def placed(value: object) -> object:
        return changed.get(id(value), SimTensor(value)) if type(value) is Tensor else value

    return tree_map(placed, result)


def _check_mixture(name: str, tensors: list[Tensor], sims: list[SimTensor]) -> None:
    others = [value for value in tensors if not isinstance(value, SimTensor) and value.dim() > 0]
    may_mix = any(part in name for part in _MAY_MIX) and (isinstance(tensors[0], SimTensor) or "copy" in name)
    if sims and others and not may_mix:
        shapes = [tuple(value.shape) for value in others]
        raise RuntimeError(f"{name}: expected all tensors on sim:0, but there are some of shapes {shapes} on the CPU")


def _check_copy(name: str, args: tuple, kwargs: dict) -> None:
    """From the device, or to it without `non_blocking`."""
    to, source, *rest = args
    non_blocking = rest[0] if rest else kwargs.get("non_blocking")
    leaves, arrives = isinstance(source, SimTensor), isinstance(to, SimTensor)
    if leaves and not arrives:
        _check_is_waited_for(name, non_blocking)
    if leaves != arrives and (leaves or not non_blocking):
        _check_may_synchronize(name)


def _check_is_waited_for(name: str, non_blocking: object) -> None:
    if non_blocking:
        raise RuntimeError(f"{name} to the CPU with non_blocking=True: it may be read before it is there")


def _check_generator(name: str, rng: torch.Generator | None, *, on_sim: bool) -> None:
    if rng is not None and on_sim:
        raise RuntimeError(
            f"{name}: expected a generator of sim:0, got one of {rng.device}; draw on the CPU, then move"
        )


def _check_may_synchronize(name: str) -> None:
    if not _state["may_synchronize"]:
        raise SynchronizationError(f"{name} waits for the device")
