"""What the drop-in optimizers refuse, in words."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Final

import numpy as np
from torch import Tensor

NONFINITE: Final = ("skip", "raise")


def check_options(
    *,
    lr: float | Tensor,
    weight_decay: float | None = None,
    nonfinite: str = "skip",
    average: float | None = None,
    depth: int | None = None,
    roles: Mapping[str, str] | None = None,
) -> None:
    """Raise ValueError for options out of range."""
    _check_number("lr", lr)
    if weight_decay is not None:
        _check_number("weight_decay", weight_decay, ", or None for the learned one")
    if average is not None:
        _check_number("average", average, " (a plain mean), or None for none")
    if depth is not None and not (isinstance(depth, Integral) and not isinstance(depth, bool) and depth >= 1):
        raise ValueError(f"depth must be an integer from 1 up, or None for the inferred one, got {depth!r}")
    if not isinstance(roles, Mapping | None):
        raise ValueError(f'roles must be roles by name or pattern, as {{"head.*": "output"}}, got {roles!r}')
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {NONFINITE}, got {nonfinite!r}")


def _check_number(name: str, value: Any, meaning: str = "") -> None:
    """Raise ValueError unless a value is a finite number from 0 up; true and false are none."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} must be one number, got a tensor of shape {tuple(value.shape)}")
    is_number = isinstance(value, Tensor | Real) and not isinstance(value, bool)
    if not (is_number and 0 <= float(value) < math.inf):
        raise ValueError(f"{name} must be a finite number, at least 0{meaning}, got {value!r}")


def checked_horizon(value: Any) -> int | None:
    """Number of training steps as a Python integer, None for none or infinity.

    Raises:
        ValueError: unless it is a positive whole number, of whatever numeric type.
    """
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool | np.bool_ | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if number == math.inf:
        return None
    if not (number >= 1 and number == math.floor(number)):
        raise ValueError(f"num_training_steps must be a positive whole number, infinity or None, got {value!r}")
    return int(value)


def check_param(param: Tensor) -> None:
    """Raise ValueError for a parameter that no rule can update."""
    if param.is_complex():
        shape = tuple(param.shape)
        raise ValueError(f"complex parameters are not supported, got one of shape {shape}; train view_as_real of it")
    if getattr(param, "_fsdp_flattened", False):
        raise ValueError(
            f"FSDP1 flattened parameters into a vector of {param.numel():,}, of which a rule cannot know rows and "
            "columns; use FSDP2 (fully_shard) or DDP"
        )
    if is_sharded(param):
        from learned_opt.optimizer.sharding import Sharding

        Sharding.of(param)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; there is none before their module, which takes seconds, is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
