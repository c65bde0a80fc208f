"""Other devices on which tests compute: one that is pretended, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from .pretended_device import no_synchronization, pretended_device

DEVICES = ["sim", pytest.param("cuda", marks=pytest.mark.gpu)]


@contextmanager
def other_device(name: str) -> Iterator[torch.device]:
    """While it lasts, the device of DEVICES can be used; skips the test where there is none."""
    if name == "sim":
        if torch.cuda.is_available():
            pytest.skip("there is a real device")
        with pretended_device() as sim:
            yield sim
    elif torch.cuda.is_available():
        yield torch.device("cuda", 0)
    else:
        pytest.skip("needs a CUDA device")


@contextmanager
def never_waiting() -> Iterator[None]:
    """While it lasts, waiting for one of those devices is an error."""
    if not torch.cuda.is_available():
        with no_synchronization():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        with no_synchronization():
            yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
