"""A CUDA graph that is not there: what a step does to tensors is recorded on the CPU, and repeated without its Python.

    with pretended_graphs() as graphs:
        ...

As with a CUDA graph, recording does nothing to tensors that were there before, numbers of Python are those of the
recording, and what would wait for the device, or copies from the host, cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from .pretended_device import _SYNCHRONIZING, _raw

_COPYING = ("aten._to_copy", "aten.copy_")


class _Recording(TorchDispatchMode):
    """Operators with the tensors that went in and came out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, list]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if str(func).startswith(_SYNCHRONIZING):
            raise RuntimeError(f"{func} waits for the device, which a graph cannot")
        values = [*tree_flatten((args, kwargs))[0], kwargs.get("device")]
        devices = {getattr(value, "device", value) for value in values if isinstance(value, Tensor | torch.device)}
        if str(func).startswith(_COPYING) and len(devices) > 1:
            raise RuntimeError(f"{func} copies between devices, which a graph would repeat from memory that is gone")
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write and argument.name in given:
                for tensor in (_raw(one) for one in tree_flatten(given[argument.name])[0] if isinstance(one, Tensor)):
                    self.before.setdefault(tensor.untyped_storage().data_ptr(), (tensor, _whole(tensor).clone()))
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, tree_flatten(result)[0]))
        return result


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor's memory as bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


class PretendedGraphs:
    """A `zoo.training.recorded_steps.Recorder`, which counts."""

    def __init__(self) -> None:
        self.num_warm_ups = self.num_recorded = self.num_replayed = 0

    def warm_up(self, action: Callable[[], None]) -> None:
        self.num_warm_ups += 1
        action()

    def record(self, action: Callable[[], None]) -> Callable[[], None]:
        recording = _Recording()
        try:
            with recording:
                action()
        finally:
            for tensor, content in recording.before.values():
                _whole(tensor).copy_(content)
        self.num_recorded += 1

        def replay() -> None:
            self.num_replayed += 1
            made: dict[int, object] = {}

            def current(value: object) -> object:
                return made.get(id(value), value)

            for func, args, kwargs, results in recording.calls:
                again = tree_flatten(func(*tree_map(current, args), **tree_map(current, kwargs)))[0]
                made |= {id(old): new for old, new in zip(results, again, strict=True) if isinstance(old, Tensor)}

        return replay


@contextmanager
def pretended_graphs() -> Iterator[PretendedGraphs]:
    """While it lasts, steps are recorded on any device."""
    graphs = PretendedGraphs()
    with patch("zoo.training.recorded_steps.recorder_for", lambda device: graphs):
        yield graphs
