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

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo import Task, get_task, train_population
from zoo.devices import is_out_of_memory
from zoo.networks.initialization import run_seed
from zoo.training.muon import Muon
from zoo.training.optimizers import Adam, InnerOptimizer, Sgd
from zoo.training.precision import PRECISIONS

from ..plain_loop import PlainLoop
from ..rows import Row
from .command import bench
from .measure import forget_peak, peak_bytes, synchronize

BATCH_SIZE = 64
MAX_CALLS = 1000  # of a rival
NUM_INITIAL = 256  # different initial networks
MLPS = {"digits 64-16-10": {"name": "digits", "hidden": [16]}, "mnist5k 784-10-10": {"name": "mnist5k", "hidden": [10]}}
CNN = {"digits CNN 16-32-32": {"name": "digits", "architecture": "cnn"}}
TRANSFORMER = {
    "python_source transformer 16, 1 block": {"name": "python_source", "width": 16, "num_blocks": 1, "num_heads": 2}
}
OTHER_TASKS = {
    "digits 64-16-16-16-10": {"name": "digits", "hidden": [16, 16, 16]},
    "digits_subset 64-16-1": {"name": "digits_subset", "hidden": [16]},
    **CNN,
    **TRANSFORMER,
}
SMALL, WIDE, CONVOLUTIONS, TEXT = *MLPS, *CNN, *TRANSFORMER
ALL = (SMALL, WIDE, CONVOLUTIONS, TEXT)
STAGE = (  # network, N, whether compiled, precision
    *((name, num, compile, "32") for num, compile in ((4096, True), (16384, False)) for name in (SMALL, WIDE)),
    *((name, num, False, "32") for num in (256, 1024, 4096) for name in (CONVOLUTIONS, TEXT)),
    *((name, 1024, False, precision) for precision in ("tf32", "bf16-mixed") for name in (WIDE, CONVOLUTIONS, TEXT)),
    *((name, 1024, True, "32") for name in (CONVOLUTIONS, TEXT)),
    *((name, 16384, True, "32") for name in (SMALL, WIDE)),
    *((SMALL, num, True, "32") for num in (1024, 65536)),
)
TINY_STAGE = ((SMALL, 16, False, "32"), (SMALL, 64, True, "32"), (SMALL, 16, False, "bf16-mixed"))
OPTIMIZERS: dict[str, InnerOptimizer] = {"SGD Nesterov": Sgd(0.1, 0.9, nesterov=True), "Adam": Adam(), "Muon": Muon()}


def rows(
    *,
    sections: Sequence[str] = ("speed", "blocks", "tasks", "zoo"),
    num_repeats: int = 7,
    num_networks: int = 256,
) -> Iterator[Row]:
    known = {"speed": speed, "blocks": block_sizes, "tasks": other_tasks, "zoo": whole_zoo}
    for name in sections:
        yield from known[name](num_networks, num_repeats)


def speed(num_networks: int, num_repeats: int) -> Iterator[Row]:
    """Both MLPs against the plain loop, compiled or not, minibatches shared or not."""
    for name, config in MLPS.items():
        task = get_task(**config)
        rivals = {
            "plain loop": plain_loop(task),
            "population, eager": population(task, num_networks),
            "population, compiled": population(task, num_networks, compile=True),
            "population, eager, own minibatches": population(task, num_networks, shared_batches=False, num_steps=20),
        }
        rates, warm_up = measure(rivals, num_repeats)
        plain = Rate(*map(statistics.median, zip(*rates["plain loop"], strict=True)))
        for rival, values in rates.items():
            walls, cpus = zip(*values, strict=True)
            wall, cpu = statistics.median(walls), statistics.median(cpus)
            yield Row(
                question=__doc__.splitlines()[0],
                setting={"network": name, "method": rival, **common_setting(num_networks)},
                figures={
                    "model-steps/s": wall,
                    "times the plain loop": wall / plain.per_second,
                    "model-steps/CPU-s": cpu,
                    "times, by CPU time": cpu / plain.per_cpu_second,
                    "first call, s": warm_up[rival],
                },
                spread={"model-steps/s": (min(walls), max(walls)), "model-steps/CPU-s": (min(cpus), max(cpus))},
                note=f"Adam, batch {BATCH_SIZE}. Median and range of {num_repeats} repeats.",
            )


