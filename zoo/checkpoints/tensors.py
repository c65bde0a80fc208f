"""Tensors of a checkpoint file that may come from anywhere: no code in it is ever run."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar")
INDEX_SUFFIX: Final = ".index.json"
METADATA: Final = ".metadata"  # of a checkpoint that is cut into pieces
_STATE_KEYS: Final = ("state_dict", "model_state_dict", "model")


class CheckpointError(ValueError):
    """A checkpoint, or a file beside it, that cannot be imported; the message names the file."""


class StateDict(NamedTuple):
    """Tensors by name, and the names of other entries of the file that hold tensors of a network."""

    tensors: dict[str, Tensor]
    other_keys: tuple[str, ...]


def read_tensors(path: Path, state_key: str | None = None) -> StateDict:
    """State dict of a checkpoint, on the CPU.

    Args:
        path: a safetensors file; a torch file, which is read with `weights_only=True`; or the index (*.index.json) of a
            model that is cut into several of them.
        state_key: entry of a torch file that is the state dict; by default the file itself if it holds nothing but
            tensors, else its `state_dict`, `model_state_dict` or `model`.

    Raises:
        CheckpointError: if a file is unreadable, would run code, or holds no state dict of real, dense tensors.
    """
    is_index = path.name.endswith(INDEX_SUFFIX)
    state, others = (_read_shards(path, state_key), ()) if is_index else _read_file(path, state_key)
    if not state:
        raise CheckpointError(f"{path} holds no tensor")
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name!r} must be a tensor, got {type(value).__name__}; choose a state_key")
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise CheckpointError(f"{path}: {name!r} must be a dense real tensor, got {value.dtype}, {value.layout}")
        tensors[str(name)] = value.detach()
    return StateDict(tensors, others)


def natural_key(text: str) -> list[tuple[bool, int, str]]:
    """Sorts step_9 before step_10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)]


def _read_shards(index: Path, state_key: str | None) -> dict[str, object]:
    """All tensors of the files that an index names, each of which must be where the index says."""
    try:
        places = json.loads(index.read_text())["weight_map"]
        files = sorted(set(places.values()))
        if any(Path(file).name != file for file in files):
            raise ValueError(f"its files must stand beside it, got {files}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read the index {index}: {error!r}") from error
    state: dict[str, object] = {}
    for file in files:
        part, _ = _read_file(index.parent / file, state_key)
        expected = {name for name, place in places.items() if place == file}
        if differing := sorted(expected ^ part.keys()):
            raise CheckpointError(f"{index.parent / file} and {index.name} do not agree about {differing[:5]}")
        state |= part
    return {name: state[name] for name in places}


def _read_file(path: Path, state_key: str | None) -> tuple[Mapping[str, object], tuple[str, ...]]:
    """The state dict of one file, and its other entries that hold tensors by name."""
    if path.suffix == ".safetensors":
        if state_key is not None:
            raise CheckpointError(f"{path} has no entries to choose from: state_key={state_key!r} is for torch files")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        return {name: tensors[name] for name in sorted(tensors, key=natural_key)}, ()  # the format keeps no order
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no checkpoint of mere tensors: loading it could run code, so it is refused; "
            "save its state dict alone, best as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: {str(error) or 'it is empty or cut off'}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} must hold a state dict, got {type(content).__name__}")
    if state_key is None and all(isinstance(value, Tensor) for value in content.values()):
        return content, ()
    keys = _STATE_KEYS if state_key is None else (state_key,)
    chosen = next((key for key in keys if isinstance(content.get(key), Mapping)), None)
    if chosen is None:
        there = [str(key) for key in content]
        raise CheckpointError(f"{path} holds no state dict under {' or '.join(keys)}; choose a state_key among {there}")
    others = [str(key) for key, value in content.items() if key != chosen and _holds_tensors(value)]
    return content[chosen], tuple(others)


def _holds_tensors(entry: object) -> bool:
    """Whether an entry of a training checkpoint is like a state dict, as an average beside the model is."""
    return isinstance(entry, Mapping) and any(isinstance(value, Tensor) for value in entry.values())
