import warnings
from functools import partial

import pytest
import torch
from torch import nn

from zoo.tasks.registry import get_task
from zoo.tasks.task import Task
from zoo.training import inner_step as inner_loop
from zoo.training.inner_step import InnerStep, should_compile
from zoo.training.muon import Muon
from zoo.training.optimizers import Adam, Sgd
from zoo.training.population import train_population
from zoo.training.schedules import Schedule

needs_compiler = pytest.mark.skipif(not inner_loop.has_compiler(), reason="no C++ compiler")


def run_steps(task, optimizer, *, compile, num_steps=3):
    step = InnerStep(task, optimizer, compile=compile)
    params = task.init_runs(range(4))
    state = optimizer.init_state(task.layout, params)
    for i in range(num_steps):
        loss = step(params, state, task.batch(torch.arange(i, i + 12), 4), inner_step=i, num_steps=num_steps)
    return params, loss


@needs_compiler
def test_compiled_steps_equal_eager_ones_and_are_compiled_once():
    task = get_task("digits", hidden=(5,))
    eager = run_steps(task, Adam(lr=0.01), compile=False)
    compiled = run_steps(task, Adam(lr=0.01), compile=True)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)
    num_programs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    rates = torch.full((4,), 0.02, dtype=torch.float64)
    for again in (task, get_task("digits", hidden=(5,))):
        run_steps(again, Adam(lr=rates), compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= num_programs + 1  # rates (N, 1) instead of ()


def test_a_process_may_compile_more_programs_than_torch_allows_by_itself(monkeypatch):
    """Beyond torch's own limit all further networks would train uncompiled, in silence."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # programs are counted before it
    num_programs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(recompile_limit=1):
        for size in (2, 3):
            run_steps(get_task("digits", hidden=(size,)), Sgd(lr=0.1), compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_programs + 2


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "optimizer"),
    [
        # By SGD where some parameters have no gradient but rounding, which Adam would blow up.
        ({"name": "digits", "architecture": "cnn", "channels": (3, 4)}, Sgd(lr=0.1, momentum=0.9, nesterov=True)),
        ({"name": "python_source", "size": 20_000, "context": 8, "width": 8, "num_blocks": 1}, Sgd(lr=0.1)),
        ({"name": "digits_subset", "hidden": (5,), "activation": "gelu"}, Muon(dtype="float32")),
    ],
    ids=["cnn", "transformer", "subset"],
)
def test_other_architectures_and_optimizers_compile(config, optimizer):
    task = get_task(**config)
    eager = run_steps(task, optimizer, compile=False)
    torch.testing.assert_close(run_steps(task, optimizer, compile=True), eager, rtol=1e-3, atol=1e-5)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_masks_augmentations_and_precision_compile(shared):
    """The numbers that are drawn must be the same to the bit: else masks would be others."""

    def build():
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        return nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 10))

    task = Task("own", get_task("digits", augment=["flip", "crop"]).dataset, build, "cross_entropy")
    options = {"num_steps": 3, "batch_size": 8, "snapshot_steps": (3,), "shared_batches": shared}
    for more in ({}, {"accumulate": 2, "precision": "bf16-mixed"}):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "cannot compile")
            (compiled,) = train_population(task, Sgd(lr=0.1), [1, 2], compile=True, **options | more)
        (eager,) = train_population(task, Sgd(lr=0.1), [1, 2], compile=False, **options | more)
        tolerance = 1e-2 if more else 1e-4
        torch.testing.assert_close(compiled.params, eager.params, rtol=tolerance, atol=tolerance)


def test_goes_on_uncompiled_with_a_warning_where_compiling_fails(monkeypatch):
    def failing_compile(function, **options):
        def raise_error(*args):
            raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler here"), None)

        return raise_error

    monkeypatch.setattr(torch, "compile", failing_compile)
    task = get_task("digits", hidden=(5,))
    with pytest.warns(UserWarning, match="runs uncompiled"):
        compiled = run_steps(task, Adam(lr=0.01), compile=True)
    assert torch.equal(compiled[0], run_steps(task, Adam(lr=0.01), compile=False)[0])


def test_compiling_is_chosen_for_long_training_where_there_is_a_compiler(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(inner_loop, "has_compiler", lambda: True)
    assert should_compile(10**7, cpu)
    assert not should_compile(10**4, cpu)
    monkeypatch.setattr(inner_loop, "has_compiler", lambda: False)
    assert not should_compile(10**7, cpu)
    assert should_compile(10**7, torch.device("cuda"))


@pytest.mark.parametrize("optimizer", [Sgd, Adam, Muon])
def test_networks_with_clocks_of_their_own_step_as_they_would_alone(optimizer):
    task = get_task("digits", hidden=(5,))
    step = InnerStep(task, optimizer(schedule=Schedule("cosine", warmup_steps=2)))
    batch = task.batch(torch.arange(12), 2)
    together, alone = task.init_runs([0, 1]), task.init_runs([0, 1])
    state = step.optimizer.init_state(task.layout, together)
    counts, lengths = (torch.tensor(values, dtype=torch.float64) for values in ([1, 5], [4, 9]))
    step(together, state, batch, inner_step=counts, num_steps=lengths)
    for network, (inner_step, num_steps) in enumerate([(1, 4), (5, 9)]):
        params = alone[network : network + 1]
        state = step.optimizer.init_state(task.layout, params)
        step(params, state, batch, inner_step=inner_step, num_steps=num_steps)
    torch.testing.assert_close(together, alone)
