"""How many denoising steps does a generator need?

    python -m scripts.bench.generator_sampling_steps PIPELINE ZOO --steps 1 2 4 8 16 32

Prompts and unseen starts are those of `scripts.train_generator`'s report. Prints a row of a Markdown table for each
mode and number of steps; milliseconds are wall time of one network in a batch.
"""

from __future__ import annotations

import argparse
import time

import torch

from generator import ParameterPipeline, prompt_grid
from generator.evaluation.unseen_starts import alignment_figures, unseen_alignments
from generator.training.inputs import task_of
from generator.trajectories import Trajectories
from zoo.storage.zoo import Zoo

COLUMNS = ("spearman", "r2_log", "test_r2_log", "lowest_achieved", "accuracy")
METRIC = "val_loss"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", help="folder of a pipeline")
    parser.add_argument("zoo", help="that it was trained on")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--modes", nargs="+", choices=("start", "noise"), default=["start", "noise"])
    parser.add_argument("--num-starts", type=int, default=128)
    parser.add_argument("--num-threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)

    pipe, zoo = ParameterPipeline.from_pretrained(options.pipeline), Zoo.open(options.zoo)
    prompts = prompt_grid(Trajectories.from_zoo(zoo, "train", (METRIC,), memory_budget=0), METRIC)
    print("| mode | steps | " + " | ".join(COLUMNS) + " | ms a network |")
    print("|" + "---|" * (len(COLUMNS) + 3))
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
            figures = alignment_figures(alignment)
            cells = " | ".join(f"{figures[name]:.3f}" for name in COLUMNS)
            print(f"| {mode} | {num_steps} | {cells} | {milliseconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
