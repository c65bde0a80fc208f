"""Zoos are what they are, whatever a program has set for all of torch."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from tests.ambient import AMBIENTS, default_dtype
from zoo import Task, build_zoo, get_task
from zoo.ambient import torch_defaults
from zoo.networks import low_rank
from zoo.networks.adapters import adapt
from zoo.networks.layout import ParamLayout
from zoo.operations import Networks, average, combine
from zoo.tasks.dataset import Dataset, Split
from zoo.training.optimizers import Adam

OPTIONS = {"num_runs": 2, "num_steps": 6, "num_snapshots": 2, "batch_size": 16, "evaluated_splits": ["val"]}
CNN = {"architecture": "cnn", "channels": (2,)}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """A zoo as built under torch's own defaults."""
    return build_zoo(tmp_path_factory.mktemp("zoo"), get_task("digits", **CNN), **OPTIONS)


@pytest.mark.parametrize("name", AMBIENTS)
def test_a_zoo_is_the_same(tmp_path, expected, name):
    with AMBIENTS[name]():
        task = get_task("digits", **CNN)
        built = build_zoo(tmp_path / "zoo", task, **OPTIONS)
        model = task.make_model()
    assert np.array_equal(built.params[:], expected.params[:])
    assert np.array_equal(built.metric("val_loss"), expected.metric("val_loss"))
    assert {(param.dtype, param.device.type) for param in model.parameters()} == {(torch.float32, "cpu")}


@pytest.mark.parametrize("name", AMBIENTS)
def test_networks_are_adapted_and_averaged_alike(name):
    network, networks = nn.Sequential(nn.Linear(4, 3)), torch.randn(3, 7)
    results = []
    for ambient in (nullcontext, AMBIENTS[name]):
        torch.manual_seed(0)
        with ambient():
            adapted = adapt(network, rank=2)
            results.append([*adapted.state_dict().values(), average(networks, [1.0, 2.0, 3.0]), average(networks)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["average", "exponential_average", "greedy_soup"])
@pytest.mark.parametrize("name", AMBIENTS)
def test_adapters_and_statistics_are_combined_alike(name, method):
    layout = ParamLayout.of(adapt(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), rank=2, train="0.bias"))
    params = torch.randn(3, layout.num_params, generator=torch.Generator().manual_seed(0))
    networks = Networks(layout, params, ("a", "b", "c"), (0, 1, 2), {})
    results = []
    for ambient in (nullcontext, AMBIENTS[name]):
        with ambient():
            made = combine(networks, method, evaluate=lambda some: some.square().mean(1)).params
            results.append((made, low_rank.mean(layout, params)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", AMBIENTS)
def test_an_optimizer_of_populations_makes_the_same_step(name):
    layout, rates, results = ParamLayout.of(nn.Linear(3, 2)), torch.tensor([0.1, 0.2]), []
    for ambient in (nullcontext, AMBIENTS[name]):
        params, grads = torch.ones(2, 8), torch.ones(2, 8)
        with ambient():
            optimizer = Adam(lr=rates, weight_decay=0.1)
            optimizer.update(layout, params, grads, optimizer.init_state(layout, params), inner_step=3, num_steps=9)
        results.append(params.clone())
    assert torch.equal(*results)


@pytest.mark.filterwarnings("ignore:networks are trained in float64")
def test_modules_of_ones_own_keep_the_dtype_that_they_were_made_in(tmp_path):
    with default_dtype(torch.float64):
        inputs = torch.randn(30, 4)
        splits = (Split(part, (part.sum(1) > 0).long()) for part in inputs.split(10))
        task = Task("own", Dataset("own", *splits, 2), lambda: nn.Linear(4, 2), "cross_entropy")
        before = task.make_model()
    assert {param.dtype for param in (*before.parameters(), *task.make_model().parameters())} == {torch.float64}
    assert build_zoo(tmp_path / "zoo", task, num_runs=1, num_steps=2, batch_size=5).verify() == []


def test_a_training_inside_does_not_see_weights_of_before_their_updates():
    """Autocast keeps what it has cast until the outermost one ends, though weights change."""
    weight, x = nn.Parameter(torch.ones(2, 2)), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16), torch_defaults():
        with torch.autocast("cpu", torch.bfloat16):
            before = x @ weight
        weight.data.zero_()
        with torch.autocast("cpu", torch.bfloat16):
            after = x @ weight
    assert (before[0, 0].item(), after[0, 0].item()) == (2, 0)
