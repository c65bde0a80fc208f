import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from zoo.checkpoints.importer import import_checkpoints
from zoo.inspection.summary import (
    LEVELS,
    final_metric,
    last_snapshots,
    metric_families,
    metric_quantiles,
    summarize,
    summary_tables,
)
from zoo.storage.schema import ZooSpec
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import Zoo


@pytest.fixture
def ragged_zoo(tmp_path):
    """Two imported runs, of three snapshots and of one, without metrics."""
    for run, steps in {"a": (0, 10, 100), "b": (50,)}.items():
        (tmp_path / "in" / run).mkdir(parents=True)
        for step in steps:
            save_file({"w": torch.full((2,), float(step))}, tmp_path / f"in/{run}/{step}.safetensors")
    return import_checkpoints(tmp_path / "in", tmp_path / "zoo")


def test_counts_and_sizes_are_those_of_the_zoo(small_zoo, small_zoo_path):
    summary = summarize(small_zoo)
    assert summary["statuses"] == {"empty": 0, "complete": 9, "diverged": 1, "imported": 0, "stopped": 0}
    assert sum(summary["splits"].values()) == 9
    assert summary["bytes"] == sum(file.stat().st_size for file in small_zoo_path.rglob("*") if file.is_file())
    assert 10 * 5 * 23 * 4 < summary["bytes_of_params"] < summary["bytes"]
    assert summary["inner_steps"] == [0, 400]


def test_the_summary_is_json_without_nan(small_zoo):
    summary = summarize(small_zoo)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["final"]["sharpness"] == [None] * len(LEVELS)


def test_quantiles_are_over_the_runs_that_did_not_diverge(small_zoo):
    runs = small_zoo.usable_runs()
    assert runs.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    steps, quantiles = metric_quantiles(small_zoo, "val_loss")
    assert steps.tolist() == [0, 1, 4, 40, 400]
    np.testing.assert_allclose(quantiles, np.quantile(small_zoo.metric("val_loss")[runs], LEVELS, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(final_metric(small_zoo, "val_loss"), small_zoo.metric("val_loss")[runs, -1])


def test_families_put_validation_first():
    families = metric_families(["train_loss", "val_loss", "test_loss", "test_error", "val_return", "sharpness"])
    assert families == {
        "loss": ["val_loss", "train_loss", "test_loss"],
        "error": ["test_error"],
        "return": ["val_return"],
        "sharpness": ["sharpness"],
    }


def test_trajectories_of_different_length(ragged_zoo):
    assert last_snapshots(ragged_zoo).tolist() == [2, 0]
    summary = summarize(ragged_zoo)
    assert summary["inner_steps"] == [0, 100]
    assert summary["statuses"]["imported"] == 2


def test_a_zoo_without_any_run_yet(small_zoo, tmp_path):
    spec = ZooSpec(layout=small_zoo.layout, num_runs=3, snapshot_steps=(0, 1))
    ZooWriter.create(tmp_path / "zoo", spec)
    zoo = Zoo.open(tmp_path / "zoo")
    summary = summarize(zoo)
    assert summary["statuses"]["empty"] == 3
    assert summary["inner_steps"] is None
    assert last_snapshots(zoo).tolist() == [-1, -1, -1]
    assert summary_tables(summary)


def test_tables_fit_a_terminal_and_show_the_numbers(small_zoo):
    console = Console(file=io.StringIO(), width=80)
    for table in summary_tables(summarize(small_zoo)):
        console.print(table)
    text = console.file.getvalue()
    for part in ("10 (9 complete, 1 diverged)", "23 float32", "val_loss over the snapshots", "inner steps 0 to 400"):
        assert part in text
    assert "…" not in text
