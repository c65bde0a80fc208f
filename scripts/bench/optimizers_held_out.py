"""Are the hand-set numbers of mulo-wide of use for kinds of tasks that had no say in them?

    python -m scripts.bench.optimizers_held_out [--seeds 0 1 2] [--record]

Every family of the dev and fragile panels is left out once (see `scripts.studies.optimizers.outside.held_out`). What is
trained is kept in `--folder`, that of `optimizers_outside`, so that the same command resumes. About 15 CPU-minutes.
Needs the extra `bench`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from learned_opt import load_pretrained

from ..rows import Row
from ..studies.optimizers.outside.held_out import held_out_rows
from ..studies.optimizers.outside.methods import outside_rivals
from ..studies.optimizers.outside.tasks import outside_tasks
from ..studies.optimizers.outside.training import Trainings
from .command import bench
from .optimizers_outside import PACKAGES


def rows(
    *, base: str = "mulo-norm", seeds: Sequence[int] = (0, 1, 2), folder: str = "out/outside", report_only: bool = False
) -> Iterator[Row]:
    """Losses of the grid, and of each family left out.

    Args:
        base: name or file that the numbers are added to
        seeds: the first chooses
        folder: of what is trained
        report_only: fail rather than train
    """
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    trainings = Trainings(Path(folder), tuple(seeds), train_missing=not report_only)
    tasks = outside_tasks(("dev", "fragile"))
    yield from held_out_rows(trainings, tasks, load_pretrained(base), outside_rivals()[0])


if __name__ == "__main__":
    bench("outside", rows, packages=PACKAGES, num_threads=1)
