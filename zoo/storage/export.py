"""One network as a safetensors file for `load_state_dict`, with what is known about it as JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.torch import save
from torch import Tensor

from zoo.networks.layout import ParamLayout
from zoo.storage.durable import write_files
from zoo.storage.schema import Json

EXPORT_FORMAT: Final = "weightfoundry.checkpoint"
EXPORT_VERSION: Final = 1


def write_checkpoint(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    layout: ParamLayout,
    inner_step: int,
    metrics: Mapping[str, float],
    run: Mapping[str, np.generic],
    task_config: Mapping[str, Json],
    optimizer_config: Mapping[str, Json],
) -> None:
    """Write a network and what is known about it.

    Args:
        path: ends in .safetensors; the JSON file has the same name with .json.
        tensors: state dict.
        layout: of the network.
        inner_step: at which it was taken.
        metrics: by name; those that are not finite become null.
        run: seed, status and hyperparameters of its run.
        task_config: what it was trained on.
        optimizer_config: what it was trained by.

    Raises:
        ValueError: if the path has another suffix.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    # Views of one vector share memory, and so do tied tensors: safetensors wants each by itself.
    apart = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    known = {
        "format": EXPORT_FORMAT,
        "version": EXPORT_VERSION,
        "inner_step": inner_step,
        "metrics": {name: value if np.isfinite(value) else None for name, value in metrics.items()},
        "run": {name: _json_number(value) for name, value in run.items()},
        "task": dict(task_config),
        "optimizer": dict(optimizer_config),
        "layout": json.loads(layout.to_json()),
    }
    text = json.dumps(known, indent=1).encode()
    try:
        write_files({path: [save(apart, metadata={"format": "pt"})], path.with_suffix(".json"): [text]})
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {path}: {error.strerror}") from error


def _json_number(value: np.generic) -> int | float | None:
    number = value.item()
    return number if isinstance(number, int) or np.isfinite(number) else None
