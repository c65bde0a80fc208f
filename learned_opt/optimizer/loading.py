"""What a loaded optimizer lacks after torch has loaded it: what its release did not save, and float32 state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from learned_opt.optimizer.param_groups import DESCRIPTION


def complete_group(group: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Add to a loaded group what its release did not save, and what the constructor was told: `own`."""
    if "axes" in group:
        group |= {key: own[key] for key in DESCRIPTION}
    else:  # version 0.1: every tensor as it lies in memory, and no decay meant the learned one
        group["axes"] = ["oi"] * len(group["params"])
        group["weight_decay"] = group["weight_decay"] or None
    group |= {key: value for key, value in own.items() if key not in group}
    group["num_training_steps"] = own["num_training_steps"] or group["num_training_steps"]


def restore_float32(loaded: dict[str, Any], saved: Mapping[str, Any]) -> None:
    """Undo torch's cast of the state to the parameters' dtype."""
    for group, saved_group in zip(loaded["param_groups"], saved["param_groups"], strict=True):
        for param, i in zip(group["params"], saved_group["params"], strict=True):
            if param.dtype != torch.float32 and i in saved["state"]:
                loaded["state"][param] = {
                    key: value.to(param.device, copy=True) for key, value in saved["state"][i].items()
                }
