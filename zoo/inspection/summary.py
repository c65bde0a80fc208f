"""A zoo in numbers: runs, statuses, sizes, splits, and how its metrics are distributed at each snapshot.

Legend: R runs, S snapshots, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from zarr.storage import LocalStore

from zoo.inspection.updates import zoo_updates
from zoo.storage.schema import Json, RunStatus
from zoo.storage.zoo import Zoo

LEVELS: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_SPLITS: Final = ("val", "train", "test")  # the first that a metric has stands for it
_MAX_ROWS: Final = 9
_MAX_TENSORS: Final = 24
_LOOK: Final[dict] = {"title_justify": "left", "box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}


def last_snapshots(zoo: Zoo) -> np.ndarray:
    """(R,) index of the last snapshot that each run has; -1 if it has none."""
    has = zoo.inner_step >= 0
    return np.where(has.any(1), zoo.num_snapshots - 1 - has[:, ::-1].argmax(1), -1)


def metric_families(names: Sequence[str]) -> dict[str, list[str]]:
    """Metrics grouped by what they measure, val before train before test: loss -> [val_loss, train_loss, test_loss]."""
    families: dict[str, list[str]] = {}
    for name in names:
        split, _, what = name.partition("_")
        families.setdefault(what if split in _SPLITS else name, []).append(name)
    for members in families.values():
        members.sort(key=lambda name: [name.startswith(f"{split}_") for split in _SPLITS], reverse=True)
    return families


def metric_quantiles(zoo: Zoo, name: str, levels: Sequence[float] = LEVELS) -> tuple[np.ndarray, np.ndarray]:
    """Distribution of a metric over usable runs at each snapshot.

    Returns:
        (S,) inner step, the median one where runs differ, and (Q, S) quantiles; NaN where no run has a value.
    """
    runs = zoo.usable_runs()
    steps = _columnwise(np.where(zoo.inner_step >= 0, zoo.inner_step, np.nan)[runs], (0.5,))[0]
    return steps, _columnwise(zoo.metric(name)[runs], levels)


def final_metric(zoo: Zoo, name: str) -> np.ndarray:
    """Values of a metric at the last snapshot of each usable run, without those that are not finite."""
    runs = zoo.usable_runs()
    values = zoo.metric(name)[runs, last_snapshots(zoo)[runs]]
    return values[np.isfinite(values)]


def summarize(zoo: Zoo) -> dict[str, Json]:
    """What `inspect_zoo` shows, as JSON; numbers that do not exist are null."""
    spec = zoo.spec
    steps = zoo.inner_step[zoo.inner_step >= 0]
    files = list(_file_sizes(zoo))
    summary: dict[str, Json] = {
        "zoo": str(zoo.group.store_path),
        "format_version": zoo.attributes["format_version"],
        "num_runs": zoo.num_runs,
        "num_snapshots": zoo.num_snapshots,
        "num_params": zoo.layout.num_params,
        "num_trainable": zoo.layout.num_trainable,
        "dtype": spec.dtype,
        "statuses": {status.name.lower(): int((zoo.status == status).sum()) for status in RunStatus},
        "splits": {name: len(zoo.split(name)) for name in spec.splits.fractions},
        "bytes": sum(size for _, size in files) if files else None,
        "bytes_of_params": sum(size for name, size in files if name.startswith("params/")) if files else None,
        "inner_steps": [int(steps.min()), int(steps.max())] if steps.size else None,
        "seed": spec.seed,
        "task": dict(spec.task_config),
        "optimizer": dict(spec.optimizer_config),
        "data_hash": spec.data_hash,
        "software": dict(spec.software),
        "levels": list(LEVELS),
        "columns": {name: _quantiles(zoo.runs[name][zoo.status != RunStatus.EMPTY]) for name in spec.columns},
        "final": {name: _quantiles(final_metric(zoo, name)) for name in spec.metric_names},
        "updates": {name: _named(values) for name, values in zoo_updates(zoo).items()},
    }
    trajectories: dict[str, Json] = {}
    for members in metric_families(spec.metric_names).values():
        at, quantiles = metric_quantiles(zoo, members[0])
        trajectories[members[0]] = {"inner_step": _json(at), "quantiles": [_json(row) for row in quantiles]}
    return {**summary, "trajectories": trajectories}


def summary_tables(summary: Mapping[str, Json]) -> list[Table]:
    """The summary as rich tables: the zoo, its final metrics and columns, and each main metric over its snapshots."""
    levels = cast("list[float]", summary["levels"])
    headers = [{0.0: "min", 0.5: "median", 1.0: "max"}.get(level, f"{100 * level:g}%") for level in levels]
    tables = [_facts_table(summary)]
    for title, key in (("last snapshot of each run", "final"), ("settings of the runs", "columns")):
        rows = cast("dict[str, list[float | None]]", summary[key])
        if rows:
            tables.append(_number_table(title, ["", *headers], [[name, *values] for name, values in rows.items()]))
    for name, trajectory in cast("dict[str, dict[str, list]]", summary["trajectories"]).items():
        columns = [trajectory["inner_step"], *trajectory["quantiles"]]
        chosen = np.unique(np.linspace(0, len(columns[0]) - 1, _MAX_ROWS).round().astype(int))
        steps = ["-" if step is None else f"{step:g}" for step in columns[0]]
        rows_of_steps = [[steps[i], *(column[i] for column in columns[1:])] for i in chosen]
        tables.append(_number_table(f"{name} over the snapshots", ["inner step", *headers], rows_of_steps))
    if updates := cast("dict[str, dict[str, float | None]]", summary["updates"]):
        largest = sorted(updates, key=lambda name: updates[name]["norm"] or 0, reverse=True)[:_MAX_TENSORS]
        shown = [name for name in updates if name in largest]
        title = "first to last snapshot, mean of some runs" + (
            f"; {len(shown)} of {len(updates)} tensors" if len(shown) < len(updates) else ""
        )
        columns_of_updates = [what.replace("_", " ") for what in updates[shown[0]]]
        tables.append(_number_table(title, ["", *columns_of_updates], [[n, *updates[n].values()] for n in shown]))
    return tables


def _facts_table(summary: Mapping[str, Json]) -> Table:
    statuses = cast("dict[str, int]", summary["statuses"])
    steps = cast("list[int] | None", summary["inner_steps"])
    task = cast("dict[str, Json]", summary["task"])
    buffers = cast("int", summary["num_params"]) - cast("int", summary["num_trainable"])
    size = "not on a local disk"
    if summary["bytes"] is not None:
        params = _size(cast("int", summary["bytes_of_params"]))
        size = f"{_size(cast('int', summary['bytes']))}, of which parameters {params}"
    facts = {
        "runs": f"{summary['num_runs']:,} (" + ", ".join(f"{n:,} {name}" for name, n in statuses.items() if n) + ")",
        "snapshots per run": f"{summary['num_snapshots']}"
        + (f", inner steps {steps[0]} to {steps[1]}" if steps else ""),
        "numbers per network": f"{summary['num_params']:,} {summary['dtype']}"
        + (f", of which {buffers:,} in buffers" if buffers else ""),
        "on disk": size,
        "splits": ", ".join(f"{name} {n:,}" for name, n in cast("dict[str, int]", summary["splits"]).items()),
        "task": ", ".join(f"{name}={value}" for name, value in task.items()) or "unknown",
        "software": ", ".join(f"{name} {value}" for name, value in cast("dict", summary["software"]).items()),
    }
    table = Table(title=str(summary["zoo"]), show_header=False, **_LOOK)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def _number_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> Table:
    table = Table(title=title, **_LOOK)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*("-" if value is None else value if isinstance(value, str) else f"{value:.3g}" for value in row))
    return table


def _columnwise(values: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """(Q, S) quantiles of the finite values in each column of (R, S)."""
    columns = [column[np.isfinite(column)] for column in values.T]
    return np.array([np.quantile(column, levels) if column.size else [np.nan] * len(levels) for column in columns]).T


def _quantiles(values: np.ndarray) -> Json:
    return _json(_columnwise(values.astype(np.float64)[:, None], LEVELS)[:, 0])


def _json(values: np.ndarray) -> list[Json]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _named(values: Mapping[str, float]) -> Json:
    return dict(zip(values, _json(np.array(list(values.values()))), strict=True))


def _file_sizes(zoo: Zoo) -> Iterator[tuple[str, int]]:
    """Path relative to the zoo, and bytes, of each of its files, if it is on a local disk."""
    place = zoo.group.store_path
    if isinstance(place.store, LocalStore):
        root = Path(place.store.root) / place.path
        for file in root.rglob("*"):
            if file.is_file():
                yield file.relative_to(root).as_posix(), file.stat().st_size


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
