"""What can be wrong with a zoo, found by reading all of it.

Legend: G runs of one block, S snapshots, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import zarr
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from zoo.storage.base import BaseError, base_arrays, read_base
from zoo.storage.precision import is_finite
from zoo.storage.schema import Json, RunStatus, ZooSpec, array_metadata, attributes_checksum, block_name, small_arrays
from zoo.storage.shards import Shard, ShardError, Shards, extended, portions

_NOT_BUILT: Final = "build again into the same path to finish"


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Args:
        block: where, or None if it concerns the whole zoo.
        kind: "attributes", "metadata", "base", "empty", "shard", "array", "checksum" or "not finite".
        message: what is wrong and how to repair it.
    """

    block: int | None
    kind: str
    message: str

    def __str__(self) -> str:
        return f"[{self.kind}] {self.message}"


def verify_zoo(group: zarr.Group, spec: ZooSpec, shards: Shards, blocks: Iterable[int]) -> list[Finding]:
    """All findings of a zoo, empty when it is sound; see `Zoo.verify`.

    Args:
        group: opened just now, so that it shows what the store holds.
        spec: of the zoo.
        shards: a source that has opened none yet.
        blocks: to look at.
    """
    arrays, findings = _open_arrays(group, spec)
    if not findings:  # blocks cannot be judged by arrays of another shape
        findings = [f for block in blocks for f in _check_block(arrays, spec, shards, block)]
    return [*_check_attributes(group), *_check_base(group, spec), *findings]


def repair_of(spec: ZooSpec) -> str:
    """What to do about a damaged block: built ones are rebuilt, imported ones have to be imported again."""
    if spec.extra.get("source") == "import":
        return "import the checkpoints again, into another path"
    return "build again into the same path: only this block is rebuilt"


def _check_attributes(group: zarr.Group) -> Iterator[Finding]:
    attributes = cast("dict[str, Json]", dict(group.attrs))
    if attributes.get("checksum") != attributes_checksum(attributes):
        text = "attributes in zarr.json were changed (they do not have their checksum); restore the file from a copy"
        yield Finding(None, "attributes", text)


def _check_base(group: zarr.Group, spec: ZooSpec) -> Iterator[Finding]:
    try:
        read_base(group, spec.layout, spec.base_hash)
    except BaseError as error:
        yield Finding(None, "base", str(error))


def _open_arrays(group: zarr.Group, spec: ZooSpec) -> tuple[dict[str, zarr.Array], list[Finding]]:
    """Arrays of the zoo by name, and what does not fit in their metadata."""
    arrays: dict[str, zarr.Array] = {}
    repair = "it is rewritten when the zoo is built again"
    findings = [
        Finding(None, "metadata", f"group {name} cannot be opened; {repair}")
        for name in sorted({array.partition("/")[0] for array in small_arrays(spec) if "/" in array})
        if not _has_group(group, name)
    ]
    expected = zarr.open_group(_in_memory(array_metadata(spec)), mode="r")
    for name in ("params", *base_arrays(spec.layout), *small_arrays(spec)):
        try:
            arrays[name] = cast("zarr.Array", group[name])
        except (KeyError, ValueError, TypeError, OSError) as error:
            findings.append(Finding(None, "metadata", f"array {name} cannot be opened: {error!r}; {repair}"))
            continue
        found, wanted = arrays[name].metadata.to_dict(), expected[name].metadata.to_dict()
        for key in wanted:
            if key != "attributes" and found.get(key) != wanted[key]:
                text = f"{key} of array {name} must be {wanted[key]} by the layout and settings, got {found.get(key)}"
                findings.append(Finding(None, "metadata", f"{text}; {repair}"))
    return arrays, findings


def _has_group(group: zarr.Group, name: str) -> bool:
    try:
        return isinstance(group[name], zarr.Group)
    except (KeyError, ValueError, TypeError, OSError):
        return False


def _check_block(arrays: Mapping[str, zarr.Array], spec: ZooSpec, shards: Shards, block: int) -> Iterator[Finding]:
    """Findings of one block."""
    name, runs, repair = block_name(spec, block), spec.block_runs(block), repair_of(spec)
    values: dict[str, np.ndarray] = {}
    unreadable = []
    for array in small_arrays(spec):
        try:
            values[array] = np.asarray(arrays[array][runs.start : runs.stop])
        except (ValueError, OSError) as error:
            text = f"{name}: {array} cannot be read: {error}; {repair}"
            unreadable.append(Finding(block, "array", text))
    if "runs/status" in values and not values["runs/status"].any():
        yield Finding(block, "empty", f"{name}: not built, or its mark of completion is lost; {_NOT_BUILT}")
        return
    yield from unreadable
    try:
        shard = shards.open(block)
        if shard.has_gaps():
            raise ShardError("it has bytes that belong to no network")
        if not unreadable:
            yield from _check_runs(shard, spec, block, values)
    except ShardError as error:
        yield Finding(block, "shard", f"{name}: bad shard: {error}; {repair}")


def _check_runs(shard: Shard, spec: ZooSpec, block: int, values: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    """Findings of each run of a block whose files can all be read."""
    snapshots, params = spec.shape[1:]
    at_once = list(portions(np.ones(snapshots, bool), params * spec.stored_dtype.itemsize))
    stored = np.empty((len(at_once[0]), params), spec.stored_dtype)
    target = stored.view(np.uint8).reshape(-1).data
    repair = repair_of(spec)
    for local, run in enumerate(spec.block_runs(block)):
        name = f"run {run} of {block_name(spec, block)}"
        status = int(values["runs/status"][local])
        present, are_finite, checksum = np.zeros(snapshots, bool), True, 0
        for some in at_once:
            absent = shard.copy_rows(local * snapshots + some, np.arange(len(some)), target)
            here = np.delete(np.arange(len(some)), absent)
            present[some[here]] = True
            are_finite &= bool(is_finite(stored[here], spec.dtype).all())
            checksum = extended(checksum, stored[here])
        checksum = extended(checksum, (array[local] for key, array in values.items() if key != "runs/checksum"))
        if status not in set(RunStatus) - {RunStatus.EMPTY}:
            yield Finding(block, "array", f"{name}: status {status} is not possible; {repair}")
        elif not np.array_equal(present, values["inner_step"][local] >= 0):
            yield Finding(block, "shard", f"{name}: snapshots in the shard are not those of inner_step; {repair}")
        elif checksum != values["runs/checksum"][local]:
            yield Finding(block, "checksum", f"{name}: its numbers are not those that were committed; {repair}")
        elif status != RunStatus.DIVERGED and not are_finite:
            yield Finding(block, "not finite", f"{name}: NaN or infinite parameters in a complete run; {repair}")


def _in_memory(files: Mapping[str, bytes]) -> MemoryStore:
    return MemoryStore({name: default_buffer_prototype().buffer.from_bytes(data) for name, data in files.items()})
