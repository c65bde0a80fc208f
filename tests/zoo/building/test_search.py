"""Hyperparameters that Optuna proposes, and runs that it stops early, block by block."""

import numpy as np
import pytest
import torch

from zoo.building.build import build_zoo
from zoo.building.executors import LocalProcesses
from zoo.inspection import summarize
from zoo.storage.schema import RunStatus
from zoo.tasks.registry import get_task
from zoo.training.gradients import Gradients
from zoo.training.inner_step import InnerStep
from zoo.training.optimizers import Adam
from zoo.training.population import Remaining, train_population

pytest.importorskip("optuna")
SETTINGS = {
    "num_runs": 24,
    "num_steps": 27,
    "block_size": 8,
    "snapshot_steps": (0, 3, 9, 27),
    "optimizer": {"name": "adam", "lr": {"log_uniform": [1e-5, 1.0]}, "beta1": {"choice": [0.5, 0.9]}},
    "evaluated_splits": ("val",),
    "search": {},
}


def task():
    return get_task("digits", hidden=[4])


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return build_zoo(tmp_path_factory.mktemp("search") / "zoo", task(), **SETTINGS)


def test_bad_runs_are_stopped_early_kept_and_labelled(zoo):
    stopped = zoo.status == RunStatus.STOPPED
    assert zoo.verify() == []
    assert 4 < stopped.sum() < 24
    is_there = zoo.inner_step[:] >= 0
    assert (is_there[stopped].sum(1) < 4).all()
    assert is_there[~stopped].all()
    assert np.array_equal(np.isfinite(zoo.metric("val_loss")), is_there)
    assert set(zoo.usable_runs()) == set(range(24))
    at_first = zoo.metric("val_loss")[:, 1]
    assert np.median(at_first[stopped]) > np.median(at_first[~stopped])
    run = int(np.flatnonzero(stopped)[0])
    last = int(is_there[run].sum()) - 1
    task().make_model().load_state_dict(zoo.state_dict(run, last))
    assert zoo.attributes["extra"]["training"]["search"] == {}
    assert summarize(zoo)["statuses"]["stopped"] == stopped.sum()


def test_later_blocks_are_better_proposals(zoo):
    rates, losses = zoo.runs["lr"], np.nanmin(zoo.metric("val_loss"), 1)
    best = np.log(rates[np.argmin(losses)])
    assert abs(np.log(rates[16:]) - best).mean() < abs(np.log(rates[:8]) - best).mean()
    assert set(zoo.runs["beta1"]) <= {0.5, 0.9}


def test_a_zoo_that_was_interrupted_or_damaged_repeats(zoo, tmp_path):
    part = build_zoo(tmp_path / "zoo", task(), **SETTINGS | {"num_runs": 8})
    assert np.array_equal(part.runs["lr"], zoo.runs["lr"][:8])
    again = build_zoo(tmp_path / "zoo", task(), **SETTINGS)
    assert np.array_equal(again.runs["lr"], zoo.runs["lr"])
    assert np.array_equal(again.inner_step[:], zoo.inner_step[:])
    pairs = np.argwhere(zoo.inner_step[:] >= 0)
    assert np.array_equal(again.read(pairs), zoo.read(pairs))


def test_what_goes_on_is_as_if_nothing_else_had_been_there():
    options = {"num_steps": 12, "batch_size": 8, "snapshot_steps": (0, 5, 12), "shared_batches": False}
    rates = torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64)
    alone = list(train_population(task(), Adam(lr=rates[[0, 2]]), [1, 3], **options))
    training = train_population(task(), Adam(lr=rates), [1, 2, 3], **options)
    next(training), next(training)
    step = InnerStep(Gradients(task(), batch_size=8), Adam(lr=rates[[0, 2]]))
    rest = training.send(Remaining(torch.tensor([0, 2]), task(), step))
    assert rest.inner_step == 12
    torch.testing.assert_close(rest.params, alone[-1].params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"name": "adam", "lr": 0.01}}, "search needs a range among the optimizer's options"),
        ({"search": {"metric": "test_loss"}}, r"search.metric must be one of \['val_loss', 'val_error'\]"),
        ({"search": {"metrics": "val_loss"}}, r"search must map some of \['metric', 'sampler'.*got {'metrics'"),
        ({"search": "tpe"}, "search must map some of.*got 'tpe'"),
        ({"search": {"sampler": "grid"}}, "sampler must be one of"),
        ({"search": {"reduction_factor": 1}}, "reduction_factor must be"),
        ({"execution": "loop"}, "runs that train together"),
        ({"executor": LocalProcesses()}, "one block after the other"),
    ],
)
def test_what_cannot_be_searched(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_zoo(tmp_path / "zoo", task(), **SETTINGS | changes)
    assert not (tmp_path / "zoo").exists()


def test_without_optuna_a_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'weightfoundry\[search\]'"):
        build_zoo(tmp_path / "zoo", task(), **SETTINGS)


def test_a_search_that_has_nothing_to_learn_from_says_so(tmp_path):
    with pytest.warns(UserWarning, match="all 4 runs are in one; give a block_size"):
        build_zoo(tmp_path / "zoo", task(), **SETTINGS | {"num_runs": 4, "num_steps": 9, "snapshot_steps": (0, 9)})


def test_samplers_and_pruners_by_name(tmp_path):
    zoo = build_zoo(
        tmp_path / "zoo", task(), **SETTINGS | {"num_runs": 8, "search": {"sampler": "random", "pruner": "none"}}
    )
    assert (zoo.status == RunStatus.COMPLETE).all()
