"""One network as a safetensors file for `load_state_dict`, with what is known about it as JSON beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from safetensors.torch import save

from zoo.storage.durable import write_files

if TYPE_CHECKING:
    from zoo.storage.zoo import Zoo

_FORMAT: Final = "weightfoundry.checkpoint"
_VERSION: Final = 1


def write_checkpoint(zoo: Zoo, run: int, snapshot: int, path: Path, *, merged: bool = False) -> None:
    """Write a network and what is known about it; see `Zoo.export`."""
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    # Views of one vector share memory, and so do tied tensors: safetensors wants each by itself.
    state = zoo.state_dict(run, snapshot, merged=merged)
    tensors = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    known = {
        "format": _FORMAT,
        "version": _VERSION,
        "inner_step": int(zoo.inner_step[run, snapshot]),
        "metrics": {name: _json_number(zoo.metric(name)[run, snapshot]) for name in zoo.spec.metric_names},
        "run": {name: _json_number(column[run]) for name, column in zoo.runs.items() if name != "checksum"},
        "task": dict(zoo.spec.task_config),
        "optimizer": dict(zoo.spec.optimizer_config),
        "layout": json.loads(zoo.layout.to_json()),
        **({"base_hash": zoo.spec.base_hash} if zoo.spec.base_hash else {}),
    }
    text = json.dumps(known, indent=1).encode()
    try:
        write_files({path: [save(tensors, metadata={"format": "pt"})], path.with_suffix(".json"): [text]})
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {path}: {error.strerror}") from error


def _json_number(value: np.generic) -> int | float | None:
    """The number, or None if it is not finite."""
    number = value.item()
    return number if isinstance(number, int) or np.isfinite(number) else None
