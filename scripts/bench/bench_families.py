"""What do the examples of many members of a family cost, beside one training step on them?

    OMP_NUM_THREADS=1 python -m scripts.bench.bench_families [--num-members 64] [--record]

CPU time of this process, about a minute. *Bound* is what a generator that is prompted with examples does in each step:
members never seen, and a batch of each. *Drawn* is a further batch of members that are bound, as a population sees it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch

from zoo import Task, get_task

from ..rows import Row
from .command import bench
from .measure import seconds

FAMILIES = {
    "warped_images, 14x14 digits": {"name": "warped_images", "image_size": 14, "hidden": [128, 128]},
    "tabular_prior, 256 rows of 20 features": {"name": "tabular_prior", "hidden": [32]},
    "text_domains, windows of 64": {"name": "text_domains", "width": 32, "num_blocks": 1},
}


def rows(*, num_members: int = 64, batch_size: int = 32, num_repeats: int = 9) -> Iterator[Row]:
    for name, config in FAMILIES.items():
        yield row(name, get_task(**config), num_members, batch_size, num_repeats)


def row(name: str, task: Task, num_members: int, batch_size: int, num_repeats: int) -> Row:
    indices = torch.arange(batch_size)
    params = task.init_runs(range(num_members))
    bound = task.for_runs(range(num_members))
    batch = bound.batch(indices, num_members)
    actions: dict[str, Callable[[], object]] = {
        "bound, ms": lambda: task.for_runs(range(num_members)).batch(indices, num_members),
        "drawn, ms": lambda: bound.batch(indices, num_members),
        "training step, ms": lambda: bound.loss_and_grad(params, batch),
    }
    times = {
        label: [1e3 * value for value in seconds(action, task.device, num_repeats, by_cpu=True)]
        for label, action in actions.items()
    }
    figures = {label: statistics.median(values) for label, values in times.items()}
    return Row(
        question=__doc__.splitlines()[0],
        setting={"family": name, "members": num_members, "batch": batch_size, "parameters": task.layout.num_params},
        figures={"members bound a second": num_members / figures["bound, ms"] * 1e3, **figures},
        spread={label: (min(values), max(values)) for label, values in times.items()},
        note=f"Median and range of {num_repeats} repeats, CPU time of one process. Members have a batch of each.",
    )


if __name__ == "__main__":
    bench("families", rows)
