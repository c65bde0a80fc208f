"""Generators for tables in files: that of the package, and your own.

A file is safetensors with the weights, and as metadata the options of the model and how it was trained (JSON).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from generator.tabular.model import TabularGenerator

SHIPPED: Final = Path(__file__).with_name("pretrained.safetensors")
_FORMAT: Final = "weightfoundry-tabular-1"


def save_tabular(path: str | Path, model: TabularGenerator, info: Mapping[str, Any]) -> None:
    """Write a generator.

    Args:
        path: of the file.
        model: to write.
        info: how it was made, JSON-able.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {
        "format": _FORMAT,
        "model": json.dumps(model.options, sort_keys=True),
        "info": json.dumps(dict(info), sort_keys=True),
    }
    save_file(weights, path, metadata)


def load_tabular(path: str | Path = SHIPPED) -> TabularGenerator:
    """A generator that `save_tabular` wrote; by default the one of the package.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} holds no generator for tables: expected one that scripts.train_tabular wrote")
    model = TabularGenerator(**json.loads(metadata["model"]))
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
