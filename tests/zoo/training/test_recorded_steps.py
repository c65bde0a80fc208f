"""Recorded steps are the steps themselves: with a CUDA graph where there is one, else with one that is pretended."""

import gc
import weakref
from unittest.mock import patch

import pytest
import torch

from tests.devices import other_device
from tests.pretended_graph import pretended_graphs
from zoo.building.hyperparameters import OPTIMIZERS
from zoo.tasks.registry import get_task
from zoo.training import population
from zoo.training.optimizers import Adam, Sgd
from zoo.training.population import train_population
from zoo.training.recorded_steps import MAX_ROWS, RecordedSteps, recorder_for
from zoo.training.schedules import Schedule

CPU = torch.device("cpu")
SEEDS = [1, 2, 3]
NETWORKS = {
    "mlp": {"name": "digits", "hidden": (5,)},
    "cnn": {"name": "digits", "architecture": "cnn", "channels": (3, 4)},
    "subset": {"name": "digits_subset", "hidden": (4,), "masks": [3, 1000]},
    "augmented": {
        "name": "digits",
        "hidden": (4,),
        "augment": ["flip", "crop", "affine", "noise"],
        "objective": {"name": "cross_entropy", "label_smoothing": 0.1, "weight": [1.0, 2.0] * 5},
    },
    "transformer": {"name": "python_source", "size": 3_000, "context": 8, "width": 8, "num_blocks": 1, "num_heads": 2},
}
OPTIONS = {"num_steps": 3 * MAX_ROWS + 5, "batch_size": 8, "snapshot_steps": (0, 1, 7, 3 * MAX_ROWS + 5)}


def trained(task, optimizer, **options):
    return list(train_population(task, optimizer, SEEDS, **OPTIONS | options))


def test_each_step_has_its_row_whatever_the_number_of_steps_at_once():
    values, factors = torch.randn(2 * MAX_ROWS, 2), torch.randn(2 * MAX_ROWS)
    total, start = torch.zeros(2), 0

    def step(row):
        total.add_(row["values"] * row["factor"])

    with pretended_graphs() as graphs:
        steps = RecordedSteps(CPU)
        for count in (1, 3, MAX_ROWS, 7):
            steps.run(step, {"values": values[start : start + count], "factor": factors[start : start + count]})
            start += count
    torch.testing.assert_close(total, (values[:start] * factors[:start, None]).sum(0), rtol=1e-5, atol=1e-5)
    assert (graphs.num_warm_ups, graphs.num_recorded, graphs.num_replayed) == (2, 1, start - 2)


def test_what_cannot_be_recorded_is_done_each_time_and_says_why():
    total = torch.zeros(1)

    def step(row):
        total.add_(float(row["values"]))

    with pretended_graphs() as graphs, pytest.warns(UserWarning, match=r"cannot record .*: aten._local_scalar_dense"):
        RecordedSteps(CPU).run(step, {"values": torch.arange(9.0)})
    assert total == 36
    assert (graphs.num_recorded, graphs.num_replayed) == (0, 0)


def test_nothing_is_recorded_on_a_cpu_or_where_python_decides():
    assert recorder_for(CPU) is None
    with pretended_graphs() as graphs:
        RecordedSteps(CPU, can_record=False).run(lambda row: None, {"values": torch.arange(9.0)})
    assert graphs.num_warm_ups == 0


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_recorded_populations_are_those_of_python_to_the_bit(name, optimizer):
    task = get_task(**NETWORKS[name])
    task = task.for_runs([0, 1, 0]) if name == "subset" else task
    optimizer = OPTIMIZERS[optimizer](schedule=Schedule("cosine", warmup_steps=4))
    options = {} if name == "mlp" else {"num_steps": 8, "snapshot_steps": (0, 1, 8)}
    expected = trained(task, optimizer, **options)
    with pretended_graphs() as graphs:
        found = trained(task, optimizer, **options)
    assert graphs.num_replayed == expected[-1].inner_step - 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.params, other.params)
        assert torch.equal(one.alive, other.alive)


def test_memory_is_free_when_a_training_is_left():
    task, start = get_task(**NETWORKS["mlp"]), []
    with (
        pretended_graphs(),
        patch.object(population, "_checked", lambda *args: start.append(args[1].clone()) or start[0]),
    ):
        snapshots = train_population(task, Adam(), SEEDS, init_params=task.init_runs(SEEDS), **OPTIONS)
        next(snapshots)
        next(snapshots)
    params = weakref.ref(start.pop())
    gc.disable()
    try:
        del snapshots
        assert params() is None
    finally:
        gc.enable()


@pytest.mark.filterwarnings("error:cannot record")
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_nothing_of_a_step_comes_from_the_host(name):
    with other_device("sim") as device, pretended_graphs() as graphs:
        task = get_task(**NETWORKS[name]).to(device)
        optimizer = Adam(lr=torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
        trained(task, optimizer, num_steps=4, snapshot_steps=(4,), shared_batches=False)
    assert graphs.num_recorded == 1


@pytest.mark.parametrize("shared_batches", [True, False])
def test_rates_of_their_own_own_minibatches_and_divergence_are_recorded(shared_batches):
    task = get_task(**NETWORKS["mlp"])
    optimizer = Sgd(lr=torch.tensor([0.1, 1e20, 0.01], dtype=torch.float64), momentum=0.9)
    expected = trained(task, optimizer, shared_batches=shared_batches)
    with pretended_graphs() as graphs:
        found = trained(task, optimizer, shared_batches=shared_batches)
    assert graphs.num_recorded == 1
    assert found[-1].alive.tolist() == [True, False, True]
    assert all(torch.equal(one.params, other.params) for one, other in zip(found, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("error:cannot record")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_graph_trains_as_its_steps_do_and_never_waits(name, compile, monkeypatch):
    task = get_task(**NETWORKS[name]).to("cuda")
    task = task.for_runs([0, 1, 0]) if name == "subset" else task
    optimizer = Adam(lr=0.001, schedule=Schedule("cosine", warmup_steps=4))
    options = {"num_steps": 40, "snapshot_steps": (4, 40), "compile": compile}
    with monkeypatch.context() as patched:
        patched.setattr("zoo.training.recorded_steps.recorder_for", lambda device: None)
        *_, expected = trained(task, optimizer, **options)
    snapshots = train_population(task, optimizer, SEEDS, **OPTIONS | options)
    next(snapshots)
    torch.cuda.set_sync_debug_mode("error")
    try:
        last = next(snapshots)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert last.alive.all()
    torch.testing.assert_close(last.params, expected.params, rtol=1e-3, atol=1e-4)
