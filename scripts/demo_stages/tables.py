"""Stage "tables": networks for tables that the generator of the package never saw, in one pass from half of the rows.

That generator learned from random tables alone. Beside it: scikit-learn's classifiers, with their defaults, on the same
rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from omegaconf import DictConfig
from rich.progress import Progress

from generator import GeneratedClassifier

from ..cli import console
from ..studies.tabular.rivals import estimators
from ..studies.tabular.tables import REPORTED, parts
from .stage import StageResult

ONE_PASS: Final = "one pass"
BOOSTING: Final = "gradient boosting"
SHOWN: Final = (ONE_PASS, BOOSTING, "random forest", "logistic regression")
TABLES: Final = ("iris", "wine", "breast cancer", "diabetes", "digits", "digits 20")  # those of scikit-learn


def run(config: DictConfig) -> StageResult:
    options = config.tables
    makers: dict[str, Callable[[], Any]] = {ONE_PASS: lambda: GeneratedClassifier(device=config.device)}
    makers |= {name: make for name, make in estimators(config.seed).items() if name in SHOWN}
    tables = [REPORTED[name]() for name in TABLES]
    makers[ONE_PASS]().fit(*parts(tables[0], 0, options.max_rows)[:2])  # what is loaded once is not timed
    scores: dict[str, dict[str, list[float]]] = {table.name: {name: [] for name in makers} for table in tables}
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    with Progress(console=console) as progress:
        bar = progress.add_task("tables", total=len(tables) * options.num_splits)
        for table in tables:
            progress.update(bar, description=table.name)
            for split in range(options.num_splits):
                X, y, X_test, y_test = parts(table, config.seed + split, options.max_rows)
                for name, make in makers.items():
                    began = time.perf_counter()
                    fitted = make().fit(X, y)
                    seconds[name].append(time.perf_counter() - began)
                    scores[table.name][name].append(float(fitted.score(X_test, y_test)))
                progress.advance(bar)
    accuracy = {table: {name: float(np.mean(one)) for name, one in by.items()} for table, by in scores.items()}
    numbers = {
        "num_tables": len(tables),
        "num_splits": options.num_splits,
        "max_rows": options.max_rows,
        "mean_accuracy": {name: float(np.mean([by[name] for by in accuracy.values()])) for name in makers},
        "seconds_to_fit": {name: float(np.median(some)) for name, some in seconds.items()},
        "better_than_boosting": sum(by[ONE_PASS] > by[BOOSTING] for by in accuracy.values()),
        "accuracy": accuracy,
    }
    return StageResult(numbers, {"accuracy": accuracy})
