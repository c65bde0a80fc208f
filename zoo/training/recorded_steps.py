"""Steps that are launched whole: the CUDA graph of one step, recorded once and replayed.

The kernels of a small population take less time than launching them one by one. A graph is launched at once, but it
repeats what was recorded: the same kernels on the same memory. What changes from step to step (minibatches, learning
rates, clocks) is therefore brought to the device for many steps as tables, whose rows a counter inside the graph reads.

Legend: K steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Final, Protocol

import torch
from torch import Tensor

Row = dict[str, Tensor]

MAX_ROWS: Final = 32  # of the tables, which together must not be large beside the networks
_NUM_WARM_UP: Final = 2  # steps before recording, in which libraries and compilers get ready


class RecordedSteps:
    """A step that is done many times, each time with the next row of tables.

    Args:
        device: of the tensors. On a CUDA device the step becomes a graph, or else a warning says why it cannot.
        can_record: False for a step that must be run by Python.
    """

    def __init__(self, device: torch.device, *, can_record: bool = True) -> None:
        self._recorder = recorder_for(device) if can_record else None
        self._num_warm_up: float = _NUM_WARM_UP
        self._replay: Callable[[], None] | None = None
        self._tables: Row = {}
        self._place = torch.zeros(1, dtype=torch.int64, device=device)

    def run(self, step: Callable[[Row], None], tables: Mapping[str, Tensor]) -> None:
        """Do K steps.

        Args:
            step: is given a row of each table by name and changes tensors in place: always the same ones, in the same
                way. Numbers of Python are those of the first times.
            tables: (K, ...) by name, K at most MAX_ROWS; apart from K always of the same shapes.
        """
        num_steps = len(next(iter(tables.values())))
        if self._recorder is None:
            for k in range(num_steps):
                step({name: table[k] for name, table in tables.items()})
            return
        for name, table in tables.items():
            if name not in self._tables:
                self._tables[name] = self._place.new_empty(MAX_ROWS, *table.shape[1:], dtype=table.dtype)
            self._tables[name][:num_steps].copy_(table, non_blocking=True)
        self._place.zero_()
        for _ in range(num_steps):
            if self._replay is None and self._num_warm_up == 0:
                self._record(step, self._recorder)
            if self._replay is not None:
                self._replay()
            else:
                self._recorder.warm_up(partial(self._next, step))
                self._num_warm_up -= 1

    def _next(self, step: Callable[[Row], None]) -> None:
        step({name: table.index_select(0, self._place)[0] for name, table in self._tables.items()})
        self._place.add_(1)

    def _record(self, step: Callable[[Row], None], recorder: Recorder) -> None:
        try:
            self._replay = recorder.record(partial(self._next, step))
        except RuntimeError as error:
            reason = str(error.__context__ or error).strip().partition("\n")[0]  # ending a failed recording fails too
            warnings.warn(f"cannot record the step as a CUDA graph, which would be faster: {reason}", stacklevel=4)
            self._num_warm_up = math.inf


class Recorder(Protocol):
    """Records what an action launches on a device, so that it can be launched again."""

    def warm_up(self, action: Callable[[], None]) -> None:
        """Do it as it will be recorded."""
        ...

    def record(self, action: Callable[[], None]) -> Callable[[], None]:
        """What repeats the action; the action itself is not done yet."""
        ...


@lru_cache
def recorder_for(device: torch.device) -> Recorder | None:
    """What records steps on a device, None where nothing does."""
    return CudaGraphs(device) if device.type == "cuda" else None


class CudaGraphs:
    """Records on a stream of its own, on which PyTorch's libraries then have their memory already."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, action: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            action()
        current.wait_stream(self._stream)

    def record(self, action: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            action()
        return graph.replay
