"""Large networks train one after another, and a run that was killed is resumed to the bit."""

import multiprocessing
import os
import signal

import numpy as np
import pytest

from zoo.building import build
from zoo.building.build import build_zoo
from zoo.building.plan import BuildPlan
from zoo.storage.zoo import Zoo
from zoo.tasks.registry import get_task
from zoo.training import population
from zoo.training.optimizers import Adam
from zoo.training.population import last_epoch_steps, train_population

SETTINGS = {
    "num_runs": 3,
    "num_steps": 60,
    "block_size": 3,
    "snapshot_steps": (0, 20, 50, 60),
    "optimizer": {"name": "adam", "lr": {"log_uniform": [0.001, 0.1]}, "schedule": "cosine"},
    "evaluated_splits": ("val",),
    "shared_batches": False,
}


@pytest.fixture
def large(monkeypatch):
    """All networks are."""
    monkeypatch.setattr(build, "LARGE", 1)


def task():
    return get_task("digits", hidden=[4])


def dying_build(path):
    """Builds, but dies after a number of steps."""
    build.LARGE = 1
    taken = population._Training._take

    def take(self, row):
        taken(self, row)
        dying_build.steps += 1
        if dying_build.steps == 100:  # of 180
            os.kill(os.getpid(), signal.SIGKILL)

    dying_build.steps = 0
    population._Training._take = take
    build_zoo(path, task(), **SETTINGS)


def test_a_killed_run_is_resumed_to_the_bit_where_it_was(tmp_path, large, monkeypatch):
    build_zoo(tmp_path / "whole", task(), **SETTINGS)
    process = multiprocessing.get_context("spawn").Process(target=dying_build, args=(tmp_path / "killed",))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "killed/.unfinished/0-3").glob("*.pt")) == ["0.pt", "1.pt"]
    steps = []
    taken = population._Training._take
    monkeypatch.setattr(population._Training, "_take", lambda self, row: (steps.append(1), taken(self, row)))
    build_zoo(tmp_path / "killed", task(), **SETTINGS)
    assert 80 <= len(steps) <= 100  # the first run and most of the second were done
    whole, killed = (Zoo.open(tmp_path / name) for name in ("whole", "killed"))
    assert np.array_equal(whole.params[:], killed.params[:])
    assert np.array_equal(whole.metric("val_loss"), killed.metric("val_loss"))
    assert np.array_equal(whole.status, killed.status)
    assert killed.verify() == []
    assert not list((tmp_path / "killed/.unfinished").iterdir())


def test_one_after_another_is_as_together(tmp_path, monkeypatch):
    together = build_zoo(tmp_path / "together", task(), **SETTINGS)
    monkeypatch.setattr(build, "LARGE", 1)
    alone = build_zoo(tmp_path / "alone", task(), **SETTINGS)
    np.testing.assert_allclose(alone.params[:], together.params[:], rtol=1e-3, atol=1e-5)
    assert alone.metric("val_loss").shape == (3, 4)


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_population_continues_after_the_last_snapshot_that_was_taken(tmp_path, stop):
    options = {"num_steps": 30, "batch_size": 8, "snapshot_steps": (0, 11, 30), "checkpoint_every": 4}
    expected = list(train_population(task(), Adam(lr=0.01), [1, 2], **options))
    begun = train_population(task(), Adam(lr=0.01), [1, 2], checkpoint=tmp_path / "state.pt", **options)
    for _ in range(stop + 1):
        next(begun)
    del begun  # the last one may not have been stored
    rest = list(train_population(task(), Adam(lr=0.01), [1, 2], checkpoint=tmp_path / "state.pt", **options))
    assert len(rest) == 3 - stop
    for one, other in zip(rest, expected[stop:], strict=True):
        assert np.array_equal(one.params, other.params)
        assert np.array_equal(one.alive, other.alive)


@pytest.mark.parametrize("other", [{"seeds": [1]}, {"seeds": [1, 3]}, {"num_steps": 31}, {"data_seed": 1}])
def test_a_checkpoint_of_another_training_is_refused(tmp_path, other):
    options = {"seeds": [1, 2], "num_steps": 30, "batch_size": 8, "snapshot_steps": (0, 11, 30)}
    options["checkpoint"] = tmp_path / "state.pt"
    list(train_population(task(), Adam(lr=0.01), **options))
    (name,) = other
    with pytest.raises(ValueError, match=rf"state\.pt was begun with other settings \({name}"):
        next(train_population(task(), Adam(lr=0.01), **options | other))


def test_snapshots_of_the_last_epoch():
    assert last_epoch_steps(100, 10, 10) == tuple(range(91, 101))
    assert last_epoch_steps(100, 50, 5) == (60, 70, 80, 90, 100)
    plan = BuildPlan(task=task(), num_runs=1, num_steps=40, batch_size=64, snapshot_steps="last_epoch(4)")
    assert plan.spec().snapshot_steps == (26, 31, 35, 40)
    for wrong, message in (("last_epoch(20)", "last epoch has 19 steps"), ("last(3)", "such as 'last_epoch")):
        with pytest.raises(ValueError, match=message):
            BuildPlan(task=task(), num_runs=1, num_steps=40, batch_size=64, snapshot_steps=wrong)
