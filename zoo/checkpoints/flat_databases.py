"""Runs as G.pt publishes them: flat vectors in LMDB, and what is known about them in `runs.json`.

A folder holds `data.mdb` and `runs.json`: {"checkpoints": {KEY: metrics}, "metadata": ...} of one run, or of several
by their names, which the folder's name then joins with `_`. The database has under each KEY the network's state dict as
one vector of float32, in its order, and under KEY_arch the sizes of its tensors. A KEY ends in `ep003_it00123.pt` or
`it00123.pt`; an epoch has as many steps as the largest `it` of the run, since its last step is kept.

Source: github.com/wpeebles/G.pt, `Gpt/data/database.py` and `data_gen/train_mnist.py` (Peebles et al. 2022, arXiv
2209.12892).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from zoo.checkpoints.tensors import CheckpointError, natural_key
from zoo.lazy import needs
from zoo.networks.layout import ParamLayout

DATABASE: Final = "data.mdb"
_RUNS: Final = "runs.json"
_PLACE: Final = re.compile(r"(?:ep(?P<epoch>\d+)_)?it(?P<step>\d+)(?:\.pt)?$")


class Entry(NamedTuple):
    """One network of a database: its key, its step, and its metrics as `runs.json` names them."""

    key: str
    inner_step: int
    metrics: Mapping[str, float]


def is_flat_database(folder: Path) -> bool:
    """Whether a folder is a database of G.pt."""
    return (folder / DATABASE).is_file() and (folder / _RUNS).is_file()


def runs_of_database(folder: Path) -> dict[str, list[Entry]]:
    """Entries of each run by its name.

    Raises:
        CheckpointError: if `runs.json` is not as above.
    """
    try:
        noted = json.loads((folder / _RUNS).read_text())
        runs = {folder.name: noted} if "checkpoints" in noted else noted
        return {name: _entries(runs[name]["checkpoints"]) for name in sorted(runs, key=natural_key)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read {folder / _RUNS}: {error!r}") from error


def read_flat(folder: Path, key: str, model: nn.Module | ParamLayout | None) -> dict[str, Tensor]:
    """Tensors of a network, named as those of the model that it is of.

    Raises:
        CheckpointError: if there is no model, the entry is missing, or it is not of this model.
        ImportError: without lmdb.
    """
    where = f"{folder}: {key}"
    if model is None:
        raise CheckpointError(f"{where} is a flat vector without names; give the model that it is of")
    vector, sizes = _read(folder, key)
    if isinstance(model, nn.Module):
        expected = {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
    else:
        expected = {slot.name: (slot.shape, slot.torch_dtype) for slot in model}
    numels = [torch.Size(shape).numel() for shape, _ in expected.values()]
    if sizes != numels or sum(sizes) != len(vector):
        raise CheckpointError(
            f"{where} has tensors of {sizes} numbers, the model of {numels} in this order; give the module itself"
        )
    parts = zip(expected.items(), vector.split(sizes), strict=True)
    return {name: part.view(shape).to(dtype) for (name, (shape, dtype)), part in parts}


def _entries(checkpoints: Mapping[str, Mapping[str, float]]) -> list[Entry]:
    places = {key: _PLACE.search(key) for key in checkpoints}
    if unknown := [key for key, place in places.items() if place is None]:
        raise ValueError(f"keys must end in epNNN_itNNNNN.pt or itNNNNN.pt, got {unknown[:3]}")
    found = {key: (int(place["epoch"] or 0), int(place["step"])) for key, place in places.items() if place}
    epoch_steps = max((step for _, step in found.values()), default=0)
    return [Entry(key, found[key][0] * epoch_steps + found[key][1], metrics) for key, metrics in checkpoints.items()]


def _read(folder: Path, key: str) -> tuple[Tensor, list[int]]:
    with needs(f"{folder} is read by lmdb", "'weightfoundry[lmdb]'"):
        import lmdb
    try:
        database = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
        with database, database.begin() as transaction:
            stored = [transaction.get(name.encode(), b"?") for name in (key, f"{key}_arch")]
    except lmdb.Error as error:
        raise CheckpointError(f"cannot read {folder / DATABASE}: {error}") from error
    if any(len(value) % 4 for value in stored):
        raise CheckpointError(f"{folder / DATABASE} has no whole network under {key}, which {_RUNS} names")
    vector, sizes = (torch.frombuffer(bytearray(value), dtype=torch.float32) for value in stored)
    return vector, sizes.long().tolist()
