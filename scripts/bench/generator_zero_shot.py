"""Does a generator serve architectures that it was not trained on?

    python -m scripts.bench.generator_zero_shot PIPELINE --zoos A B C --hidden 20x20 32x32 16x16x16x16 [--record]

Starts are random initial networks of each architecture, for the task of the zoos. As there is no zoo of it, its prompts
are those of the training zoo of the same depth, or else of the nearest one: 16, from that zoo's floor (median over
training runs of the lowest val loss) to 2.2. Prints a row for each architecture and update.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generator import ParameterPipeline, prompt_grid
from generator.evaluation.unseen_starts import alignment_figures, unseen_alignments
from generator.trajectories import Trajectories
from zoo.storage.zoo import Zoo
from zoo.tasks.registry import get_task

from ..rows import Row
from .generator_table import PACKAGES, named
from .record import arguments, publish

METRIC = "val_loss"


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(num_threads=1)
    parser.add_argument("pipeline", help="folder of a pipeline with a start")
    parser.add_argument("--zoos", nargs="+", required=True, help="that it was trained on")
    parser.add_argument("--hidden", nargs="+", required=True, help="hidden widths of each architecture, as 16x16")
    parser.add_argument("--num-starts", type=int, default=128)
    parser.add_argument("--num-updates", type=int, default=2)
    options = parser.parse_args()
    publish("generator", rows(options), options, packages=PACKAGES)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    pipe = ParameterPipeline.from_pretrained(options.pipeline)
    zoos = [Zoo.open(path) for path in options.zoos]
    trained = [widths_of(zoo) for zoo in zoos]
    for text in options.hidden:
        hidden = tuple(int(width) for width in text.split("x"))
        nearest = min(
            range(len(zoos)), key=lambda i: (abs(len(trained[i]) - len(hidden)), abs(trained[i][0] - hidden[0]))
        )
        settings: dict[str, Any] = {**zoos[nearest].task_config, "hidden": hidden}
        prompts = prompt_grid(Trajectories.from_zoo(zoos[nearest], "train", (METRIC,), memory_budget=0), METRIC)
        alignments = unseen_alignments(
            pipe,
            get_task(**settings),
            prompts,
            metric=METRIC,
            num_starts=options.num_starts,
            num_updates=options.num_updates,
        )
        for update, alignment in enumerate(alignments, 1):
            setting = {"hidden layers": text.replace("x", "-"), "trained on": hidden in trained, "update": update}
            yield Row(
                question=__doc__.splitlines()[0],
                setting={**setting, "prompts of": Path(options.zoos[nearest]).name},
                figures=named(alignment_figures(alignment)),
                note=f"{options.num_starts} unseen starts, 16 prompts; R² is of log loss against the prompt.",
            )


def widths_of(zoo: Zoo) -> tuple[int, ...]:
    """Hidden widths of the zoo's networks."""
    widths: Any = zoo.task_config["hidden"]
    return tuple(widths)


if __name__ == "__main__":
    main()
