"""What does it cost to write a population, to read random networks of it, and to read all of it?

    OMP_NUM_THREADS=1 python -m scripts.bench.bench_store [--num-runs 512] [--folder /tmp] [--record]

Prints a table: median and quartiles over the repeats. Rivals take turns in every repeat, so that a busy moment
of the machine meets them all. All files are in the page cache; writing ends when the data are on the disk. The zoo and
zarr-python check each network's CRC32C as they read, the others have no checksums. Needs the extra `bench`. Takes about
three minutes.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from zoo import ParamLayout
from zoo.networks.architectures import MLP

from ..rows import Row
from .command import bench
from .rival_stores import STORES, check

BATCH = 64
Times = dict[str, list[tuple[float, float]]]  # CPU and wall seconds of each repeat
PACKAGES = ("numpy", "zarr", "tensorstore", "lmdb", "h5py", "safetensors")


def rows(
    *,
    num_runs: int = 512,
    num_snapshots: int = 26,
    hidden: int = 128,
    block_size: int = 16,
    num_repeats: int = 31,
    folder: str = tempfile.gettempdir(),
) -> Iterator[Row]:
    """What each kind of file costs.

    Args:
        hidden: width of the MLP 64-hidden-10
        num_repeats: of reading; a tenth of it of writing and scanning
    """
    layout = ParamLayout.of(MLP(64, (hidden,), 10))
    rng = np.random.default_rng(0)
    params = rng.normal(size=(num_runs, num_snapshots, layout.num_params)).astype(np.float32)
    few = max(1, num_repeats // 10)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        paths = {name: Path(place) / file_name(name) for name in STORES}

        def write(name: str) -> None:
            shutil.rmtree(paths[name], ignore_errors=True)
            STORES[name][0](paths[name], params, layout, block_size)

        written = [name for name, (write_files, _) in STORES.items() if write_files is not None]
        writing = rounds(few, {name: lambda _, name=name: write(name) for name in written})
        stores = {name: opener(paths[name]) for name, (_, opener) in STORES.items()}
        for store in stores.values():
            check(store, params)
        pairs = rng.integers(0, params.shape[:2], (num_repeats + 1, BATCH, 2))
        reads = {name: lambda i, store=store: store.read(pairs[i]) for name, store in stores.items()}
        reading = rounds(num_repeats, reads)
        scans = {name: lambda _, store=store: sum(one.nbytes for one in store.scan()) for name, store in stores.items()}
        scanning = rounds(few, scans)
    shape = " x ".join(f"{size:,}" for size in params.shape)
    data = f"{shape} float32, {params.nbytes / 1e6:.0f} MB, blocks of {block_size} runs"
    for name in STORES:
        yield row(name, data, params.nbytes, (writing, reading, scanning))


def row(name: str, data: str, nbytes: int, times: tuple[Times, Times, Times]) -> Row:
    """What writing, reading and scanning one store costs; figures are medians, spreads quartiles."""
    writing, reading, scanning = times
    values = {
        "write MB/s": [nbytes / wall / 1e6 for _, wall in writing.get(name, [])],
        "write CPU-s/GB": [cpu / nbytes * 1e9 for cpu, _ in writing.get(name, [])],
        f"read {BATCH}, CPU-ms": [1e3 * cpu for cpu, _ in reading[name]],
        f"read {BATCH}, wall ms": [1e3 * wall for _, wall in reading[name]],
        "scan GB/s": [nbytes / wall / 1e9 for _, wall in scanning[name]],
    }
    measured = {unit: some for unit, some in values.items() if some}
    memmap = statistics.median(cpu for cpu, _ in reading["numpy memmap"])
    return Row(
        question=__doc__.splitlines()[0],
        setting={"runs x snapshots x parameters": data, "store": name},
        figures={unit: statistics.median(some) for unit, some in measured.items()}
        | {"CPU time of reading to a memmap's": statistics.median(cpu for cpu, _ in reading[name]) / memmap},
        spread={unit: tuple(np.percentile(some, [25, 75]).tolist()) for unit, some in measured.items()},
        note=f"Median and quartiles of {len(reading[name])} repeats of reading, {len(scanning[name])} of writing and "
        f"scanning; {BATCH} random networks are read. All files are in the page cache, writing ends when the data are "
        "on the disk. The zoo, zarr-python and tensorstore check every CRC32C; the others have no checksums.",
    )


def rounds(num_repeats: int, actions: dict[str, Callable[[int], object]]) -> Times:
    """CPU and wall seconds of each action, in turns; a first round warms up and does not count."""
    times: Times = {name: [] for name in actions}
    for i in range(num_repeats + 1):
        for name, action in actions.items():
            cpu, wall = time.process_time(), time.perf_counter()
            action(i)
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: values[1:] for name, values in times.items()}


def file_name(name: str) -> str:
    return "zoo" if name.endswith("the zoo's files") else name.split(",", maxsplit=1)[0].replace(" ", "_")


if __name__ == "__main__":
    bench("store", rows, packages=PACKAGES)
