"""Train a zoo: a population of networks with all its snapshots and metrics, on disk.

    python -m scripts.build_zoo out=PATH [task=digits] [num_runs=2304] [seed=0] [executor=processes] ...

Output: a zoo in the folder `out` (its format: zoo/README.md); `config.yaml` and `summary.json` in the folder
PATH-build. Ctrl-C or a crash loses nothing that was committed: the same command goes on. Typical run time: a minute or
two for the default zoo of 2,304 small networks on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zoo import Zoo, build_zoo, get_task
from zoo.building.build import Progress as BuildProgress
from zoo.inspection import summarize, summary_tables
from zoo.training.population import quadratic_steps

from .cli import console, run, save_run

PLAN_KEYS = (
    "num_runs",
    "num_steps",
    "seed",
    "batch_size",
    "shared_batches",
    "init_scale",
    "evaluated_splits",
    "block_size",
    "dtype",
    "max_loss",
)


def main(config: DictConfig) -> None:
    out = Path(config.out).absolute()
    report = Report()
    started = time.perf_counter()
    with report.bar:
        zoo = build(config, report)
    summary = summarize(zoo)
    for table in summary_tables(summary):
        console.print(table)
    built = {"seconds": time.perf_counter() - started, "new_runs": report.runs, "new_model_steps": report.model_steps}
    folder = out.with_name(f"{out.name}-build")
    save_run(folder, config, summary | {"build": built})
    console.print(f"zoo in {out}, config.yaml and summary.json in {folder}", soft_wrap=True)


def build(config: DictConfig, report: Callable[[BuildProgress], None]) -> Zoo:
    """The zoo of these settings, in the folder `config.out`."""
    values = OmegaConf.to_container(config, resolve=True)
    for group in ("task", "architecture", "optimizer"):
        if not isinstance(values[group], dict):
            raise ValueError(f"{group} must be a group of settings, got {values[group]!r}")
    return build_zoo(
        Path(config.out).absolute(),
        get_task(**values["task"], **values["architecture"]).to(usable_device(config.device)),
        executor=instantiate(config.executor),
        progress=report,
        optimizer=values["optimizer"],
        snapshot_steps=quadratic_steps(config.num_steps, config.num_snapshots),
        **{key: values[key] for key in PLAN_KEYS},
    )


def usable_device(name: str) -> str:
    """A device to train on, "auto" for the GPU if there is one; ValueError if it cannot be used."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).partition(chr(10))[0]}") from error
    return name


class Report:
    """Shows a build's progress: blocks, runs and model-steps per second, time left.

    Attributes:
        runs, model_steps: built so far.
        speeds: model-steps per second of each block.
        bar: to show while building.
    """

    def __init__(self) -> None:
        self.runs = self.model_steps = 0
        self.speeds: list[float] = []
        self._started = time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("blocks"))
        times = (TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.bar = Progress(*columns, *times, console=console, speed_estimate_period=600)
        self._row = self.bar.add_task("building", total=None, speed="")

    def __call__(self, state: BuildProgress) -> None:
        if state.report is not None:
            self.runs += state.report.num_runs
            self.model_steps += state.report.model_steps
            self.speeds.append(state.report.model_steps / state.report.seconds)
        seconds = time.perf_counter() - self._started
        speed = (
            f"{self.runs / seconds:,.1f} runs/s, {self.model_steps / seconds:,.0f} model-steps/s" if self.runs else ""
        )
        self.bar.update(self._row, completed=state.num_done, total=state.num_blocks, speed=speed if self.runs else "")


if __name__ == "__main__":
    run(main, "build_zoo")
