"""Counters that stay on the device of a step, and are changed in place there.

So a step neither waits for the device nor, replayed from a CUDA graph, forgets how many steps were before it. Wherever
an optimizer is saved they are Python integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

COUNTERS: Final = ("inner_step", "num_skipped_steps")  # in every parameter group, all of which hold the same


def counted(value: int | Tensor, by: bool | Tensor) -> int | Tensor:
    """`value` with `by` added: in place if it is a tensor, which it becomes where `by` is one."""
    if isinstance(by, Tensor) and not isinstance(value, Tensor):
        value = torch.full((), value, dtype=torch.int64, device=by.device)
    return value.add_(by) if isinstance(value, Tensor) else value + by


def advance(groups: Sequence[dict[str, Any]], counter: str, by: bool | Tensor) -> None:
    """Add to a counter of all groups."""
    value = counted(groups[0][counter], by)
    for group in groups:
        group[counter] = value


@contextmanager
def read_counters(groups: Sequence[dict[str, Any]]) -> Iterator[None]:
    """While it lasts, counters are Python integers; those on a device are there again afterwards."""
    before = [{name: group[name] for name in COUNTERS} for group in groups]
    for group in groups:
        group.update({name: int(group[name]) for name in COUNTERS})
    try:
        yield
    finally:
        for group, values in zip(groups, before, strict=True):
            group.update(values)
