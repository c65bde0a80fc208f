"""Networks that runs start from in place of fresh ones: the last snapshots of a zoo's runs, or of checkpoints.

Run i starts from network i modulo their number.

Legend: N runs, P numbers of one network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from zoo.checkpoints.readers import read_snapshot
from zoo.checkpoints.runs import SnapshotFile, find_runs
from zoo.networks.layout import ParamLayout
from zoo.storage.zoo import Zoo


@dataclass(frozen=True)
class Starts:
    """Given networks.

    Args:
        path: of a zoo, whose complete runs they are, or of checkpoints as `import_checkpoints` takes them.
        layout: of the runs.

    Raises:
        ValueError: when they are read, if there are none or they are of another architecture.
    """

    path: str
    layout: ParamLayout

    def params(self, runs: Sequence[int]) -> Tensor:
        """(N, P) for those runs."""
        return torch.stack([self._network(run % self._count) for run in runs])

    @cached_property
    def digest(self) -> str:
        """What tells these networks from others."""
        content = hashlib.sha256()
        for i in range(self._count):
            content.update(self._network(i).numpy().tobytes())
        return content.hexdigest()

    @cached_property
    def _zoo(self) -> Zoo | None:
        return Zoo.open(self.path) if (Path(self.path) / "zarr.json").is_file() else None

    @cached_property
    def _runs(self) -> list[int]:
        return [] if self._zoo is None else self._zoo.usable_runs().tolist()

    @cached_property
    def _files(self) -> list[SnapshotFile]:
        return [run.snapshots[-1] for run in find_runs(self.path).runs]

    @cached_property
    def _count(self) -> int:
        count = len(self._files if self._zoo is None else self._runs)
        if not count:
            raise ValueError(f"expected a zoo with complete runs to start from, got {self.path} without any")
        return count

    def _network(self, i: int) -> Tensor:
        if self._zoo is None:
            tensors = dict(read_snapshot(self._files[i], None, self.layout).tensors)
        else:
            run = self._runs[i]
            tensors = self._zoo.state_dict(run, int((self._zoo.inner_step[run] >= 0).sum()) - 1)
        try:
            return self.layout.flatten(tensors)
        except ValueError as error:
            raise ValueError(f"init_from: the networks of {self.path} are not the task's: {error}") from error
