"""How many times faster are adapters of one base trained at once than by PEFT, one after another?

    python -m scripts.bench.bench_adapters --num-threads 1      (about three minutes of one free core)

64 adapters of rank 4 on all linear layers of a frozen network, as one population; the rival is one PeftModel in a plain
loop (loss.backward(), fused Adam, the same minibatches), in the same process, turn by turn; beside it the same loop
with the adapters of `zoo.networks.adapters`. Needs the extra `adapters`. Prints a table and, with --record, puts its
rows into scripts/bench/results.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from zoo import Task, get_task
from zoo.networks.adapters import adapt
from zoo.networks.randomness import seeded_module

from ..rows import Row
from .bench_population import Rate, measure, plain_loop, population
from .command import bench

RANK: Final = 4
Rival = Callable[[], Rate]
BASES: Final[Mapping[str, tuple[dict, int]]] = {  # options of the task, and examples of a minibatch
    "MLP 64-128-128-10": ({"name": "digits", "hidden": [128, 128]}, 32),
    "byte transformer 32, 2 blocks": ({"name": "python_source", "width": 32, "num_blocks": 2}, 8),
}


def rows(*, num_networks: int = 64, num_repeats: int = 5) -> Iterator[Row]:
    """Model-steps/s of each method on each base."""
    for name, (config, batch_size) in BASES.items():
        whole = get_task(**config)
        base = seeded_module(whole.make_model, 0)
        layers = [part for part, module in base.named_modules() if isinstance(module, nn.Linear)]

        def by_peft(base: nn.Module = base, layers: list[str] = layers) -> nn.Module:
            return get_peft_model(copy.deepcopy(base), LoraConfig(r=RANK, target_modules=layers))

        def ours(base: nn.Module = base, layers: list[str] = layers) -> nn.Module:
            return adapt(base, rank=RANK, alpha=8, targets=layers)

        theirs, own = task_of(whole, by_peft), task_of(whole, ours)
        num_steps = 100 if "mlp" in whole.config.values() else 10

        def at_once(task: Task, *, compile: bool = False, size: tuple[int, int] = (num_steps, batch_size)) -> Rival:
            return population(task, num_networks, num_steps=size[0], batch_size=size[1], compile=compile)

        rivals = {
            "PEFT, one after another": plain_loop(theirs, num_steps, batch_size),
            "ours, one after another": plain_loop(own, num_steps, batch_size),
            "population, eager": at_once(own),
            "population of PeftModels, eager": at_once(theirs),
            "population, compiled": at_once(own, compile=True),
        }
        measured, warm_up = measure(rivals, num_repeats)
        plain = measured["PEFT, one after another"]
        for method, found in measured.items():
            walls, cpus = zip(*found, strict=True)
            yield Row(
                question=str(__doc__).splitlines()[0],
                setting={
                    "base": name,
                    "method": method,
                    "N": num_networks,
                    "batch": batch_size,
                    "threads": torch.get_num_threads(),
                },
                figures={
                    "model-steps/s": statistics.median(walls),
                    "times PEFT": statistics.median(walls) / statistics.median(one.per_second for one in plain),
                    "model-steps/CPU-s": statistics.median(cpus),
                    "times PEFT, by CPU time": statistics.median(cpus)
                    / statistics.median(one.per_cpu_second for one in plain),
                    "first call, s": warm_up[method],
                },
                spread={"model-steps/s": (min(walls), max(walls)), "model-steps/CPU-s": (min(cpus), max(cpus))},
                note=f"Rank {RANK}, Adam. Median and range of {num_repeats} repeats.",
            )


def task_of(whole: Task, build: Callable[[], nn.Module]) -> Task:
    return Task("adapters", whole.dataset, build, whole.objective)


if __name__ == "__main__":
    bench("adapters", rows, packages=("torch", "peft"), num_threads=1)
