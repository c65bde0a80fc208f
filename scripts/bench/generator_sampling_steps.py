"""How many denoising steps does a generator need?

    python -m scripts.bench.generator_sampling_steps PIPELINE ZOO --steps 1 2 4 8 16 32 [--record]

Prompts and unseen starts are those of `scripts.train_generator`'s report. Prints a row for each
mode and number of steps; milliseconds are wall time of one network in a batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from generator import ParameterPipeline, prompt_grid
from generator.evaluation.unseen_starts import alignment_figures, unseen_alignments
from generator.training.tasks import task_of
from generator.trajectories import Trajectories
from zoo.storage.zoo import Zoo

from ..rows import Row
from .command import bench
from .generator_table import PACKAGES, named

METRIC = "val_loss"


def rows(
    pipeline: str,
    zoo: str,
    *,
    steps: Sequence[int] = (1, 2, 4, 8, 16, 32),
    modes: Sequence[str] = ("start", "noise"),
    num_starts: int = 128,
) -> Iterator[Row]:
    """A row for each mode and number of steps.

    Args:
        pipeline: folder of a pipeline
        zoo: that it was trained on
    """
    pipe, opened = ParameterPipeline.from_pretrained(pipeline), Zoo.open(zoo)
    prompts = prompt_grid(Trajectories.from_zoo(opened, "train", (METRIC,), memory_budget=0), METRIC)
    for mode in modes:
        for num_steps in steps:
            began = time.perf_counter()
            (alignment,) = unseen_alignments(
                pipe,
                task_of(opened),
                prompts,
                use_start=mode == "start",
                num_starts=num_starts,
                num_inference_steps=num_steps,
            )
            milliseconds = 1e3 * (time.perf_counter() - began) / (num_starts * len(prompts))
            yield Row(
                question=__doc__.splitlines()[0],
                setting={"zoo": Path(zoo).name, "mode": mode, "sampling steps": num_steps},
                figures={**named(alignment_figures(alignment)), "ms a network": milliseconds},
                note=f"{num_starts} unseen starts, 16 prompts; wall time of one network in a batch.",
            )


if __name__ == "__main__":
    bench("generator", rows, packages=PACKAGES, num_threads=1)
