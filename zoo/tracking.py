"""Where curves go: a tracker by name, for zoo builds, generators and meta-training alike.

    tracker = make_tracker("tensorboard", "out/log")
    build_zoo("out/zoo", task, ..., progress=build_curves(tracker))
    tracker.finalize("success")

A tracker is any object with Lightning's three calls `log_hyperparams`, `log_metrics` and `finalize`, so one of its
loggers, or one of your own. Those by name need the extra `trackers`, wandb and mlflow themselves besides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from zoo.building.build import Progress

PROJECT: Final = "weightfoundry"
_LOGGERS: Final[Mapping[str, Callable[[Path, str], tuple[str, dict[str, Any]]]]] = {
    "csv": lambda folder, run: (
        "CSVLogger",
        {"save_dir": folder, "name": "log", "flush_logs_every_n_steps": 1},
    ),
    "tensorboard": lambda folder, run: ("TensorBoardLogger", {"save_dir": folder, "name": "tensorboard"}),
    "wandb": lambda folder, run: ("WandbLogger", {"save_dir": folder, "name": run, "project": PROJECT}),
    "mlflow": lambda folder, run: (
        "MLFlowLogger",
        {
            "tracking_uri": os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}",
            "artifact_location": str(folder.absolute() / "mlruns"),
            "run_name": run,
            "experiment_name": PROJECT,
        },
    ),
}
TRACKERS: Final = (*_LOGGERS, "trackio")


class Tracker(Protocol):
    """Takes settings once, then numbers by name with the step that they belong to."""

    def log_hyperparams(self, params: dict[str, Any]) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def finalize(self, status: str) -> None: ...


def make_tracker(name: str, folder: str | os.PathLike, *, run: str | None = None) -> Any:
    """A logger of Lightning, by name.

    Args:
        name: csv, tensorboard, trackio, wandb or mlflow. The first three never leave this machine, wandb stays on it
            with WANDB_MODE=offline, mlflow writes to MLFLOW_TRACKING_URI or, if that is not set, to mlflow.db in the
            folder. trackio keeps its runs where it always does (TRACKIO_DIR); `trackio show` shows them.
        folder: where the others write.
        run: what the run is called where runs are listed; by default like the folder.

    Raises:
        ValueError: for another name.
        ImportError: if the tracker is not installed; the text says what to install.
    """
    if name not in TRACKERS:
        raise ValueError(f"logger must be one of {', '.join(TRACKERS)}, got {name!r}")
    folder = Path(folder)
    run = run or folder.absolute().name
    try:
        if name == "trackio":
            return import_module("zoo.trackio_logger").TrackioLogger(run, PROJECT)
        kind, options = _LOGGERS[name](folder, run)
        return getattr(import_module("lightning.pytorch.loggers"), kind)(**options)
    except ModuleNotFoundError as error:
        package = f"'weightfoundry[trackers]'{'' if name in ('csv', 'tensorboard', 'trackio') else f' {name}'}"
        raise ImportError(f"logger={name} is not installed ({error}); pip install {package}") from error


def build_curves(tracker: Tracker) -> Callable[[Progress], None]:
    """What `build_zoo` takes as `progress`: after each block its speed, and medians over its runs at the last step."""

    def log(state: Progress) -> None:
        if (report := state.report) is not None:
            shown = {
                "diverged": report.num_diverged / report.num_runs,
                "model_steps_per_second": report.model_steps / report.seconds,
                **report.medians,
            }
            tracker.log_metrics(shown, step=state.num_done)

    return log
