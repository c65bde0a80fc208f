"""How many inner steps a second does meta-training do?

    python -m scripts.bench.bench_meta_train [--num-repeats 9] [--record]

One outer step of PES: 8 antithetic pairs of 64-32-10 MLPs on the digits, batch 64, a truncation of 50 steps; an inner
step is one update of one network, gradient included. Rules: small_fc_lopt with 32 hidden units and the normalised
rule. Once in one process with two threads, once in two processes of one thread that split the pairs and average their
gradients (`num_devices=2` of `scripts.meta_train`).
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from learned_opt import MlpRule, NormalizedRule, UpdateRule
from learned_opt.meta_training import Devices, FabricDevices, TaskFamily, synthetic_data
from learned_opt.meta_training.estimators import PES
from learned_opt.meta_training.task_distribution import mlp_task
from learned_opt.meta_training.truncated_step import LogUniformHorizon, TruncatedStep

from ..allocator import keep_freed_memory
from ..rows import Row, tables
from .record import record

NUM_PAIRS = 8
TRUNCATION = 50
RULES: dict[str, UpdateRule] = {"small_fc_lopt, H = 32": MlpRule(hidden=32), "normalised": NormalizedRule()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-repeats", type=int, default=9)
    parser.add_argument("--record", action="store_true", help="put the rows into scripts/bench/results")
    options = parser.parse_args()
    rows = [row(name, "1 x 2", seconds(rule, options.num_repeats)) for name, rule in RULES.items()]
    with TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(one_of_two, (port, options.num_repeats, folder), nprocs=2)
        for name, measured in torch.load(Path(folder) / "seconds.pt").items():
            rows.append(row(name, "2 x 1", measured))
    print(tables(rows))
    if options.record:
        print(f"recorded in {record('meta_train', rows)}")


def one_of_two(rank: int, port: int, num_repeats: int, folder: str) -> None:
    """A process that holds half of the pairs."""
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", plugins=[LightningEnvironment()])
    fabric.launch()
    torch.set_num_threads(1)
    devices = FabricDevices(fabric)
    measured = {name: seconds(rule, num_repeats, devices) for name, rule in RULES.items()}
    if rank == 0:
        torch.save(measured, Path(folder) / "seconds.pt")
    devices.close()


def seconds(rule: UpdateRule, num_repeats: int, devices: Devices | None = None) -> list[float]:
    """Wall times of outer steps, after one that is not counted."""
    keep_freed_memory()
    devices = devices or Devices()
    step = outer_step(rule, devices)
    step()
    times = []
    for _ in range(num_repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def outer_step(rule: UpdateRule, devices: Devices) -> Callable[[], object]:
    """A function that does one outer step."""
    family = TaskFamily([mlp_task(synthetic_data.digits_images(8), [32])], batch_size=64)
    held = devices.share(NUM_PAIRS)
    unroll = TruncatedStep(
        rule, family, LogUniformHorizon(100, 1000), num_groups=NUM_PAIRS, group_range=range(held.start, held.stop)
    )
    estimator = PES([unroll], truncation_length=TRUNCATION, std=0.01, devices=devices)
    theta = rule.init_theta(torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(0)
    return lambda: estimator.estimate(theta, rng)


def row(rule: str, processes: str, times: list[float]) -> Row:
    """Inner steps a second."""
    num_steps = 2 * NUM_PAIRS * TRUNCATION
    return Row(
        question=__doc__.splitlines()[0],
        setting={"rule": rule, "processes x threads": processes},
        figures={"inner steps/s": num_steps / statistics.median(times)},
        spread={"inner steps/s": (num_steps / max(times), num_steps / min(times))},
        note=f"One outer step of PES, {NUM_PAIRS} antithetic pairs of MLPs 64-32-10 on the digits, batch 64, a "
        f"truncation of {TRUNCATION} steps; gradients included. Median and range of {len(times)} repeats.",
    )


if __name__ == "__main__":
    main()
