"""Random access to standard Zarr v3 shards through their index.

zarr-python decodes a shard's chunks through a general pipeline, at some hundred microseconds each. Here a shard is
mapped into memory, its index is read once, and a row is one copy plus the check of its CRC32C.

A shard is a file: its chunks of one network each, in any order, then for each (run, snapshot) of the block the
offset and length of its chunk as two little-endian uint64 (all ones where there is none), then the CRC32C of that
index. Each chunk is P numbers, little-endian, and their CRC32C.

Source: Zarr specification version 3, "sharding-indexed codec" and "crc32c codec", version 1.0.

Legend: G runs of one block, S snapshots, P numbers of one network.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import google_crc32c
import numpy as np
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync

_ABSENT: Final = np.uint64(2**64 - 1)
_PORTION_NBYTES: Final = 2**26  # written at once
_CRC_NBYTES: Final = 4
# CRC32C of any message followed by its own CRC32C
_CRC_RESIDUE: Final = 0x48674BC7
_NUM_MAPPED: Final = 1024
_NUM_FETCHED: Final = 2


class ShardError(ValueError):
    """A shard that is missing or damaged; the message says how, the caller knows which block."""


@dataclass(frozen=True)
class ShardShape:
    """Runs and snapshots of a shard and the type and number of values in one chunk."""

    num_runs: int
    num_snapshots: int
    num_params: int
    dtype: np.dtype

    @property
    def row_nbytes(self) -> int:
        return self.num_params * self.dtype.itemsize

    @property
    def chunk_nbytes(self) -> int:
        return self.row_nbytes + _CRC_NBYTES

    @property
    def index_nbytes(self) -> int:
        return self.num_runs * self.num_snapshots * 16 + _CRC_NBYTES


class Shard:
    """One shard in memory or mapped.

    Args:
        raw: (nbytes,) uint8, the whole file.
        shape: what it should hold.

    Raises:
        ShardError: if the index is damaged or points outside the file.
    """

    def __init__(self, raw: np.ndarray, shape: ShardShape) -> None:
        self.raw = raw
        self.shape = shape
        self._view = raw.data  # slices of it copy faster than those of an array
        index = raw[max(0, len(raw) - shape.index_nbytes) :]
        if len(index) < shape.index_nbytes:
            raise ShardError(f"truncated: {len(raw):,} bytes, the index alone has {shape.index_nbytes:,}")
        if google_crc32c.value(index) != _CRC_RESIDUE:
            raise ShardError("truncated, or its index is damaged (checksum of the index)")
        entries = index[:-_CRC_NBYTES].view("<u8").reshape(-1, 2)
        self.present = entries[:, 0] != _ABSENT  # (G * S,)
        offsets, lengths = entries[self.present].astype(np.int64).T
        if not (lengths == shape.chunk_nbytes).all():
            raise ShardError(
                f"a network takes {shape.chunk_nbytes:,} bytes by the layout, the index has {set(lengths.tolist())}"
            )
        if len(offsets) and (offsets.min() < 0 or (offsets + lengths).max() > len(raw) - shape.index_nbytes):
            raise ShardError("its index points outside the file")
        self.offsets = np.full(len(entries), -1, np.int64)
        self.offsets[self.present] = offsets

    def copy_rows(self, entries: np.ndarray, places: np.ndarray, target: memoryview) -> list[int]:
        """Copy networks into a buffer after checking each one's CRC32C.

        Args:
            entries: (n,) run * S + snapshot, runs counted from the first of the block.
            places: (n,) row of the buffer for each.
            target: bytes of the buffer, whose rows are `row_nbytes` long.

        Returns:
            Places whose networks are not in the shard; nothing was copied there.

        Raises:
            ShardError: if the bytes of a network do not have their checksum.
        """
        nbytes = self.shape.row_nbytes
        raw, view, crc = self.raw, self._view, google_crc32c.value
        absent = []
        for entry, place, start in zip(entries.tolist(), places.tolist(), self.offsets[entries].tolist(), strict=True):
            if start < 0:
                absent.append(place)
                continue
            if crc(raw[start : start + nbytes + _CRC_NBYTES]) != _CRC_RESIDUE:
                run, snapshot = divmod(entry, self.shape.num_snapshots)
                raise ShardError(f"damaged: run {run} of the block, snapshot {snapshot} (checksum of its parameters)")
            target[place * nbytes : (place + 1) * nbytes] = view[start : start + nbytes]
        return absent

    def has_gaps(self) -> bool:
        """Whether some bytes of the file belong to no chunk, or to two, and so have no checksum of their own."""
        starts = np.sort(self.offsets[self.present])
        expected = np.arange(len(starts)) * self.shape.chunk_nbytes
        size = len(starts) * self.shape.chunk_nbytes + self.shape.index_nbytes
        return size != len(self.raw) or not np.array_equal(starts, expected)


class Shards:
    """The shards of a zoo, of which the most recent stay open.

    Args:
        fetch: the bytes of a block's file, uint8; ShardError if it is missing.
        shape: of the shards.
        num_kept: how many stay open.
    """

    def __init__(self, fetch: Callable[[int], np.ndarray], shape: ShardShape, num_kept: int) -> None:
        self._settings = (fetch, shape, num_kept)
        self.open = lru_cache(num_kept)(lambda block: Shard(fetch(block), shape))

    def __reduce__(self) -> tuple:
        return Shards, self._settings


def mapped_shards(folder: Path, shape: ShardShape) -> Shards:
    """Shards in the local folder of the params array, mapped into memory."""
    return Shards(partial(_map, folder), shape, _NUM_MAPPED)


def fetched_shards(store: Store, prefix: str, shape: ShardShape) -> Shards:
    """Shards of any Zarr store under the key of the params array, fetched whole."""
    return Shards(partial(_fetch, store, prefix), shape, _NUM_FETCHED)


def _map(folder: Path, block: int) -> np.ndarray:
    path = folder / shard_key(block)
    try:
        with open(path, "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        raise ShardError(f"missing: {path}") from None
    except ValueError:
        raise ShardError(f"truncated: {path} is empty") from None
    except OSError as error:
        raise ShardError(f"cannot be read: {error}") from error


def _fetch(store: Store, prefix: str, block: int) -> np.ndarray:
    key = f"{prefix}/{shard_key(block)}".lstrip("/")
    value = sync(store.get(key, default_buffer_prototype()))
    if value is None:
        raise ShardError(f"missing: {key} in {store}")
    return np.frombuffer(value.to_bytes(), np.uint8)


def shard_key(block: int) -> str:
    """Key of a block's shard, below the params array."""
    return f"c/{block}/0/0"


