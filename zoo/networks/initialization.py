"""Initial parameters of populations: each run exactly as its seed alone would make it.

Legend: N networks, P numbers of one network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from zoo.networks.layout import ParamLayout
from zoo.networks.randomness import seeded_module

_SCALED_ROLES: Final = ("input", "hidden", "output", "embedding")


def derive_seed(*parts: int | str) -> int:
    """Seed in [0, 2**63) that is a fixed hash of its parts, such as the seed of a zoo and the number of a run."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def run_seed(zoo_seed: int, run: int) -> int:
    """Seed of run number `run` of a zoo."""
    return derive_seed(zoo_seed, "run", run)


def init_runs(
    make_model: Callable[[], nn.Module],
    layout: ParamLayout,
    seeds: Sequence[int],
    scales: Tensor | float = 1.0,
) -> Tensor:
    """Parameters (N, P) of modules that are each built under one seed; the global random state is left as it was.

    Args:
        make_model: builds a module, drawing from the global generator of the CPU.
        layout: of that module.
        seeds: N seeds; row i depends on `seeds[i]` alone.
        scales: factor on the matrices and embeddings, one or (N,).
    """
    params = torch.stack([layout.flatten(seeded_module(make_model, seed)) for seed in seeds])
    if not isinstance(scales, Tensor) and scales == 1:
        return params
    factors = torch.as_tensor(scales, dtype=params.dtype, device=params.device).reshape(-1, 1)
    if len(factors) not in (1, len(params)):
        raise ValueError(f"expected one scale, or one for each of {len(params)} networks, got {len(factors)}")
    for slot in layout:
        if slot.role in _SCALED_ROLES:
            params[:, slot.span] *= factors
    return params
