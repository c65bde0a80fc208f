"""Are learned optimizers better than tuned ones on other people's code and kinds of task?

    python -m scripts.bench.optimizers_outside [--panels dev fragile outside deep] [--seeds 0 1 2] [--record]

Trains every task of the panel (see `scripts.studies.optimizers.outside.tasks`) by hand-made optimizers, each swept
until its best learning rate is inside the grid, and by the learned ones as they are; AdamW with its cosine is tuned for
every power of two of steps besides. What is trained is kept in `--folder`, so that the same command resumes. About 25
CPU-minutes a seed, and a third of that for "dev". Needs the extra `bench`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from learned_opt.optimizer.torch_optimizer import RECOMMENDED

from ..rows import Row
from ..studies.optimizers.outside.methods import learned as learned_methods
from ..studies.optimizers.outside.methods import outside_rivals
from ..studies.optimizers.outside.report import panel_rows
from ..studies.optimizers.outside.tasks import PANELS, outside_tasks
from ..studies.optimizers.outside.training import Trainings
from .command import bench

PACKAGES = ("torch", "timm", "transformers", "peft", "pytorch_optimizer", "prodigyopt", "schedulefree")


def rows(
    *,
    panels: Sequence[str] = PANELS,
    tasks: Sequence[str] = (),
    methods: Sequence[str] = (),
    learned: Sequence[str] = (*RECOMMENDED.values(), "mulo"),
    seeds: Sequence[int] = (0,),
    folder: str = "out/outside",
    report_only: bool = False,
) -> Iterator[Row]:
    """All tables of the panels.

    Args:
        panels: dev, fragile, outside, deep
        tasks: only these
        methods: only these hand-made ones
        learned: names or files
        folder: of what is trained
        report_only: leave out what has not been trained
    """
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    trainings = Trainings(Path(folder), tuple(seeds), train_missing=not report_only)
    rivals = [method for method in outside_rivals() if method.name in (methods or [method.name])]
    ours = [method for name in learned for method in learned_methods(name)]
    chosen = [task for task in outside_tasks(panels) if task.name in (tasks or [task.name])]
    yield from panel_rows(trainings, chosen, rivals, ours)


if __name__ == "__main__":
    bench("outside", rows, packages=PACKAGES, num_threads=1)
