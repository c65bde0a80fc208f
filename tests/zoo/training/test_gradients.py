import pytest
import torch
from torch import nn

from zoo.networks.counter_rng import streams_of
from zoo.tasks.datasets import Dataset, Split, get_dataset
from zoo.tasks.registry import get_task
from zoo.tasks.task import Batch, Task
from zoo.training.gradients import Gradients
from zoo.training.optimizers import Adam
from zoo.training.population import train_population

SEEDS = [1, 2, 3]


def ignoring():
    """Two of three labels do not count, most of them in the first half of a minibatch."""
    inputs = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.where(torch.arange(40) % 20 < 12, -100, torch.arange(40) % 3)
    split = Split(inputs, targets)
    objective = {"name": "cross_entropy", "ignore_index": -100, "weight": [1.0, 3.0, 0.5]}
    return Task("own", Dataset("own", split, split, split, 3, "own"), lambda: nn.Linear(5, 3), objective)


TASKS = {
    "mlp": lambda: get_task("digits", hidden=(5,)),
    "own targets": lambda: get_task("digits_subset", hidden=(5,)),
    "ignoring": ignoring,
    "sequences": lambda: get_task("python_source", size=20_000, context=8, width=8, num_blocks=1, num_heads=2),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", TASKS)
def test_microbatches_give_the_gradient_of_the_whole(name, shared):
    task = TASKS[name]()
    params = task.init_runs(SEEDS)
    batch = task.batch(torch.arange(20) if shared else torch.arange(60).view(3, 20) % 40, 3)
    loss, grads = task.loss_and_grad(params.clone(), batch)
    for accumulate in (2, 5):
        parts = Gradients(task, accumulate=accumulate, batch_size=20)
        got_loss, got_grads = parts.loss_and_grad(params.clone(), batch)
        torch.testing.assert_close(got_loss, loss)
        torch.testing.assert_close(got_grads, grads, rtol=1e-4, atol=1e-6)


def test_a_microbatch_at_a_time_is_computed(monkeypatch):
    task, sizes = TASKS["mlp"](), []
    whole = task.backend.loss_and_grad
    backend = type("Counting", (), {"loss_and_grad": lambda _, *args: sizes.append(len(args[1])) or whole(*args)})()
    monkeypatch.setattr(task, "backend", backend)
    Gradients(task, accumulate=4, batch_size=32).loss_and_grad(task.init_runs(SEEDS), task.batch(torch.arange(32), 3))
    assert sizes == [8] * 4


def test_each_microbatch_has_masks_of_its_own():
    """On a minibatch whose halves are equal, equal masks would give equal gradients."""
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 10))  # noqa: E731
    task = Task("own", get_dataset("digits"), build, "cross_entropy")
    params, stream = task.init_runs([1]), streams_of([5])[0]
    half = task.batch(torch.arange(8), 1, stream=stream)
    twice = Batch(half.inputs.repeat(2, 1, 1, 1), half.targets.repeat(2), stream)
    both = Gradients(task, accumulate=2, batch_size=16).loss_and_grad(params.clone(), twice)[1]
    assert not torch.allclose(both, task.loss_and_grad(params.clone(), half)[1], rtol=1e-2)


def test_populations_train_in_microbatches_and_in_mixed_precision():
    task = TASKS["mlp"]()
    options = {"num_steps": 12, "batch_size": 32, "snapshot_steps": (12,)}
    (whole,), (parts,), (mixed,) = (
        train_population(task, Adam(lr=0.01), SEEDS, **options, **more)
        for more in ({}, {"accumulate": 4}, {"precision": "bf16-mixed"})
    )
    torch.testing.assert_close(parts.params, whole.params, rtol=1e-3, atol=1e-5)
    assert mixed.params.dtype is torch.float32
    assert not torch.allclose(mixed.params, whole.params, rtol=1e-3, atol=1e-5)
    losses = (task.evaluate(one.params, "val")["loss"] for one in (whole, mixed))
    torch.testing.assert_close(*losses, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 3}, "divide batch_size into equal microbatches, got 3 for a batch of 64"),
        ({"accumulate": 0}, "accumulate must be a positive integer, got 0"),
        ({"precision": "16"}, "precision must be one of"),
    ],
)
def test_what_cannot_be_divided_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train_population(TASKS["mlp"](), Adam(), SEEDS, num_steps=2, **options)
    with pytest.raises(ValueError, match="must be 1 for policies"):
        Gradients(get_task("cartpole", horizon=8), accumulate=2, batch_size=8)