def shard_parts(stored: np.ndarray, present: np.ndarray, shape: ShardShape) -> Iterator[np.ndarray]:
    """Bytes of a shard, one run after the other and the index last, in portions that bound the memory.

    Args:
        stored: (g, S, P) of the stored dtype, g <= G.
        present: (g, S) bool; networks that are not present take no space and read as the fill value.
        shape: of the shard; runs beyond g are absent.
    """
    index = np.full((shape.num_runs, shape.num_snapshots, 2), _ABSENT, "<u8")
    offset = 0
    for run, kept in enumerate(present):
        for some in portions(kept, shape.chunk_nbytes):
            rows = stored[run][some].view(np.uint8)  # (some, row_nbytes)
            chunks = np.empty((len(rows), shape.chunk_nbytes), np.uint8)
            chunks[:, :-_CRC_NBYTES] = rows
            checksums = np.array([google_crc32c.value(row) for row in rows], "<u4")
            chunks[:, -_CRC_NBYTES:] = checksums.view(np.uint8).reshape(-1, _CRC_NBYTES)
            index[run, some, 0] = offset + shape.chunk_nbytes * np.arange(len(rows))
            index[run, some, 1] = shape.chunk_nbytes
            offset += chunks.size
            yield chunks.reshape(-1)
    yield from checked(index)


def portions(kept: np.ndarray, nbytes: int) -> Iterator[np.ndarray]:
    """Indices of the snapshots of a run that are kept (S,) bool, of at most 64 MiB at once if each takes `nbytes`."""
    places = np.flatnonzero(kept)
    size = max(1, _PORTION_NBYTES // max(1, nbytes))
    return (places[start : start + size] for start in range(0, len(places), size))


def checked(values: np.ndarray) -> Iterator[np.ndarray]:
    """Bytes of an array followed by their CRC32C: a chunk of the codecs bytes and crc32c."""
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    yield raw
    yield np.array([google_crc32c.value(raw)], "<u4").view(np.uint8)


def run_checksums(stored: np.ndarray, present: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """CRC32C of all that is kept of each run, whatever its place in a file.

    Args:
        stored: (g, S, P) parameters as stored.
        present: (g, S) bool; absent networks do not count.
        others: arrays (g, ...) of the remaining values, in the order of the schema.

    Returns:
        (g,) uint32.
    """
    result = np.empty(len(stored), np.uint32)
    for run, kept in enumerate(present):
        networks = (stored[run, snapshot] for snapshot in np.flatnonzero(kept))
        result[run] = extended(extended(0, networks), (values[run] for values in others))
    return result


def extended(checksum: int, arrays: Iterable[np.ndarray]) -> int:
    """CRC32C of what has that checksum and the bytes of some arrays after it."""
    for values in arrays:
        checksum = google_crc32c.extend(checksum, np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return checksum
