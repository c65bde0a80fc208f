"""Stage "zoo": a population of networks, trained, evaluated and written; its speed beside that of a plain loop."""

from __future__ import annotations

import statistics
import time
from typing import Final

import numpy as np
from omegaconf import DictConfig

from zoo import Zoo
from zoo.inspection import final_metric, metric_quantiles
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task

from ..build_report import Report
from ..build_zoo import build
from ..cli import console
from ..plain_loop import PlainLoop
from .stage import StageResult

LEVELS: Final = (0.05, 0.25, 0.5, 0.75, 0.95)


def run(config: DictConfig) -> StageResult:
    with Report() as report:
        zoo = build(config.zoo, report)
    plain = plain_loop_speed(get_task(**dict(zoo.task_config)), config.zoo.plain_loop_seconds)
    findings = zoo.verify()
    if findings:
        raise ValueError(f"the zoo is damaged: {findings[0]}; run the demo again to repair it")
    speed = report.speed
    steps, losses = metric_quantiles(zoo, "val_loss", LEVELS)
    numbers = {
        "task": dict(zoo.task_config),
        "num_runs": zoo.num_runs,
        "num_complete": len(zoo.usable_runs()),
        "num_snapshots": zoo.num_snapshots,
        "num_steps": int(steps[-1]),
        "num_params": zoo.layout.num_params,
        "model_steps_per_second": speed,
        "plain_loop_steps_per_second": plain,
        "speedup": speed and speed / plain,
        "final_test_accuracy": 1 - float(np.median(final_metric(zoo, "test_error"))),
        "splits": {name: len(zoo.split(name)) for name in zoo.spec.splits.fractions},
    }
    said = "all blocks were there already"
    if speed:
        said = (
            f"{speed:,.0f} model-steps/s, evaluated and written; a plain loop makes {plain:,.0f}: "
            f"{speed / plain:.0f} times as fast"
        )
    console.print(said)
    return StageResult(numbers, {"steps": steps, "levels": LEVELS, "val_loss": losses})


def plain_loop_speed(task: Task, seconds: float) -> float:
    """Steps per second of one network trained as everybody does, measured for about that time after a warm-up."""
    loop = PlainLoop(task)
    loop.train(100)
    speeds = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or not speeds:
        before = time.perf_counter()
        loop.train(100)
        speeds.append(100 / (time.perf_counter() - before))
    return statistics.median(speeds)


def open_zoo(config: DictConfig) -> Zoo:
    return Zoo.open(str(config.zoo.out))
