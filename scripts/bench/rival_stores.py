"""The same array (R, S, P) of parameters in seven kinds of files, each written and read the best way it offers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Final, Protocol

import h5py
import lmdb
import numpy as np
import tensorstore
import zarr
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from zoo import ParamLayout, Zoo, ZooSpec, ZooWriter


class OpenFiles(Protocol):
    """Files of one kind, open for reading."""

    def read(self, pairs: np.ndarray) -> np.ndarray:
        """(B, P) parameters of (run, snapshot) pairs (B, 2)."""
        ...

    def scan(self) -> Iterator[np.ndarray]:
        """All parameters in pieces, in memory."""
        ...


class ZooFiles:
    def __init__(self, path: Path) -> None:
        self.zoo = Zoo.open(path)

    def read(self, pairs: np.ndarray) -> np.ndarray:
        return self.zoo.read(pairs)

    def scan(self) -> Iterator[np.ndarray]:
        return (params for _, params in self.zoo.blocks())


class ZarrFiles:
    def __init__(self, path: Path) -> None:
        self.array = zarr.open_array(path / "params", mode="r")

    def read(self, pairs: np.ndarray) -> np.ndarray:
        return np.stack([self.array[run, snapshot] for run, snapshot in pairs.tolist()])

    def scan(self) -> Iterator[np.ndarray]:
        step = self.array.shards[0]
        return (self.array[start : start + step] for start in range(0, self.array.shape[0], step))


class TensorstoreFiles:
    def __init__(self, path: Path) -> None:
        source = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/params/"}}
        self.array = tensorstore.open(source, read=True).result()

    def read(self, pairs: np.ndarray) -> np.ndarray:
        return self.array[pairs[:, 0], pairs[:, 1]].read().result()

    def scan(self) -> Iterator[np.ndarray]:
        step = self.array.chunk_layout.write_chunk.shape[0]
        return (self.array[start : start + step].read().result() for start in range(0, self.array.shape[0], step))


class MemmapFiles:
    def __init__(self, path: Path) -> None:
        self.array = np.load(path / "params.npy", mmap_mode="r")

    def read(self, pairs: np.ndarray) -> np.ndarray:
        return np.asarray(self.array[pairs[:, 0], pairs[:, 1]])

    def scan(self) -> Iterator[np.ndarray]:
        return (np.array(self.array[start : start + 16]) for start in range(0, len(self.array), 16))


class LmdbFiles:
    def __init__(self, path: Path) -> None:
        self.transaction = lmdb.open(str(path), readonly=True, lock=False, readahead=False).begin(buffers=True)

    def read(self, pairs: np.ndarray) -> np.ndarray:
        found = [self.transaction.get(lmdb_key(run, snapshot)) for run, snapshot in pairs.tolist()]
        return np.stack([np.frombuffer(value, np.float32) for value in found])

    def scan(self) -> Iterator[np.ndarray]:
        return (np.frombuffer(value, np.float32).copy() for _, value in self.transaction.cursor())


class HdfFiles:
    def __init__(self, path: Path) -> None:
        self.array = h5py.File(path / "params.h5", "r")["params"]

    def read(self, pairs: np.ndarray) -> np.ndarray:
        return np.stack([self.array[run, snapshot] for run, snapshot in pairs.tolist()])

    def scan(self) -> Iterator[np.ndarray]:
        return (self.array[start : start + 16] for start in range(0, len(self.array), 16))


class SafetensorsFiles:
    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, pairs: np.ndarray) -> np.ndarray:
        rows = []
        for run, snapshot in pairs.tolist():
            with safe_open(self.path / f"{run}.safetensors", "numpy") as file:
                rows.append(file.get_tensor(str(snapshot)))
        return np.stack(rows)

    def scan(self) -> Iterator[np.ndarray]:
        for run in range(len(os.listdir(self.path))):
            yield from load_file(self.path / f"{run}.safetensors").values()


def write_zoo(path: Path, params: np.ndarray, layout: ParamLayout, block_size: int) -> None:
    runs, snapshots, _ = params.shape
    spec = ZooSpec(
        layout=layout, num_runs=runs, num_snapshots=snapshots, block_size=block_size, metric_names=("val_loss",)
    )
    writer = ZooWriter.create(path, spec)
    for block in range(writer.num_blocks):
        numbers = np.array(writer.block_runs(block))
        grid = np.tile(np.arange(snapshots), (len(numbers), 1))
        loss = np.zeros(grid.shape, np.float32)
        writer.write_block(
            block, params[numbers], grid, {"val_loss": loss}, {"seed": numbers}, np.ones(len(numbers), np.int64)
        )


def write_zarr(path: Path, params: np.ndarray, layout: ParamLayout, block_size: int) -> None:
    """Shards of the zoo's shape through zarr-python, which does not wait for the disk."""
    block = (block_size, *params.shape[1:])
    array = zarr.create_array(
        path / "params", shape=params.shape, shards=block, chunks=(1, 1, params.shape[2]), dtype="f4", compressors=None
    )
    for start in range(0, len(params), block_size):
        array[start : start + block_size] = params[start : start + block_size]
    sync_files(path)


