"""How a build shows itself in the terminal."""

from __future__ import annotations

import time
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zoo.building.build import Progress as BuildState

from .cli import console


class Report:
    """Shows a build's progress from its first block on: blocks, runs and model-steps per second, time left.

    Attributes:
        runs, model_steps: built so far.
        speed: model-steps per second of the whole build so far, start and compilation included; None before the first.
    """

    def __init__(self) -> None:
        self.runs = self.model_steps = 0
        self.speed: float | None = None
        self._started = time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("blocks"))
        times = (TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._bar = Progress(*columns, *times, console=console, speed_estimate_period=600)
        self._row = self._bar.add_task("building", total=None, speed="")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def __call__(self, state: BuildState) -> None:
        self._bar.start()
        self._bar.update(self._row, completed=state.num_done, total=state.num_blocks)
        if state.report is not None:
            self.runs += state.report.num_runs
            self.model_steps += state.report.model_steps
            seconds = time.perf_counter() - self._started
            self.speed = self.model_steps / seconds
            self._bar.update(self._row, speed=f"{self.runs / seconds:,.1f} runs/s, {self.speed:,.0f} model-steps/s")
