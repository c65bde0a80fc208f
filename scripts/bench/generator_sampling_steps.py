"""How many denoising steps does a generator need?

    python -m scripts.bench.generator_sampling_steps PIPELINE ZOO --steps 1 2 4 8 16 32 [--record]

Prompts and unseen starts are those of `scripts.train_generator`'s report. Prints a row for each
mode and number of steps; milliseconds are wall time of one network in a batch.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from generator import ParameterPipeline, prompt_grid
from generator.evaluation.unseen_starts import alignment_figures, unseen_alignments
from generator.training.tasks import task_of
from generator.trajectories import Trajectories
from zoo.storage.zoo import Zoo

from ..rows import Row, tables
from .generator_table import PACKAGES, named
from .record import record

METRIC = "val_loss"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", help="folder of a pipeline")
    parser.add_argument("zoo", help="that it was trained on")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--modes", nargs="+", choices=("start", "noise"), default=["start", "noise"])
    parser.add_argument("--num-starts", type=int, default=128)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="put the rows into scripts/bench/results")
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)

    pipe, zoo = ParameterPipeline.from_pretrained(options.pipeline), Zoo.open(options.zoo)
    prompts = prompt_grid(Trajectories.from_zoo(zoo, "train", (METRIC,), memory_budget=0), METRIC)
    rows = []
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
            rows.append(
                Row(
                    question=__doc__.splitlines()[0],
                    setting={"zoo": Path(options.zoo).name, "mode": mode, "sampling steps": num_steps},
                    figures={**named(alignment_figures(alignment)), "ms a network": milliseconds},
                    note=f"{options.num_starts} unseen starts, 16 prompts; wall time of one network in a batch.",
                )
            )
            print(tables(rows[-1:]), flush=True)
    print(f"\n{tables(rows)}")
    if options.record:
        print(f"recorded in {record('generator', rows, packages=PACKAGES)}")


if __name__ == "__main__":
    main()
