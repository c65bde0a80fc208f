"""Are learned optimizers better than tuned ones on other people's code and kinds of task?

    python -m scripts.bench.optimizers_outside [--panels dev fragile outside] [--seeds 0 1 2] [--record]

Trains every task of the panel (see `scripts.studies.optimizers.outside.tasks`) by hand-made optimizers, each swept
until its best learning rate is inside the grid, and by the learned ones as they are; AdamW with its cosine is tuned for
every power of two of steps besides. What is trained is kept in `--folder`, so that the same command resumes. About 25
CPU-minutes a seed, and a third of that for "dev". Needs the extra `bench`.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from learned_opt.optimizer.torch_optimizer import RECOMMENDED

from ..studies.optimizers.outside.methods import learned, outside_rivals
from ..studies.optimizers.outside.report import panel_rows
from ..studies.optimizers.outside.tasks import PANELS, outside_tasks
from ..studies.optimizers.outside.training import Trainings
from .record import arguments, publish

PACKAGES = ("torch", "timm", "transformers", "peft", "pytorch_optimizer", "prodigyopt", "schedulefree")


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(num_threads=1)
    parser.add_argument("--panels", nargs="+", choices=PANELS, default=list(PANELS))
    parser.add_argument("--tasks", nargs="+", help="only these")
    parser.add_argument("--methods", nargs="+", help="only these hand-made ones")
    parser.add_argument("--learned", nargs="*", default=[RECOMMENDED, "mulo"], help="names or files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folder", type=Path, default=Path("out/outside"))
    parser.add_argument("--report-only", action="store_true", help="leave out what has not been trained")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    trainings = Trainings(options.folder, tuple(options.seeds), train_missing=not options.report_only)
    rivals = [method for method in outside_rivals() if method.name in (options.methods or [method.name])]
    ours = [method for name in options.learned for method in learned(name)]
    tasks = [task for task in outside_tasks(options.panels) if task.name in (options.tasks or [task.name])]
    publish("outside", panel_rows(trainings, tasks, rivals, ours), options, packages=PACKAGES)


if __name__ == "__main__":
    main()
