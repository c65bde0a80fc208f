"""How many times faster is a population trained at once than its networks one after another?

    python -m scripts.bench.bench_population                    (about five minutes on two free cores)
    python -m scripts.bench.bench_population --sections speed   (the main table alone)

The rival is the plain loop in the same process and with the same number of threads: one nn.Module, loss.backward(),
fused Adam, minibatches of 64 by indexing. Plain and batched measurements alternate; figures are medians, with the
range in brackets, by the clock and by the CPU time of the process. The latter counts threads that wait for each other,
but other programs on the machine disturb it less; with --num-threads 1 it is the fairest. Compiling happens in the
warm-up and is listed apart. Prints tables and, with --record, puts their rows into scripts/bench/results.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from zoo import Task, get_task, train_population
from zoo.networks.initialization import run_seed
from zoo.training.muon import Muon
from zoo.training.optimizers import Adam, InnerOptimizer, Sgd

from ..plain_loop import PlainLoop
from ..rows import Row, tables
from .record import record

BATCH_SIZE = 64
SECTIONS = ("speed", "blocks", "tasks", "zoo")
MLPS = {"digits 64-16-10": {"name": "digits", "hidden": [16]}, "mnist5k 784-10-10": {"name": "mnist5k", "hidden": [10]}}
OTHER_TASKS = {
    "digits 64-16-16-16-10": {"name": "digits", "hidden": [16, 16, 16]},
    "digits_subset 64-16-1": {"name": "digits_subset", "hidden": [16]},
    "digits CNN 16-32-32": {"name": "digits", "architecture": "cnn"},
    "python_source transformer 16, 1 block": {"name": "python_source", "width": 16, "num_blocks": 1, "num_heads": 2},
}
OPTIMIZERS: dict[str, InnerOptimizer] = {"SGD Nesterov": Sgd(0.1, 0.9, nesterov=True), "Adam": Adam(), "Muon": Muon()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--num-repeats", type=int, default=7)
    parser.add_argument("--num-networks", type=int, default=256)
    parser.add_argument("--record", action="store_true", help="put the rows into scripts/bench/results")
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)

    sections = {"speed": speed, "blocks": block_sizes, "tasks": other_tasks, "zoo": whole_zoo}
    rows: list[Row] = []
    for name in options.sections:
        new = sections[name](options.num_networks, options.num_repeats)
        print(f"\n{tables(new)}", flush=True)
        rows += new
    if options.record:
        print(f"\nrecorded in {record('population', rows)}")


def speed(num_networks: int, num_repeats: int) -> list[Row]:
    """Both MLPs against the plain loop, compiled or not, minibatches shared or not."""
    rows = []
    for name, config in MLPS.items():
        task = get_task(**config)
        rivals = {
            "plain loop": plain_loop(task),
            "population, eager": Population(task, num_networks),
            "population, compiled": Population(task, num_networks, compile=True),
            "population, eager, own minibatches": Population(task, num_networks, shared_batches=False, num_steps=20),
        }
        rates, warm_up = measure(rivals, num_repeats)
        plain = Rate(*map(statistics.median, zip(*rates["plain loop"], strict=True)))
        for rival, values in rates.items():
            walls, cpus = zip(*values, strict=True)
            wall, cpu = statistics.median(walls), statistics.median(cpus)
            rows.append(
                Row(
                    question=__doc__.splitlines()[0],
                    setting={"network": name, "method": rival, **common_setting(num_networks)},
                    figures={
                        "model-steps/s": wall,
                        "times the plain loop": wall / plain.per_second,
                        "model-steps/CPU-s": cpu,
                        "times, by CPU time": cpu / plain.per_cpu_second,
                        "first call, s": warm_up[rival],
                    },
                    spread={
                        "model-steps/s": (min(walls), max(walls)),
                        "model-steps/CPU-s": (min(cpus), max(cpus)),
                    },
                    note=f"Adam, batch {BATCH_SIZE}. Median and range of {num_repeats} repeats.",
                )
            )
    return rows


def block_sizes(num_networks: int, num_repeats: int) -> list[Row]:
    """Which N is fastest: small ones leave overhead, large ones leave the cache."""
    rows = []
    sizes, num_repeats = (64, 256, 1024), max(3, num_repeats // 2)
    for name, config in MLPS.items():
        task = get_task(**config)
        for compile in (False, True):
            rivals = {str(n): Population(task, n, compile=compile, num_steps=25_600 // n) for n in sizes}
            rates, _ = measure(rivals, num_repeats)
            rows += [
                Row(
                    question="How large should a population be?",
                    setting={"network": name, "method": "compiled" if compile else "eager", **common_setting(n)},
                    figures={"model-steps/s": median(rates[str(n)])},
                    note=f"Adam, batch {BATCH_SIZE}. Median of {num_repeats} repeats.",
                )
                for n in sizes
            ]
    return rows


def other_tasks(num_networks: int, num_repeats: int) -> list[Row]:
    """Other architectures and optimizers, uncompiled: what vmap gives any module."""
    num_repeats = max(3, num_repeats // 2)

    def row(task: str, optimizer: str, num: int, figures: dict[str, float]) -> Row:
        return Row(
            question="How much faster are populations of other networks, and with other optimizers?",
            setting={"network": task, "optimizer": optimizer, **common_setting(num)},
            figures=figures,
            note=f"Eager, batch {BATCH_SIZE}. Median of {num_repeats} repeats.",
        )

    rows = []
    for name, config in OTHER_TASKS.items():
        task = get_task(**config)
        num = num_networks if "mlp" in task.config.values() else num_networks // 8
        rivals = {"plain loop": plain_loop(task, 40), "Adam": Population(task, num, num_steps=40)}
        rates, _ = measure(rivals, num_repeats)
        plain, ours = (median(rates[key]) for key in rivals)
        figures = {"model-steps/s": ours, "plain loop, model-steps/s": plain, "times the plain loop": ours / plain}
        rows.append(row(name, "Adam", num, figures))
    task = get_task("digits", hidden=[16, 16])
    for name, optimizer in OPTIMIZERS.items():
        population = Population(task, num_networks, optimizer=optimizer, num_steps=40)
        rates, _ = measure({name: population}, num_repeats)
        rows.append(row("digits 64-16-16-10", name, num_networks, {"model-steps/s": median(rates[name])}))
    return rows


def whole_zoo(num_networks: int, num_repeats: int) -> list[Row]:
    """Seconds for 2,304 runs x 1,280 steps x 21 snapshots of digits 64-16-10, evaluated on val and test."""
    num_runs, num_steps = 2304, 1280
    task = get_task("digits")
    training = evaluating = 0.0
    began = time.perf_counter()
    for first in range(0, num_runs, num_networks):
        seeds = [run_seed(0, i) for i in range(first, min(first + num_networks, num_runs))]
        snapshots = train_population(task, Adam(), seeds, num_steps=num_steps, batch_size=BATCH_SIZE, compile=True)
        while (snapshot := next(snapshots, None)) is not None:
            now = time.perf_counter()
            for split in ("val", "test"):
                metrics = task.evaluate(snapshot.params, split)
            evaluating += time.perf_counter() - now
    total = time.perf_counter() - began
    training = total - evaluating
    return [
        Row(
            question="How long does a whole zoo take to train and evaluate?",
            setting={
                "network": "digits 64-16-10",
                "runs": num_runs,
                "steps": num_steps,
                "snapshots": 21,
                **common_setting(num_networks),
            },
            figures={
                "seconds": total,
                "of these training, with compiling": training,
                "of these evaluating": evaluating,
                "model-steps/s of training": num_runs * num_steps / training,
                "test error of the last block": metrics["error"].mean().item(),
                "peak memory of the process, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            },
            note="Nothing is written to disk. One measurement.",
        )
    ]


def common_setting(num_networks: int) -> dict[str, int]:
    return {"N": num_networks, "threads": torch.get_num_threads()}


class Rate(NamedTuple):
    """Model-steps per second, and per CPU-second of the process, which other programs on the machine disturb less."""

    per_second: float
    per_cpu_second: float


@dataclass
class Population:
    """Model-steps/s of N networks trained at once for `num_steps` steps."""

    task: Task
    num_networks: int
    optimizer: InnerOptimizer = field(default_factory=Adam)
    shared_batches: bool = True
    compile: bool = False
    num_steps: int = 100

    def __call__(self) -> Rate:
        options = {"num_steps": self.num_steps, "batch_size": BATCH_SIZE, "snapshot_steps": (0, self.num_steps)}
        seeds = range(self.num_networks)
        snapshots = train_population(
            self.task, self.optimizer, seeds, shared_batches=self.shared_batches, compile=self.compile, **options
        )
        next(snapshots)  # initialised

        def finish() -> None:
            for _ in snapshots:
                pass

        return timed(finish, self.num_networks * self.num_steps)


def plain_loop(task: Task, num_steps: int = 300) -> Callable[[], Rate]:
    """Model-steps/s of one module trained as everybody does."""
    loop = PlainLoop(task, BATCH_SIZE)
    return lambda: timed(lambda: loop.train(num_steps), num_steps)


def timed(action: Callable[[], None], num_model_steps: int) -> Rate:
    began, cpu_began = time.perf_counter(), time.process_time()
    action()
    return Rate(num_model_steps / (time.perf_counter() - began), num_model_steps / (time.process_time() - cpu_began))


def measure(
    rivals: Mapping[str, Callable[[], Rate]], num_repeats: int
) -> tuple[dict[str, list[Rate]], dict[str, float]]:
    """Rates of each rival, one after the other in every repeat, and the seconds of its first call."""
    rates: dict[str, list[Rate]] = {name: [] for name in rivals}
    warm_up = {}
    for name, rival in rivals.items():
        began = time.perf_counter()
        rival()
        warm_up[name] = time.perf_counter() - began
    for _ in range(num_repeats):
        for name, rival in rivals.items():
            rates[name].append(rival())
    return rates, warm_up


def median(rates: list[Rate]) -> float:
    return statistics.median(rate.per_second for rate in rates)


if __name__ == "__main__":
    main()
