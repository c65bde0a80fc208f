"""Trackio as a logger of Lightning, which has none: runs in a local SQLite database, shown by `trackio show`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import trackio
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class TrackioLogger(Logger):
    """Logs one run of a project on this machine.

    Args:
        name: of the run; a run of that name is continued.
        project: that it belongs to.
    """

    def __init__(self, name: str, project: str) -> None:
        super().__init__()
        self._name, self._project = name, project
        self._run: Any = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._name

    @property
    def run(self) -> Any:
        """The run, which begins when it is first asked for."""
        if self._run is None:
            self._run = trackio.init(self._project, name=self._name, resume="allow", embed=False, auto_log_gpu=False)
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self.run.config.update(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.run.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