def write_memmap(path: Path, params: np.ndarray, layout: ParamLayout, block_size: int) -> None:
    path.mkdir()
    np.save(path / "params.npy", params)
    sync_files(path)


def write_lmdb(path: Path, params: np.ndarray, layout: ParamLayout, block_size: int) -> None:
    with lmdb.open(str(path), map_size=2 * params.nbytes + 2**28) as environment:
        for start in range(0, len(params), block_size):
            with environment.begin(write=True) as transaction:
                for run in range(start, min(start + block_size, len(params))):
                    for snapshot in range(params.shape[1]):
                        transaction.put(lmdb_key(run, snapshot), params[run, snapshot].tobytes(), append=True)


def write_hdf(path: Path, params: np.ndarray, layout: ParamLayout, block_size: int) -> None:
    path.mkdir()
    with h5py.File(path / "params.h5", "w") as file:
        file.create_dataset("params", data=params, chunks=(1, 1, params.shape[2]))
    sync_files(path)


def write_safetensors(path: Path, params: np.ndarray, layout: ParamLayout, block_size: int) -> None:
    path.mkdir()
    for run, snapshots in enumerate(params):
        save_file({str(i): row for i, row in enumerate(snapshots)}, path / f"{run}.safetensors")
    sync_files(path)


def lmdb_key(run: int, snapshot: int) -> bytes:
    return run.to_bytes(8, "big") + snapshot.to_bytes(8, "big")


def sync_files(folder: Path) -> None:
    """Wait until the files are on the disk, as the zoo's writer and LMDB do."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


Writer = Callable[[Path, np.ndarray, ParamLayout, int], None]
# name: how it is written (None: the zoo's own files), how it is opened
STORES: Final[dict[str, tuple[Writer | None, Callable[[Path], OpenFiles]]]] = {
    "zoo": (write_zoo, ZooFiles),
    "zarr-python, the zoo's files": (None, ZarrFiles),
    "tensorstore, the zoo's files": (None, TensorstoreFiles),
    "zarr-python, shards without checksums": (write_zarr, ZarrFiles),
    "numpy memmap": (write_memmap, MemmapFiles),
    "LMDB": (write_lmdb, LmdbFiles),
    "HDF5, a chunk per network": (write_hdf, HdfFiles),
    "safetensors, a file per run": (write_safetensors, SafetensorsFiles),
}


def check(store: OpenFiles, params: np.ndarray) -> None:
    """Raise AssertionError unless the store gives back what was written."""
    some = np.array(list(product((0, 3, len(params) - 1), (0, params.shape[1] - 1))))
    np.testing.assert_array_equal(store.read(some), params[some[:, 0], some[:, 1]])
