"""How many denoising steps does a generator need?

    python -m scripts.bench.generator_sampling_steps PIPELINE ZOO --steps 1 2 4 8 16 32 [--record]

Prompts and unseen starts are those of `scripts.train_generator`'s report. Prints a row for each
mode and number of steps; milliseconds are wall time of one network in a batch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from generator import ParameterPipeline, prompt_grid
from generator.evaluation.unseen_starts import alignment_figures, unseen_alignments
from generator.training.tasks import task_of
from generator.trajectories import Trajectories
from zoo.storage.zoo import Zoo

from ..rows import Row
from .generator_table import PACKAGES, named
from .record import arguments, publish

METRIC = "val_loss"


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(num_threads=1)
    parser.add_argument("pipeline", help="folder of a pipeline")
    parser.add_argument("zoo", help="that it was trained on")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--modes", nargs="+", choices=("start", "noise"), default=["start", "noise"])
    parser.add_argument("--num-starts", type=int, default=128)
    options = parser.parse_args()
    publish("generator", rows(options), options, packages=PACKAGES)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    pipe, zoo = ParameterPipeline.from_pretrained(options.pipeline), Zoo.open(options.zoo)
    prompts = prompt_grid(Trajectories.from_zoo(zoo, "train", (METRIC,), memory_budget=0), METRIC)
    for mode in options.modes:
        for num_steps in options.steps:
            began = time.perf_counter()
            (alignment,) = unseen_alignments(
                pipe,
                task_of(zoo),
                prompts,
                use_start=mode == "start",
                num_starts=options.num_starts,
                num_inference_steps=num_steps,
            )
            milliseconds = 1e3 * (time.perf_counter() - began) / (options.num_starts * len(prompts))
            yield Row(
                question=__doc__.splitlines()[0],
                setting={"zoo": Path(options.zoo).name, "mode": mode, "sampling steps": num_steps},
                figures={**named(alignment_figures(alignment)), "ms a network": milliseconds},
                note=f"{options.num_starts} unseen starts, 16 prompts; wall time of one network in a batch.",
            )


if __name__ == "__main__":
    main()