def block_sizes(num_networks: int, num_repeats: int) -> Iterator[Row]:
    """Which N is fastest: small ones leave overhead, large ones leave the cache."""
    sizes, num_repeats = (64, 256, 1024), max(3, num_repeats // 2)
    for name, config in MLPS.items():
        task = get_task(**config)
        for compile in (False, True):
            rivals = {str(n): population(task, n, compile=compile, num_steps=25_600 // n) for n in sizes}
            rates, _ = measure(rivals, num_repeats)
            for n in sizes:
                yield Row(
                    question="How large should a population be?",
                    setting={"network": name, "method": "compiled" if compile else "eager", **common_setting(n)},
                    figures={"model-steps/s": median(rates[str(n)])},
                    note=f"Adam, batch {BATCH_SIZE}. Median of {num_repeats} repeats.",
                )


def other_tasks(num_networks: int, num_repeats: int) -> Iterator[Row]:
    """Other architectures and optimizers, uncompiled: what vmap gives any module."""
    num_repeats = max(3, num_repeats // 2)

    def row(task: str, optimizer: str, num: int, figures: dict[str, float]) -> Row:
        return Row(
            question="How much faster are populations of other networks, and with other optimizers?",
            setting={"network": task, "optimizer": optimizer, **common_setting(num)},
            figures=figures,
            note=f"Eager, batch {BATCH_SIZE}. Median of {num_repeats} repeats.",
        )

    for name, config in OTHER_TASKS.items():
        task = get_task(**config)
        num = num_networks if "mlp" in task.config.values() else num_networks // 8
        rates, _ = measure({"plain": plain_loop(task, 40), "ours": population(task, num, num_steps=40)}, num_repeats)
        plain, ours = map(median, rates.values())
        figures = {"model-steps/s": ours, "plain loop, model-steps/s": plain, "times the plain loop": ours / plain}
        yield row(name, "Adam", num, figures)
    task = get_task("digits", hidden=[16, 16])
    for name, optimizer in OPTIMIZERS.items():
        rates, _ = measure({name: population(task, num_networks, optimizer, num_steps=40)}, num_repeats)
        yield row("digits 64-16-16-10", name, num_networks, {"model-steps/s": median(rates[name])})


def whole_zoo(num_networks: int, num_repeats: int) -> Iterator[Row]:
    """Seconds for 2,304 runs x 1,280 steps x 21 snapshots of digits 64-16-10, evaluated on val and test."""
    num_runs, num_steps = 2304, 1280
    task = get_task("digits")
    evaluating = 0.0
    began = time.perf_counter()
    for first in range(0, num_runs, num_networks):
        seeds = [run_seed(0, i) for i in range(first, min(first + num_networks, num_runs))]
        snapshots = train_population(task, Adam(), seeds, num_steps=num_steps, batch_size=BATCH_SIZE, compile=True)
        for snapshot in snapshots:
            now = time.perf_counter()
            for split in ("val", "test"):
                metrics = task.evaluate(snapshot.params, split)
            evaluating += time.perf_counter() - now
    total = time.perf_counter() - began
    network = {"network": "digits 64-16-10", "runs": num_runs, "steps": num_steps, "snapshots": 21}
    yield Row(
        question="How long does a whole zoo take to train and evaluate?",
        setting={**network, **common_setting(num_networks)},
        figures={
            "seconds": total,
            "of these training, with compiling": total - evaluating,
            "of these evaluating": evaluating,
            "model-steps/s of training": num_runs * num_steps / (total - evaluating),
            "test error of the last block": metrics["error"].mean().item(),
            "peak memory of the process, GiB": peak_bytes(task.device) / 2**30,
        },
        note="Nothing is written to disk. One measurement.",
    )


def stage(device: torch.device, size: str, budget: float) -> Iterator[Row]:
    """Populations of each network, the rows of most worth first, each compared with a plain loop on the same device."""
    networks, num_repeats = {**MLPS, **CNN, **TRANSFORMER}, 3 if size == "full" else 2
    tasks: dict[str, Task] = {}
    plain: dict[str, list[Rate]] = {}
    for name, num, compile, precision in STAGE if size == "full" else TINY_STAGE:
        if name not in tasks:
            tasks[name] = get_task(**networks[name]).to(device)
            plain[name] = measure({name: plain_loop(tasks[name], 100)}, num_repeats)[0][name]
            yield device_row({"network": name, "method": "plain loop", "N": 1}, plain[name], plain[name], tasks[name])
        options = {"compile": compile, "precision": precision}
        if rates := population_rates(tasks[name], num, num_repeats, num_steps=20, **options):
            setting = {"network": name, "method": "compiled" if compile else "eager", "N": num}
            setting |= {} if precision == "32" else {"precision": precision}
            yield device_row(setting, rates, plain[name], tasks[name])
    for task in tasks.values() if size == "full" else ():
        yield from final_losses(task)


def final_losses(task: Task, num_networks: int = 256, num_steps: int = 300) -> Iterator[Row]:
    """What precision does to the networks that come out."""
    precisions = [name for name in PRECISIONS if name != "tf32" or task.device.type == "cuda"]
    for precision in precisions:
        *_, last = train_population(task, Adam(), range(num_networks), num_steps=num_steps, precision=precision)
        metrics = task.evaluate(last.params, "val")
        yield Row(
            question="What does precision do to final losses?",
            setting={"network": repr(task), "precision": precision, "N": num_networks, "steps": num_steps},
            figures={
                "validation loss": metrics["loss"].mean().item(),
                "spread between runs": metrics["loss"].std().item(),
                "validation error": metrics["error"].mean().item(),
                "runs alive": int(last.alive.sum()),
            },
            note=f"Adam, batch {BATCH_SIZE}; the same initial networks and minibatches in each precision.",
        )


def population_rates(
    task: Task, num_networks: int, num_repeats: int, *, num_steps: int, **options: Any
) -> list[Rate] | None:
    """Rates of a population, None if it does not fit the device's memory."""
    forget_peak(task.device)
    try:
        ours = population(task, num_networks, num_steps=num_steps, **options)
        return measure({"": ours}, num_repeats)[0][""]
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None
        raise


def device_row(setting: dict[str, str | int], rates: list[Rate], plain: list[Rate], task: Task) -> Row:
    walls = [rate.per_second for rate in rates]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.loss_and_grad(task.init_runs(range(2)), task.batch(torch.arange(BATCH_SIZE, device=task.device), 2))
    return Row(
        question="How fast are populations on this device, and how many networks fill it?",
        setting=setting,
        figures={
            "model-steps/s": median(rates),
            "times the plain loop": median(rates) / median(plain),
            "TFLOP/s of products": median(rates) * counter.get_total_flops() / 2 / 1e12,
            "peak memory, GiB": peak_bytes(task.device) / 2**30,
        },
        spread={"model-steps/s": (min(walls), max(walls))},
        note=f"Adam, batch {BATCH_SIZE}; the plain loop is on the same device. On CUDA a population's step is launched "
        f"as one graph. Median and range of {len(rates)} repeats.",
    )


def common_setting(num_networks: int) -> dict[str, int]:
    return {"N": num_networks, "threads": torch.get_num_threads()}


class Rate(NamedTuple):
    """Model-steps per second, and per CPU-second of the process, which other programs on the machine disturb less."""

    per_second: float
    per_cpu_second: float


def population(
    task: Task,
    num_networks: int,
    optimizer: InnerOptimizer | None = None,
    *,
    num_steps: int = 100,
    batch_size: int = BATCH_SIZE,
    **options: Any,
) -> Callable[[], Rate]:
    """Model-steps/s of N networks trained at once; each call trains them `num_steps` steps further."""
    steps = range(num_steps, (MAX_CALLS + 1) * num_steps, num_steps)
    few = task.init_runs(range(min(num_networks, NUM_INITIAL)))  # to initialise many takes longer than to train them
    snapshots = train_population(
        task,
        optimizer or Adam(),
        range(num_networks),
        num_steps=steps[-1],
        batch_size=batch_size,
        snapshot_steps=steps,
        init_params=few.repeat(-(-num_networks // len(few)), 1)[:num_networks],
        **options,
    )
    return lambda: timed(lambda: next(snapshots), num_networks * num_steps, task.device)


def plain_loop(task: Task, num_steps: int = 300, batch_size: int = BATCH_SIZE) -> Callable[[], Rate]:
    """Model-steps/s of one module trained as everybody does."""
    loop = PlainLoop(task, batch_size)
    return lambda: timed(lambda: loop.train(num_steps), num_steps, task.device)


def timed(action: Callable[[], object], num_model_steps: int, device: torch.device) -> Rate:
    synchronize(device)
    began, cpu_began = time.perf_counter(), time.process_time()
    action()
    synchronize(device)
    return Rate(num_model_steps / (time.perf_counter() - began), num_model_steps / (time.process_time() - cpu_began))


def measure(
    rivals: Mapping[str, Callable[[], Rate]], num_repeats: int
) -> tuple[dict[str, list[Rate]], dict[str, float]]:
    """Rates of each rival, one after the other in every repeat, and the seconds of its first call."""
    warm_up = {}
    for name, rival in rivals.items():
        began = time.perf_counter()
        rival()
        warm_up[name] = time.perf_counter() - began
    turns = [{name: rival() for name, rival in rivals.items()} for _ in range(num_repeats)]
    return {name: [turn[name] for turn in turns] for name in rivals}, warm_up


def median(rates: list[Rate]) -> float:
    return statistics.median(rate.per_second for rate in rates)


if __name__ == "__main__":
    bench("population", rows, num_threads=2)
