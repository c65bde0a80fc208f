"""How much memory does it take to build a zoo of 20 GB? As much as one of its blocks.

    OMP_NUM_THREADS=1 python -m scripts.bench.bench_build_memory [--num-runs 360] [--num-blocks 2] [--record]

Plans a zoo of wide MLPs (784-512-512-10) on mnist5k with the default block size, builds its first blocks, and prints
the largest resident size that this process had. Later blocks are like the first ones, so the whole zoo needs no more.
Takes about a minute.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from zoo import ZooWriter, get_task
from zoo.building import BuildPlan
from zoo.building.build import BlockBuilder

from ..rows import Row
from .command import bench
from .measure import peak_bytes


def rows(*, num_runs: int = 360, num_steps: int = 220, num_blocks: int = 2) -> Iterator[Row]:
    task = get_task("mnist5k", hidden=[512, 512])
    plan = BuildPlan(task=task, num_runs=num_runs, num_steps=num_steps)
    spec = plan.spec()
    runs, snapshots, params = spec.shape
    gigabytes = 4 * runs * snapshots * params / 1e9
    peaks = {"before the first block, MB": peak_megabytes()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zoo"
        ZooWriter.create(path, spec)
        for block in range(num_blocks):
            BlockBuilder(path, plan)(block)
            peaks[f"after block {block}, MB"] = peak_megabytes()
    yield Row(
        question=__doc__.splitlines()[0],
        setting={"runs": runs, "snapshots": snapshots, "parameters": params, "runs of a block": spec.block_size},
        figures={"zoo, GB": gigabytes, "block, MB": gigabytes * 1e3 * spec.block_size / runs, **peaks},
        note="Largest resident size of the process so far.",
    )


def peak_megabytes() -> float:
    return peak_bytes(torch.device("cpu")) / 1e6


if __name__ == "__main__":
    bench("store", rows)
