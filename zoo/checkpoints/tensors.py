"""Tensors of a checkpoint file that may come from anywhere: no code in it is ever run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_STATE_KEYS: Final = ("state_dict", "model_state_dict", "model")
_WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.")


class CheckpointError(ValueError):
    """A checkpoint, or a file beside it, that cannot be imported; the message names the file."""


def read_tensors(path: Path, state_key: str | None = None) -> dict[str, Tensor]:
    """Tensors of a checkpoint file by name, on the CPU.

    Args:
        path: a safetensors file, or a torch file, which is read with `weights_only=True`.
        state_key: entry of a torch file that is the state dict; by default the file itself if it holds nothing but
            tensors, else its `state_dict`, `model_state_dict` or `model`.

    Returns:
        The tensors; `module.` and `_orig_mod.`, which wrappers put before every name, are removed.

    Raises:
        CheckpointError: if the file is unreadable, would run code, or holds no state dict of real, dense tensors.
    """
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, state_key)
    if not state:
        raise CheckpointError(f"{path} holds no tensor")
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name!r} must be a tensor, got {type(value).__name__}; choose a state_key")
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise CheckpointError(f"{path}: {name!r} must be a dense real tensor, got {value.dtype}, {value.layout}")
        tensors[name] = value.detach()
    for prefix in _WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> Mapping[str, object]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _read_torch(path: Path, state_key: str | None) -> Mapping[str, object]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no checkpoint of mere tensors: loading it could run code, so it is refused; "
            "save its state dict alone, best as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} must hold a state dict, got {type(content).__name__}")
    if state_key is None and all(isinstance(value, Tensor) for value in content.values()):
        return content
    keys = _STATE_KEYS if state_key is None else (state_key,)
    for key in keys:
        if isinstance(content.get(key), Mapping):
            return content[key]
    there = [str(key) for key in content]
    raise CheckpointError(f"{path} holds no state dict under {' or '.join(keys)}; choose a state_key among {there}")
