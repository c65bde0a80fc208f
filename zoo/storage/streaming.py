"""Streams a zoo through shuffled blocks, for zoos larger than memory or in an object store.

Reading networks one by one at random needs the zoo on a local disk. Here each shard is read once an epoch, whole, in
random order, and its networks are mixed in a buffer, so that any storage is read at its full speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from zoo.storage.zoo import Zoo

Example: TypeAlias = dict[str, Tensor]
_UNITS: Final = ("snapshot", "run")


class StreamingZooDataset(IterableDataset[Example]):
    """Networks of a zoo in an order that differs in every epoch and is a function of the seed.

    An example is a dict of tensors: `params`, `inner_step`, `run`, `snapshot` and the zoo's metrics. For the unit
    "snapshot" these are one network: params (P,), the others (). For the unit "run" they are a whole run: params
    (S, P), inner_step and metrics (S,), so that pairs of networks of one run can be drawn; snapshots that a run does
    not have have inner_step -1 and NaN.

    Blocks are dealt to the workers of a DataLoader, and to the processes of a distributed run, so each network comes
    once an epoch. Some workers may have one block more than others.

    With a zoo in an object store, give the DataLoader `multiprocessing_context="spawn"`: connections do not survive a
    fork.

    Args:
        zoo: to read; opened from a path, an address or a store.
        split: a declared split, or None for all runs.
        unit: "snapshot" or "run".
        shuffle: False for the order on disk.
        buffer_size: examples that are mixed with one another; more mix better and need more memory.
        seed: of the order.
        include_diverged: also runs whose training failed.
        rank, world_size: this process and their number in a distributed run.

    Raises:
        ValueError: for settings out of range, or if there is no run to stream.
        KeyError: for a split that the zoo does not declare.
    """

    def __init__(
        self,
        zoo: Zoo,
        *,
        split: str | None = None,
        unit: str = "snapshot",
        shuffle: bool = True,
        buffer_size: int = 4096,
        seed: int = 0,
        include_diverged: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        if unit not in _UNITS:
            raise ValueError(f"unit must be one of {_UNITS}, got {unit!r}")
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be positive, got {buffer_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        self.zoo = zoo
        self.unit = unit
        self.shuffle = shuffle
        self.buffer_size = buffer_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.runs = (
            zoo.usable_runs(include_diverged=include_diverged)
            if split is None
            else zoo.split(split, include_diverged=include_diverged)
        )
        if not len(self.runs):
            where = "the zoo" if split is None else f"split {split!r}"
            raise ValueError(f"{where} has no run to stream that is there and did not diverge")
        # shared with the workers of a DataLoader, which see a change although they were started before it
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; call it before each epoch."""
        self._epoch.fill_(epoch)

    @property
    def num_examples(self) -> int:
        """Examples of an epoch, over all workers and processes."""
        return len(self.runs) if self.unit == "run" else int((self.zoo.inner_step[self.runs] >= 0).sum())

    def __iter__(self) -> Iterator[Example]:
        rng = np.random.default_rng([self.seed, int(self._epoch)])
        blocks = np.unique(self.runs // self.zoo.spec.block_size)
        if self.shuffle:
            blocks = rng.permutation(blocks)
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        position = self.rank * num_workers + worker_id
        mine = blocks[position :: self.world_size * num_workers].tolist()
        own_rng = np.random.default_rng([self.seed, int(self._epoch), position])
        examples = self._examples(mine, own_rng)
        return _mixed(examples, self.buffer_size, own_rng) if self.shuffle else examples

    def _examples(self, blocks: list[int], rng: np.random.Generator) -> Iterator[Example]:
        """Examples of those blocks one block after the other, the next one being read meanwhile."""
        if not blocks:
            return
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._read, blocks[0])
            for following in blocks[1:]:
                block, coming = coming.result(), reader.submit(self._read, following)
                yield from self._examples_of(block, rng)
            yield from self._examples_of(coming.result(), rng)

    def _read(self, block: int) -> Example:
        """All chosen runs of a block: params (n, S, P), inner_step and metrics (n, S), run (n,)."""
        members = self.zoo.spec.block_runs(block)
        runs = self.runs[(self.runs >= members.start) & (self.runs < members.stop)]
        arrays = {"params": self.zoo.params[runs], "run": runs, "inner_step": self.zoo.inner_step[runs]}
        arrays |= {name: values[runs] for name, values in self._metrics.items()}
        return {name: torch.from_numpy(values) for name, values in arrays.items()}

    def _examples_of(self, block: Example, rng: np.random.Generator) -> Iterator[Example]:
        if self.unit == "run":
            places: list[tuple[int, ...]] = [(i,) for i in range(len(block["run"]))]
        else:
            places = [tuple(place) for place in (block["inner_step"] >= 0).nonzero().tolist()]
        for i in rng.permutation(len(places)) if self.shuffle else range(len(places)):
            place = places[i]
            # clones, because a view would keep the whole block in memory as long as it waits in the buffer
            example = {name: values[place].clone() for name, values in block.items() if name != "run"}
            example["run"] = block["run"][place[0]]
            if self.unit == "snapshot":
                example["snapshot"] = torch.tensor(place[-1])
            yield example

    @cached_property
    def _metrics(self) -> dict[str, np.ndarray]:
        return {name: self.zoo.metric(name) for name in self.zoo.spec.metric_names}


def _mixed(examples: Iterator[Example], size: int, rng: np.random.Generator) -> Iterator[Example]:
    """The same examples, each in random exchange for the next one, then the rest in random order."""
    buffer = list(islice(examples, size))
    for example in examples:
        place = int(rng.integers(len(buffer)))
        yield buffer[place]
        buffer[place] = example
    for place in rng.permutation(len(buffer)):
        yield buffer[place]
