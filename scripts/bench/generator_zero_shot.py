"""Does a generator serve architectures that it was not trained on?

    python -m scripts.bench.generator_zero_shot PIPELINE [PIPELINE ...] --zoos A B C --hidden 20x20 32x32 [--record]

Starts are random initial networks of each architecture, for the task of the zoos. As there is no zoo of it, its prompts
are those of the training zoo of the same depth, or else of the nearest one: 16, from that zoo's floor (median over
training runs of the lowest val loss) to 2.2. Prints a row for each architecture and update, of all seeds together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from generator import ParameterPipeline, prompt_grid
from generator.evaluation.unseen_starts import alignment_figures, unseen_alignments
from generator.trajectories import Trajectories
from zoo.storage.zoo import Zoo
from zoo.tasks.registry import get_task

from ..rows import Row, over_seeds
from .command import bench
from .generator_table import PACKAGES, named

METRIC = "val_loss"


def rows(
    *pipelines: str, zoos: Sequence[str], hidden: Sequence[str], num_starts: int = 128, num_updates: int = 2
) -> Iterator[Row]:
    """A row for each architecture and update.

    Args:
        pipelines: folders of pipelines with a start, of several seeds
        zoos: that they were trained on
        hidden: hidden widths of each architecture, as 16x16
    """
    pipes = [ParameterPipeline.from_pretrained(pipeline) for pipeline in pipelines]
    opened = [Zoo.open(path) for path in zoos]
    trained = [widths_of(zoo) for zoo in opened]
    num_runs = " + ".join(str(len(zoo.split("train"))) for zoo in opened)
    for text in hidden:
        widths = tuple(int(width) for width in text.split("x"))
        nearest = min(
            range(len(zoos)), key=lambda i: (abs(len(trained[i]) - len(widths)), abs(trained[i][0] - widths[0]))
        )
        settings: dict[str, Any] = {**opened[nearest].task_config, "hidden": widths}
        prompts = prompt_grid(Trajectories.from_zoo(opened[nearest], "train", (METRIC,), memory_budget=0), METRIC)
        alignments = [
            unseen_alignments(
                pipe, get_task(**settings), prompts, metric=METRIC, num_starts=num_starts, num_updates=num_updates
            )
            for pipe in pipes
        ]
        for update, of_seeds in enumerate(zip(*alignments, strict=True), 1):
            yield Row(
                question=__doc__.splitlines()[0],
                setting={
                    "hidden layers": text.replace("x", "-"),
                    "trained on": widths in trained,
                    "update": update,
                    "prompts of": Path(zoos[nearest]).name,
                },
                **over_seeds([named(alignment_figures(alignment)) for alignment in of_seeds]),
                seeds=tuple(range(len(pipes))),
                note=f"{num_starts} unseen starts, 16 prompts, {num_runs} runs to learn from; R² is of log loss "
                "against the prompt.",
            )


def widths_of(zoo: Zoo) -> tuple[int, ...]:
    """Hidden widths of the zoo's networks."""
    widths: Any = zoo.task_config["hidden"]
    return tuple(widths)


if __name__ == "__main__":
    bench("generator", rows, packages=PACKAGES, num_threads=1)
