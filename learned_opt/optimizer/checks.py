"""What the drop-in optimizers refuse, in words."""

from __future__ import annotations

import math
import sys
from typing import Any, Final

from torch import Tensor

NONFINITE: Final = ("skip", "raise")


def check_options(
    *, lr: float | Tensor, weight_decay: float | None = None, nonfinite: str = "skip", average: float | None = None
) -> None:
    """Raise ValueError for options out of range."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be one number, got a tensor of shape {tuple(lr.shape)}")
    if not float(lr) >= 0:
        raise ValueError(f"lr must be at least 0, got {lr}")
    if weight_decay is not None and not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, or None for the learned one, got {weight_decay}")
    if average is not None and not average >= 0:
        raise ValueError(f"average must be at least 0 (a plain mean), or None for none, got {average}")
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {NONFINITE}, got {nonfinite!r}")


def checked_horizon(value: Any) -> int | None:
    """Number of training steps as a Python integer, None for none or infinity.

    Raises:
        ValueError: unless it is a positive whole number, of whatever numeric type.
    """
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if number == math.inf:
        return None
    if not (number >= 1 and number == math.floor(number)):
        raise ValueError(f"num_training_steps must be a positive whole number, infinity or None, got {value!r}")
    return int(value)


def check_param(param: Tensor) -> None:
    """Raise ValueError for a parameter that no rule can update."""
    shape = tuple(param.shape)
    if param.is_complex():
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
