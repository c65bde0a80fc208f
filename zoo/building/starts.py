"""Networks that runs start from in place of fresh ones: the last snapshots of a zoo's runs, or of checkpoints.

Run i starts from network i modulo their number.

Legend: N runs, P numbers of one network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from zoo.checkpoints.adapters import adapter_tensors, different_settings
from zoo.checkpoints.readers import read_snapshot
from zoo.checkpoints.runs import SnapshotFile, find_runs
from zoo.networks.base import check_base
from zoo.networks.wrappers import unwrapped
from zoo.storage.zoo import Zoo
from zoo.tasks.task import Task


@dataclass(frozen=True)
class Starts:
    """Given networks.

    Args:
        path: of a zoo, whose complete runs they are, or of checkpoints as `import_checkpoints` takes them.
        task: of the runs.

    Raises:
        ValueError: when they are read, if there are none, they are of another architecture or base, or not finite.
    """

    path: str
    task: Task

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

    @cached_property
    def _base(self) -> dict[str, Tensor]:
        return self.task.base

    def _network(self, i: int) -> Tensor:
        try:
            tensors, base_hash = self._from_file(self._files[i]) if self._zoo is None else self._from_zoo(self._zoo, i)
            tensors = unwrapped(tensors, self.task.layout)
            check_base(tensors, base_hash, self._base, self.task.base_hash)
            network = self.task.layout.flatten(tensors)
            if not bool(network.isfinite().all()):
                raise ValueError(f"number {i} has infinities or NaN; leave it out")
        except ValueError as error:
            raise ValueError(f"init_from: the networks of {self.path} are not the task's: {error}") from error
        return network

    def _from_file(self, file: SnapshotFile) -> tuple[Mapping[str, Tensor], str]:
        """Tensors of a checkpoint, and the hash of its base if it is noted."""
        tensors = read_snapshot(file, None, self.task.layout).tensors
        if file.adapter_config:
            tensors = adapter_tensors(tensors, file.adapter_config, self.task.make_model())
        return tensors, str(file.sidecar.get("base_hash", ""))

    def _from_zoo(self, zoo: Zoo, i: int) -> tuple[Mapping[str, Tensor], str]:
        run = self._runs[i]
        theirs, own = (config.get("adapter") for config in (zoo.task_config, self.task.config))
        if isinstance(theirs, Mapping) and isinstance(own, Mapping) and (differing := different_settings(theirs, own)):
            raise ValueError(f"they are adapters of another kind: {differing}")
        return zoo.state_dict(run, int((zoo.inner_step[run] >= 0).sum()) - 1), zoo.spec.base_hash
