"""What are adapters of ResNet-18 worth that were generated from 64 examples of a task never seen? All of it at once.

    python -m scripts.bench.generator_adapters_resnet18 [--device auto] [--size card] [--out out/resnet18] [--record]

Builds the frozen base, the adapter where those of the zoo begin, the zoo (experiment=zoo_lora_resnet18 and its
relatives) and a generator for each seed (experiment=generator_adapters_resnet18) in the folder `out`, each where it is
not finished there, and then prints the table of `scripts.bench.generator_adapters`. `--size cores` takes 14
minutes of one CPU core; `--size card` has thirteen times as many adapters, trained on six times as many images, and
trains the generator on fifty times as many tasks. It has not been run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from ..rows import Row
from . import generator_adapters
from .command import bench
from .generator_table import PACKAGES

SIZES: Final[dict[str, tuple[dict[str, object], ...]]] = {  # settings of the start, the zoo and the generator
    "cores": ({}, {}, {}),
    "card": (
        {"num_steps": 2000},
        {"num_runs": 1024, "num_steps": 240, "batch_size": 32, "optimizer.lr": 0.0015},
        {
            "generator.pairs.batch_size": 32,
            "generator.pairs.num_examples": [16, 64],
            "generator.objective.function_examples": 64,
            "generator.optimization.num_steps": 3600,
            "generator.optimization.warmup_steps": 100,
            "generator.optimization.average_decay": 0.998,
        },
    ),
}


def rows(
    *, device: torch.device | str = "auto", size: str = "card", out: str = "out/resnet18", seeds: int = 1
) -> Iterator[Row]:
    """Everything is built, then measured.

    Args:
        device: where to
        size: card or cores
        out: folder of everything
        seeds: of generators
    """
    base, start, zoo = (Path(out) / name for name in ("base", "start", "zoo"))
    generators = [Path(out) / f"generator{seed}" for seed in range(seeds)]
    of_start, of_zoo, of_generator = SIZES[size]
    on_base = {"task.adapter.base": base, "device": device}
    run("build_zoo", "zoo_lora_resnet18_base", out=base, device=device)
    run("build_zoo", "zoo_lora_resnet18_start", out=start, **on_base, **of_start)
    run("build_zoo", "zoo_lora_resnet18", out=zoo, init_from=start, **on_base, **of_zoo)
    for seed, generator in enumerate(generators):
        seeded = of_generator | {"generator.optimization.seed": seed, "device": device}
        run("train_generator", "generator_adapters_resnet18", zoo=zoo, out=generator, **seeded)
    named = f"two corrections, size {size}={','.join(map(str, generators))}"
    yield from generator_adapters.rows(named, zoo=str(zoo), base="ResNet-18", frugal=True, device=device)


def run(script: str, experiment: str, **settings: object) -> None:
    """A script in a process of its own; where it has finished before it does nothing."""
    given = [f"{name}={value}" for name, value in settings.items()]
    subprocess.run([sys.executable, "-m", f"scripts.{script}", f"experiment={experiment}", *given], check=True)


if __name__ == "__main__":
    bench("examples", rows, packages=PACKAGES, num_threads=1)
