"""The tensors of a snapshot, by the reader of its kind."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from zoo.checkpoints.flat_databases import read_flat
from zoo.checkpoints.runs import SnapshotFile
from zoo.checkpoints.tensors import METADATA, StateDict, read_tensors
from zoo.networks.layout import ParamLayout


def read_snapshot(
    snapshot: SnapshotFile, state_key: str | None = None, model: nn.Module | ParamLayout | None = None
) -> StateDict:
    """State dict of a snapshot, on the CPU.

    Args:
        snapshot: as `find_runs` found it.
        state_key: entry of a torch file, or of a sharded checkpoint, that is the state dict.
        model: that the network is of, for databases of flat vectors.

    Raises:
        CheckpointError: if it cannot be read.
    """
    path: Path = snapshot.path
    if snapshot.key:
        return StateDict(read_flat(path.parent, snapshot.key, model), ())
    if path.name == METADATA:
        from zoo.checkpoints.distributed import read_distributed  # imports torch's distributed tensors, and sympy

        return read_distributed(path.parent, state_key)
    return read_tensors(path, state_key)
