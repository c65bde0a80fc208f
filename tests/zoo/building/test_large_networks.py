"""Large networks train one after another, and a run that was killed is resumed to the bit."""

import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from zoo.building import execution
from zoo.building.build import build_zoo
from zoo.building.execution import with_execution
from zoo.building.plan import EXECUTIONS, BuildPlan
from zoo.networks import layout
from zoo.networks.architectures import CNN
from zoo.settings import SettingsMismatchError
from zoo.storage.zoo import Zoo
from zoo.tasks.datasets import Split, get_dataset
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task
from zoo.training import optimizers, population
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
    "execution": "loop",
}


def task():
    return get_task("digits", hidden=[4])


def dying_build(path):
    """Builds, but dies after a number of steps."""
    taken = population._Training._take

    def take(self, row):
        taken(self, row)
        dying_build.steps += 1
        if dying_build.steps == 100:  # of 180
            os.kill(os.getpid(), signal.SIGKILL)

    dying_build.steps = 0
    population._Training._take = take
    build_zoo(path, task(), **SETTINGS)


def test_a_killed_run_is_resumed_to_the_bit_where_it_was(tmp_path, monkeypatch):
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


@pytest.mark.parametrize("options", [{"hidden": [4]}, {"architecture": "cnn", "channels": [4]}], ids=str)
def test_one_after_another_is_as_together(options, tmp_path):
    settings = SETTINGS | {"num_steps": 20, "snapshot_steps": (0, 20), "optimizer": {"name": "sgd", "lr": 0.05}}
    task = get_task("digits", **options)
    together = build_zoo(tmp_path / "together", task, **settings | {"execution": "together"})
    for name in ("loop", "loop_channels_last"):
        alone = build_zoo(tmp_path / name, task, **settings | {"execution": name})
        np.testing.assert_allclose(alone.params[:], together.params[:], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(alone.metric("val_loss"), together.metric("val_loss"), rtol=1e-3)


@pytest.fixture
def times(monkeypatch):
    """Seconds that a step seems to take, by execution; without one it would be an error to measure."""
    times = {}
    monkeypatch.setattr(execution, "_seconds_of_step", lambda plan, count: times[plan.execution])
    return times


def mid_size(channels=3, **settings):
    digits = get_dataset("digits")
    splits = {name: digits.split(name) for name in ("train", "val", "test")}
    wide = {name: Split(one.inputs.expand(-1, channels, -1, -1), one.targets) for name, one in splits.items()}
    conv = Task("conv", replace(digits, **wide), lambda: CNN(channels, (40, 48), 10), "cross_entropy")  # 19,000 numbers
    return BuildPlan(task=conv, num_runs=4, num_steps=20, **settings)


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ((1.0, 0.9, 0.9), "together"),
        ((1.0, 0.7, 0.9), "loop"),
        ((1.0, 0.7, 0.6), "loop_channels_last"),
        ((1.0, 2.0, 2.0), "together"),
    ],
)
def test_execution_is_what_is_clearly_fastest_and_said_in_a_line(measured, chosen, times, recwarn):
    times |= dict(zip(EXECUTIONS, measured, strict=True))
    assert with_execution(mid_size()).execution == chosen
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (chosen != "together")
    assert all("one after another by the plain module" in line and "\n" not in line for line in said)


def test_what_is_clear_is_not_measured(times, monkeypatch):
    assert with_execution(mid_size(execution="loop")).execution == "loop"
    times |= {"together": 1.0, "loop": 2.0}  # one channel is first and last
    assert with_execution(mid_size(channels=1)).execution == "together"
    assert with_execution(BuildPlan(task=task(), num_runs=4, num_steps=20)).execution == "together"
    monkeypatch.setattr(layout, "LARGE", 1)
    assert with_execution(BuildPlan(task=task(), num_runs=4, num_steps=20)).execution == "loop"


def test_a_step_of_each_execution_can_be_timed():
    for name in EXECUTIONS:
        assert 0 < execution._seconds_of_step(mid_size(execution=name), 3) < 60


def test_a_zoo_is_continued_as_it_was_begun(tmp_path, times):
    begun = build_zoo(tmp_path / "zoo", task(), **SETTINGS)
    assert begun.attributes["extra"]["training"]["execution"] == "loop"
    more = build_zoo(tmp_path / "zoo", task(), **SETTINGS | {"num_runs": 4, "execution": "auto"})
    assert more.num_runs == 4
    with pytest.raises(SettingsMismatchError, match="execution"):
        build_zoo(tmp_path / "zoo", task(), **SETTINGS | {"execution": "together"})
    with pytest.raises(ValueError, match="execution must be 'auto' or one of"):
        mid_size(execution="looped")


def test_a_large_network_takes_adams_steps_in_parts_with_the_same_bits(monkeypatch):
    task = get_task("digits", hidden=[40])
    whole = list(train_population(task, Adam(lr=0.01, weight_decay=0.1), [1, 2], num_steps=5, compile=False))[-1]
    monkeypatch.setattr(layout, "LARGE", 1)
    monkeypatch.setattr(optimizers, "_CACHED", 1000)
    parts = list(train_population(task, Adam(lr=0.01, weight_decay=0.1), [1, 2], num_steps=5, compile=False))[-1]
    assert torch.equal(whole.params, parts.params)


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
