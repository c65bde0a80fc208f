"""Modules that are built and run without touching the random numbers of whoever asks for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import index

import numpy as np
import torch
from torch import nn


def seeded_module(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module that `build` makes when the CPU's generator has that seed; all generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(index(seed))  # torch.manual_seed would seed the devices, too
        return build()


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


def draws_random_numbers(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether a forward pass draws from the random generators of torch, NumPy or Python; these stay as they were."""
    with preserved_randomness(), torch.no_grad():
        before = _random_states(inputs.device)
        module(inputs)
        return _random_states(inputs.device) != before


def _random_states(device: torch.device) -> tuple[object, ...]:
    on_device = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None
    _, keys, *rest = np.random.get_state()
    return torch.random.get_rng_state().tolist(), on_device, random.getstate(), np.asarray(keys).tolist(), rest
