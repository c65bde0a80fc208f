"""The same array (R, S, P) of parameters in seven kinds of files, each written and read the best way it offers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

import h5py
import lmdb
import numpy as np
import tensorstore
import zarr
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from zoo import ParamLayout, Zoo, ZooSpec, ZooWriter


class OpenFiles(NamedTuple):
    """Files of one kind, open for reading.

    Attributes:
        read: (B, P) parameters of (run, snapshot) pairs (B, 2).
        scan: all parameters in pieces, in memory.
    """

    read: Callable[[np.ndarray], np.ndarray]
    scan: Callable[[], Iterable[np.ndarray]]


def open_zoo(path: Path) -> OpenFiles:
    zoo = Zoo.open(path)
    return OpenFiles(zoo.read, lambda: (params for _, params in zoo.blocks()))


def open_zarr(path: Path) -> OpenFiles:
    array = zarr.open_array(path / "params", mode="r")
    return OpenFiles(one_by_one(lambda run, snapshot: array[run, snapshot]), in_slices(array, array.shards[0]))


def open_tensorstore(path: Path) -> OpenFiles:
    source = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/params/"}}
    array = tensorstore.open(source, read=True).result()
    scan = in_slices(array, array.chunk_layout.write_chunk.shape[0])
    return OpenFiles(
        lambda pairs: array[pairs[:, 0], pairs[:, 1]].read().result(), lambda: (part.read().result() for part in scan())
    )


def open_memmap(path: Path) -> OpenFiles:
    array = np.load(path / "params.npy", mmap_mode="r")
    return OpenFiles(
        lambda pairs: np.asarray(array[pairs[:, 0], pairs[:, 1]]), lambda: map(np.array, in_slices(array, 16)())
    )


def open_lmdb(path: Path) -> OpenFiles:
    transaction = lmdb.open(str(path), readonly=True, lock=False, readahead=False).begin(buffers=True)
    return OpenFiles(
        one_by_one(lambda run, snapshot: np.frombuffer(transaction.get(lmdb_key(run, snapshot)), np.float32)),
        lambda: (np.frombuffer(value, np.float32).copy() for _, value in transaction.cursor()),
    )


def open_hdf(path: Path) -> OpenFiles:
    array = h5py.File(path / "params.h5", "r")["params"]
    return OpenFiles(one_by_one(lambda run, snapshot: array[run, snapshot]), in_slices(array, 16))


def open_safetensors(path: Path) -> OpenFiles:
    def read(run: int, snapshot: int) -> np.ndarray:
        with safe_open(path / f"{run}.safetensors", "numpy") as file:
            return file.get_tensor(str(snapshot))

    files = [path / f"{run}.safetensors" for run in range(len(os.listdir(path)))]
    return OpenFiles(one_by_one(read), lambda: (params for file in files for params in load_file(file).values()))


def one_by_one(read: Callable[[int, int], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Reads many networks with what reads one."""
    return lambda pairs: np.stack([read(run, snapshot) for run, snapshot in pairs.tolist()])


def in_slices(array: Any, step: int) -> Callable[[], Iterator[Any]]:
    """All of an array (R, ...), so many runs at a time."""
    return lambda: (array[start : start + step] for start in range(0, array.shape[0], step))


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
    "zoo": (write_zoo, open_zoo),
    "zarr-python, the zoo's files": (None, open_zarr),
    "tensorstore, the zoo's files": (None, open_tensorstore),
    "zarr-python, shards without checksums": (write_zarr, open_zarr),
    "numpy memmap": (write_memmap, open_memmap),
    "LMDB": (write_lmdb, open_lmdb),
    "HDF5, a chunk per network": (write_hdf, open_hdf),
    "safetensors, a file per run": (write_safetensors, open_safetensors),
}


def check(store: OpenFiles, params: np.ndarray) -> None:
    """Raise AssertionError unless the store gives back what was written."""
    some = np.array(list(product((0, 3, len(params) - 1), (0, params.shape[1] - 1))))
    np.testing.assert_array_equal(store.read(some), params[some[:, 0], some[:, 1]])
