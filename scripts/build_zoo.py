"""Train a zoo: a population of networks with all its snapshots and metrics, on disk.

    python -m scripts.build_zoo out=PATH [task=digits] [num_runs=2304] [seed=0] [executor=processes] ...

Output: a zoo in the folder `out` (its format: zoo/README.md); `config.yaml` and `summary.json` in the folder
PATH-build. Ctrl-C or a crash loses nothing that was committed: the same command resumes. Typical run time: a minute or
two for the default zoo of 2,304 small networks on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from zoo import Zoo, build_zoo, get_task
from zoo.building import BuildPlan, default_executor
from zoo.building.build import Progress
from zoo.devices import resolve_device
from zoo.inspection import summarize, summary_tables
from zoo.tracking import build_curves

from .build_report import Report
from .cli import console, run, save_run, tracking
from .machine import used_by_this_process


def main(config: DictConfig) -> None:
    out = Path(config.out).absolute()
    folder = out.with_name(f"{out.name}-build")
    started = time.perf_counter()
    with Report() as report, tracking(config, folder, build_curves) as log:
        zoo = build(config, lambda state: (report(state), log(state)))
    summary = summarize(zoo)
    for table in summary_tables(summary):
        console.print(table)
    built = {"seconds": time.perf_counter() - started, "new_runs": report.runs, "new_model_steps": report.model_steps}
    built |= used_by_this_process()
    save_run(folder, config, summary | {"build": built})
    console.print(f"zoo in {out}, config.yaml and summary.json in {folder}", soft_wrap=True)


def build(config: DictConfig, report: Callable[[Progress], object]) -> Zoo:
    """The zoo of these settings, in the folder `config.out`."""
    values = OmegaConf.to_container(config, resolve=True)
    for group in ("task", "architecture", "optimizer"):
        if not isinstance(values[group], dict):
            raise ValueError(f"{group} must be a group of settings, got {values[group]!r}")
    training = {name: values[name] for name in ("objective", "augment")}
    task = get_task(**values["task"], **values["architecture"], **training).to(resolve_device(config.device))
    plan = {field.name: values[field.name] for field in fields(BuildPlan) if field.name != "task"}
    out = Path(config.out).absolute()
    executor = instantiate(config.executor)
    if executor is None and plan["search"] is None:
        executor = default_executor(task.device, config.num_runs * config.num_steps)
    return build_zoo(out, task, executor=executor, progress=report, **plan)


if __name__ == "__main__":
    run(main, "build_zoo")
