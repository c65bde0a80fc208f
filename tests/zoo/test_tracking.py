"""Curves of a build and of a meta-training, as each tracker keeps them."""

import csv
import importlib.util
import sqlite3
import sys

import numpy as np
import pytest

from zoo.building.build import build_zoo
from zoo.tasks.registry import get_task
from zoo.tracking import build_curves, make_tracker

SETTINGS = {"num_runs": 6, "num_steps": 8, "block_size": 3}


@pytest.fixture(scope="module")
def task():
    return get_task("digits", hidden=(4,))


def build_with(tracker, task, folder):
    tracker.log_hyperparams({"task": {"name": "digits"}, **SETTINGS})
    zoo = build_zoo(folder / "zoo", task, progress=build_curves(tracker), **SETTINGS)
    tracker.finalize("success")
    last = zoo.metric("val_loss")[:, -1]
    return [np.median(last[:3]), np.median(last[3:])]


def test_csv_has_a_row_for_each_block(tmp_path, task):
    expected = build_with(make_tracker("csv", tmp_path), task, tmp_path)
    with open(tmp_path / "log/version_0/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2]
    np.testing.assert_allclose([float(row["val_loss"]) for row in rows], expected, rtol=1e-6)
    assert [float(row["diverged"]) for row in rows] == [0, 0]


def test_tensorboard_has_them_too(tmp_path, task):
    pytest.importorskip("tensorboard", reason="needs the extra trackers")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    expected = build_with(make_tracker("tensorboard", tmp_path), task, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard/version_0")).Reload().Scalars("val_loss")
    assert [event.step for event in events] == [1, 2]
    np.testing.assert_allclose([event.value for event in events], expected, rtol=1e-6)


def test_trackio_keeps_them_on_this_machine(tmp_path, task, monkeypatch):
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("needs the extra trackers")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it reads the folder when it is imported
    monkeypatch.delitem(sys.modules, "zoo.trackio_logger", raising=False)
    expected = build_with(make_tracker("trackio", tmp_path, run="a-zoo"), task, tmp_path)
    (database,) = (tmp_path / "trackio").glob("weightfoundry*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, json_extract(metrics, '$.val_loss') from metrics").fetchall()
    assert [row[:2] for row in rows] == [("a-zoo", 1), ("a-zoo", 2)]
    np.testing.assert_allclose([row[2] for row in rows], expected, rtol=1e-6)


def test_mlflow_keeps_them_in_a_database_of_the_folder(tmp_path, task, monkeypatch):
    pytest.importorskip("mlflow", reason="needs mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    expected = build_with(make_tracker("mlflow", tmp_path), task, tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        rows = connection.execute("select step, value from metrics where key = 'val_loss' order by step").fetchall()
    assert [step for step, _ in rows] == [1, 2]
    np.testing.assert_allclose([value for _, value in rows], expected, rtol=1e-6)


def test_what_is_unknown_or_not_installed_is_said_in_words(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"logger must be one of csv, .*trackio, got 'tensorbord'"):
        make_tracker("tensorbord", tmp_path)
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.delitem(sys.modules, "zoo.trackio_logger", raising=False)
    with pytest.raises(ImportError, match=r"logger=trackio .*pip install 'weightfoundry\[trackers\]'"):
        make_tracker("trackio", tmp_path)
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(ImportError, match=r"logger=wandb .*pip install 'weightfoundry\[trackers\]' wandb"):
            make_tracker("wandb", tmp_path)
