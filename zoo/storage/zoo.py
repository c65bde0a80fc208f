"""Zoo: reads a population of trained networks from a folder, an s3:// address or any Zarr store.

Legend: R runs, S snapshots, P numbers of one network, G runs of one block, B pairs asked for.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.abc.store import Store
from zarr.storage import LocalStore, StorePath

from zoo.hub import SCHEME, UploadOptions
from zoo.lazy import needs
from zoo.networks.layout import ParamLayout
from zoo.storage.base import BaseError, read_base
from zoo.storage.export import write_checkpoint
from zoo.storage.hub import hub_store, push_to_hub
from zoo.storage.params_view import ParamsView
from zoo.storage.precision import from_stored
from zoo.storage.schema import Json, RunStatus, ZooFormatError, ZooSpec, attributes_checksum, block_name
from zoo.storage.shards import ShardError, Shards, ShardShape, fetched_shards, mapped_shards
from zoo.storage.verify import Finding, repair_of, verify_zoo

if TYPE_CHECKING:
    from obstore.store import S3Config


class DamagedZooError(ValueError):
    """Numbers that are missing or do not have their checksum; the message says which block."""


class Zoo:
    """A zoo, open for reading. Use `Zoo.open`.

    Blocks that are committed later are seen by opening the zoo again.

    Attributes:
        spec: all settings of the zoo.
        group: the Zarr group.
        shards: source of the parameters.
    """

    def __init__(self, group: zarr.Group, spec: ZooSpec, shards: Shards) -> None:
        self.group = group
        self.spec = spec
        self.shards = shards
        self._bounds = np.array(spec.shape[:2], np.uint64)

    @classmethod
    def open(cls, source: str | os.PathLike | Store, *, storage_options: Mapping[str, str] | None = None) -> Zoo:
        """Open a zoo; warns if its attributes are not those it was made with.

        Args:
            source: a folder, an address (s3://bucket/path needs the extra `s3`, hf://datasets/USER/REPO the extra
                `hub`), or a Zarr store.
            storage_options: settings of the object store (access_key_id, region, endpoint, ...), of the hub (token).

        Raises:
            FileNotFoundError: if there is nothing.
            ZooFormatError: if it is no zoo, its attributes are damaged, or its version is newer than this release.
        """
        store: Store | None = None
        try:
            store = _resolve(source, storage_options or {})
            group = zarr.open_group(store, mode="r", zarr_format=3)
            attributes = cast("dict[str, Json]", dict(group.attrs))
        except FileNotFoundError:
            if store is None:  # said already what is missing
                raise
            raise FileNotFoundError(f"there is no Zarr group, and so no zoo, at {source}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ZooFormatError(f"{source} is no Zarr group, or its zarr.json is damaged: {error!r}") from error
        except Exception as error:  # of the object store, whose messages run over many lines
            if not type(error).__module__.startswith(("obstore", "huggingface_hub", "httpx", "requests")):
                raise
            raise OSError(f"cannot read {source}: {str(error).partition(chr(10))[0]}") from error
        spec = ZooSpec.from_attributes(attributes)
        if attributes.get("checksum") != attributes_checksum(attributes):
            warnings.warn(f"the attributes of {source} were changed; verify() says what no longer fits", stacklevel=2)
        return cls(group, spec, _shards_of(group, spec))

    def __repr__(self) -> str:
        runs, snapshots, params = self.spec.shape
        return f"Zoo({runs:,} runs x {snapshots} snapshots x {params:,} parameters, {self.spec.dtype})"

    @property
    def layout(self) -> ParamLayout:
        return self.spec.layout

    @property
    def num_runs(self) -> int:
        return self.spec.num_runs

    @property
    def num_snapshots(self) -> int:
        return self.spec.shape[1]

    @property
    def num_blocks(self) -> int:
        return self.spec.num_blocks

    @property
    def task_config(self) -> Mapping[str, Json]:
        """Settings from which `get_task` rebuilds the task."""
        return self.spec.task_config

    @cached_property
    def attributes(self) -> dict[str, Json]:
        """Attributes of the Zarr group, those added by users included."""
        return cast("dict[str, Json]", dict(self.group.attrs))

    @property
    def params(self) -> ParamsView:
        """The parameters, indexed like an array (R, S, ...) and read as float32."""
        return ParamsView(self)

    @cached_property
    def inner_step(self) -> np.ndarray:
        """(R, S) int64 training step of each snapshot; -1 where a run has none."""
        return self._array("inner_step")

    @cached_property
    def runs(self) -> Mapping[str, np.ndarray]:
        """Columns of the runs, each (R,): seed, status, checksum and the hyperparameters."""
        return {name: self._array(f"runs/{name}") for name in self.spec.run_columns}

    @cached_property
    def status(self) -> np.ndarray:
        """(R,) of RunStatus."""
        return self._array("runs/status")

    def metric(self, name: str) -> np.ndarray:
        """(R, S) float32 metric of each snapshot, NaN where there is none.

        Raises:
            KeyError: for a metric that the zoo does not have.
        """
        if name not in self.spec.metric_names:
            raise KeyError(f"no metric {name!r}; the zoo has {list(self.spec.metric_names)}")
        return self._array(f"metrics/{name}")

    def read(self, pairs: np.ndarray | Tensor | list) -> np.ndarray:
        """Parameters of any (run, snapshot) pairs; each network's checksum is checked.

        Args:
            pairs: (B, 2) integers, negative ones counted from the end.

        Returns:
            (B, P) float32; NaN for snapshots that a run does not have.

        Raises:
            IndexError: for a run or snapshot that the zoo does not have, or a run that is not there yet.
            DamagedZooError: if the stored numbers are damaged.
        """
        pairs = self._checked_pairs(np.asarray(pairs))
        stored = np.empty((len(pairs), self.layout.num_params), self.spec.stored_dtype)
        target = stored.view(np.uint8).reshape(-1).data
        order = np.argsort(pairs[:, 0], kind="stable")
        runs, snapshots = pairs[order].T
        blocks, locals_ = np.divmod(runs, self.spec.block_size)
        entries = locals_ * self.num_snapshots + snapshots
        absent = []
        bounds = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(pairs)] if len(pairs) else []
        for start, stop in pairwise(bounds):
            block = int(blocks[start])
            try:
                shard = self.shards.open(block)
                absent += shard.copy_rows(entries[start:stop], order[start:stop], target)
            except ShardError as error:
                where = block_name(self.spec, block)
                raise DamagedZooError(f"{where}: {error}; {repair_of(self.spec)}") from error
        params = from_stored(stored, self.spec.dtype)
        if absent:
            params[absent] = np.nan
        return params

    def blocks(self) -> Iterator[tuple[range, np.ndarray]]:
        """Runs and parameters (g, S, P) of each committed block: a scan in bounded memory."""
        for block in range(self.num_blocks):
            runs = self.spec.block_runs(block)
            if self.status[runs.start]:
                yield runs, self.params[runs.start : runs.stop]

    @property
    def base(self) -> dict[str, Tensor]:
        """Tensors that all networks share, by name: frozen parameters and constant buffers; empty if there are none.

        Raises:
            DamagedZooError: if they are missing or do not have their hash.
        """
        try:
            return read_base(self.group, self.layout, self.spec.base_hash)
        except BaseError as error:
            raise DamagedZooError(str(error)) from error

    def state_dict(self, run: int, snapshot: int, *, merged: bool = False) -> dict[str, Tensor]:
        """Tensors of one network as `load_state_dict` takes them.

        Args:
            run: index of the run; negative ones count from the end.
            snapshot: index of the snapshot; negative ones count from the end of the zoo's snapshots.
            merged: the whole network, that is with the base on which it was trained; otherwise what was trained,
                for `load_state_dict(..., strict=False)` if there is a base.

        Raises:
            IndexError: if the zoo has no such run, or the run no such snapshot.
            TypeError: if they are not integers.
        """
        run, snapshot = self._place(run, snapshot)
        trained = self.layout.unflatten(torch.from_numpy(self.read([(run, snapshot)])[0]))
        if not merged or self.layout.base is None:
            return trained
        base = self.base
        return {name: base[slot.name] for slot in self.layout.base for name in (slot.name, *slot.aliases)} | trained

    def split(self, name: str, *, include_diverged: bool = False) -> np.ndarray:
        """Runs of a declared split that are there, in ascending order.

        Args:
            name: by default the zoo declares "train", "val" and "test".
            include_diverged: also runs whose training failed.

        Raises:
            KeyError: for a split that is not declared.
        """
        rule = self.spec.splits
        usable = self.usable_runs(include_diverged=include_diverged)
        return usable[rule.members(name, self.runs[rule.key][usable])]

    def usable_runs(self, *, include_diverged: bool = False) -> np.ndarray:
        """All runs that are there, by default without those whose training failed, in ascending order."""
        unwanted = [RunStatus.EMPTY] if include_diverged else [RunStatus.EMPTY, RunStatus.DIVERGED]
        return np.flatnonzero(~np.isin(self.status, unwanted))

    def verify(self, blocks: Iterable[int] | None = None) -> list[Finding]:
        """Everything that is wrong, by block; empty for a sound and complete zoo. Reads all of it.

        Args:
            blocks: to look at these alone.
        """
        try:
            group = zarr.open_group(self.group.store_path, mode="r", zarr_format=3)
        except (ValueError, KeyError, TypeError, OSError) as error:
            return [Finding(None, "attributes", f"zarr.json cannot be read: {error!r}; restore it from a copy")]
        chosen = range(self.num_blocks) if blocks is None else blocks
        return verify_zoo(group, self.spec, _shards_of(group, self.spec), chosen)

    def export(self, run: int, snapshot: int, path: str | os.PathLike, *, merged: bool = False) -> None:
        """Write one network as a safetensors file for `load_state_dict`, and what is known about it as JSON beside it.

        Args:
            run, snapshot: which one, as for `state_dict`.
            path: ends in .safetensors; the JSON file has the same name with .json. Missing folders are made, files that
                are there replaced.
            merged: the whole network, with the base on which it was trained.

        Raises:
            IndexError: if the zoo has no such run, or the run no such snapshot.
            ValueError: if the path has another suffix.
            OSError: if the file cannot be written.
        """
        write_checkpoint(self, *self._place(run, snapshot), Path(path), merged=merged)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,
        **options: Unpack[UploadOptions],
    ) -> str:
        """Upload a finished zoo in a folder to the Hugging Face Hub, as a data set with a card; returns its address.

        All files become one commit, so a reader sees all of the zoo or nothing. It is then read from
        `hf://datasets/REPO_ID`. Needs the extra `hub`.

        Args:
            repo_id: USER/NAME; made if it is not there.
            license: that the card names, such as "apache-2.0" or "cc-by-4.0".
            **options: `private`, `token`, `revision` and `replace`, see `zoo.hub.UploadOptions`.

        Raises:
            ValueError: if the zoo is not on this disk, or runs are missing.
            FileExistsError: if the repository holds files, and `replace` is not set.
            HubError: if the hub cannot be reached, or refuses.
        """
        return push_to_hub(self, repo_id, license=license, **options)

    def _array(self, name: str) -> np.ndarray:
        """A whole array other than the parameters; DamagedZooError if it is missing or lacks its checksum."""
        try:
            return np.asarray(cast("zarr.Array", self.group[name])[...])
        except (KeyError, ValueError, OSError) as error:
            raise DamagedZooError(f"array {name!r} cannot be read: {error!r}; Zoo.verify() finds the block") from error

    @cached_property
    def _is_complete(self) -> bool:
        return bool(self.status.all())

    def _checked_pairs(self, pairs: np.ndarray) -> np.ndarray:
        if pairs.size == 0:
            return np.empty((0, 2), np.int64)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            raise IndexError(f"pairs must be (B, 2) integers (run, snapshot), got {pairs.dtype} {pairs.shape}")
        pairs = pairs.astype(np.int64, copy=False)
        if not (pairs.astype(np.uint64) < self._bounds).all():  # negative numbers become huge
            counted = np.where(pairs < 0, pairs + self._bounds.astype(np.int64), pairs)
            if not (counted.astype(np.uint64) < self._bounds).all():
                raise IndexError(
                    f"pairs must lie in {self.num_runs} runs x {self.num_snapshots} snapshots, or be negative from the "
                    f"end, got values from {pairs.min(axis=0).tolist()} to {pairs.max(axis=0).tolist()}"
                )
            pairs = counted
        if not self._is_complete and not self.status[pairs[:, 0]].all():
            run = pairs[self.status[pairs[:, 0]].argmin(), 0]
            raise IndexError(f"run {run} is not there yet: its block is not committed")
        return pairs

    def _place(self, run: int, snapshot: int) -> tuple[int, int]:
        """Run and snapshot counted from the start, if the run has that snapshot."""
        if any(isinstance(number, bool | np.bool_) for number in (run, snapshot)):
            raise TypeError(f"run and snapshot must be integers, got {run!r} and {snapshot!r}")
        for name, number, size in (("run", run, self.num_runs), ("snapshot", snapshot, self.num_snapshots)):
            if not -size <= index(number) < size:
                raise IndexError(f"{name} must be in 0..{size - 1}, or negative from the end, got {number}")
        run, snapshot = index(run) % self.num_runs, index(snapshot) % self.num_snapshots
        if self.inner_step[run, snapshot] < 0:
            raise IndexError(f"run {run} has no snapshot {snapshot}, or is not there yet")
        return run, snapshot


def _resolve(source: str | os.PathLike | Store, options: Mapping[str, str]) -> Store:
    if isinstance(source, LocalStore):
        return LocalStore(source.root.absolute(), read_only=True)  # a process may change its folder
    if isinstance(source, Store):
        return source
    text = os.fspath(source)
    if "://" not in text:
        if not Path(text).is_dir():
            raise FileNotFoundError(f"there is no folder, and so no zoo, at {text}")
        return LocalStore(Path(text).absolute(), read_only=True)
    if text.startswith(SCHEME):
        return hub_store(text, options)
    with needs(f"{text} is read by obstore", "'weightfoundry[s3]'"):
        from obstore.store import from_url
        from zarr.storage import ObjectStore
    endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    plain_http = endpoint.startswith("http://")
    config = cast("S3Config", dict(options))
    return ObjectStore(from_url(text, config=config, client_options={"allow_http": plain_http}), read_only=True)


def _shards_of(group: zarr.Group, spec: ZooSpec) -> Shards:
    shape = ShardShape(spec.block_size, spec.shape[1], spec.shape[2], spec.stored_dtype)
    place: StorePath = group.store_path
    if isinstance(place.store, LocalStore):
        return mapped_shards(place.store.root / place.path / "params", shape)
    return fetched_shards(place.store, f"{place.path}/params".lstrip("/"), shape)
