"""What zoo computes on another device is what it computes on the CPU, and no training step waits for the device."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from tests.devices import never_waiting
from tests.pretended_device import pretended_device
from zoo.building.build import build_zoo
from zoo.building.hyperparameters import OPTIMIZERS
from zoo.devices import resolve_device
from zoo.networks import low_rank, metrics
from zoo.networks.alignment import align
from zoo.storage.zoo import Zoo
from zoo.tasks.datasets import Dataset, Split
from zoo.tasks.looped_module import LoopedModule
from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task
from zoo.tasks.vmapped_module import VmappedModule
from zoo.training.batches import shared_indices
from zoo.training.inner_step import InnerStep
from zoo.training.optimizers import Adam
from zoo.training.population import train_population
from zoo.training.schedules import Schedule

SEEDS = [3, 2**61 + 1]
BUDGET = 2**24  # bytes, because chunks of an evaluation are larger on a GPU by default, and so is their rounding
NAMED = {
    "digits": {},
    "digits_subset": {"masks": [3, 1000]},
    "mnist5k": {"hidden": (4,)},
    "mnist1d": {"num_examples": 200},
    "python_source": {"size": 3_000, "context": 16, "width": 8, "num_blocks": 1, "num_heads": 2},
    "cartpole": {"horizon": 8},
    "arrays": {},
}


def assert_same(there, here):
    """Equal to the bit where the device computes on the CPU."""
    exact = {"rtol": 0, "atol": 0} if there.device.type == "sim" else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(there.cpu(), here, equal_nan=True, **exact)


@cache
def named_task(name, **options):
    return get_task(name, **NAMED[name] | options)


def trained(task, optimizer, **options):
    options = {"num_steps": 2, "batch_size": 8, "snapshot_steps": (0, 2)} | options
    return list(train_population(task, optimizer, SEEDS, **options))


def assert_trains_as_on_the_cpu(task, there, optimizer, **options):
    for here, elsewhere in zip(trained(task, optimizer, **options), trained(there, optimizer, **options), strict=True):
        assert elsewhere.params.device == there.device
        assert_same(elsewhere.params, here.params)
        assert_same(elsewhere.alive, here.alive)
    metrics = there.evaluate(elsewhere.params, "val", BUDGET)
    for name, values in task.evaluate(here.params, "val", BUDGET).items():
        assert_same(metrics[name], values)


@pytest.fixture(scope="module")
def array_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.npz"
    x = np.random.RandomState(0).randn(100, 3)
    np.savez(path, x=x, y=x[:, :2] ** 2)
    return str(path)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_tasks_train_as_on_the_cpu(name, optimizer, device, array_file):
    task = named_task(name, path=array_file) if name == "arrays" else named_task(name)
    assert_trains_as_on_the_cpu(task, task.to(device), OPTIMIZERS[optimizer]())


def test_batches_hyperparameters_and_scales_of_each_run(device):
    task = get_task("digits", architecture="cnn", channels=(4, 4))
    optimizer = Adam(lr=torch.tensor([1e-3, 1e-2], dtype=torch.float64), schedule=Schedule("cosine", warmup_steps=1))
    options = {"shared_batches": False, "init_scales": torch.tensor([0.5, 1.0])}
    assert_trains_as_on_the_cpu(task, task.to(device), optimizer, **options)


def test_runs_that_diverge_do_so_there(device):
    task = get_task("digits")
    last = trained(task.to(device), Adam(lr=torch.tensor([1e-3, 1e30])))[-1]
    assert last.alive.tolist() == [True, False]


class StepByStep(nn.Module):
    """Fills a tensor in place, which torch.func cannot run."""

    def __init__(self):
        super().__init__()
        self.step, self.head = nn.Linear(8, 4), nn.Linear(32, 10)

    def forward(self, x):
        out = torch.zeros(x.shape[0], 8, 4, device=x.device)
        for t in range(8):
            out[:, t] = torch.tanh(self.step(x[:, 0, t]))
        return self.head(out.flatten(1))


def normalised():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 10))


def dropped():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.AlphaDropout(0.2), nn.Linear(8, 10))


@pytest.mark.filterwarnings("ignore:task 'own' runs its networks one after another")
@pytest.mark.parametrize(
    ("build", "kind"), [(normalised, VmappedModule), (dropped, VmappedModule), (StepByStep, LoopedModule)]
)
def test_own_modules_train_as_on_the_cpu_moved_there_or_made_there(build, kind, device):
    data, objective = get_task("digits").dataset, OBJECTIVES["cross_entropy"]
    task = Task("own", data, build, objective)
    made_there = Task("own", data.to(device), build, objective)
    for there in (task.to(device), made_there):
        assert type(there.backend) is kind
        assert there.flaw is None
        assert there.description == task.description
        assert_trains_as_on_the_cpu(task, there, Adam(lr=0.01))
        assert_trains_as_on_the_cpu(task, there, Adam(lr=0.01), shared_batches=False)


def test_label_subsets_stay_with_their_runs(device):
    task = named_task("digits_subset").for_runs([1, 0])
    assert_trains_as_on_the_cpu(task, task.to(device), Adam(lr=0.01))


@pytest.mark.parametrize("shared", [True, False])
def test_augmented_examples_and_weighted_labels_are_those_of_the_cpu(shared, device):
    augment = ["flip", "crop", {"name": "affine", "degrees": 20, "translate": 0.1, "scale": [0.9, 1.2]}]
    objective = {"name": "cross_entropy", "label_smoothing": 0.1, "weight": [1.0, 2.0] * 5, "ignore_index": 3}
    task = get_task("digits", hidden=(4,), augment=augment, objective=objective)
    assert_trains_as_on_the_cpu(task, task.to(device), Adam(lr=0.01), shared_batches=shared, accumulate=2)


def test_padding_is_found_there(device):
    def tokens(seed):
        inputs = torch.randint(0, 12, (16, 6), generator=torch.Generator().manual_seed(seed))
        return Split(inputs, inputs[:, 0] % 2)

    def build():
        return nn.Sequential(nn.Embedding(12, 5, padding_idx=0), nn.Flatten(), nn.Linear(30, 2))

    data = Dataset("tokens", tokens(0), tokens(1), tokens(2), 2, "tokens-1")
    task = Task("own", data, build, OBJECTIVES["cross_entropy"])
    assert_trains_as_on_the_cpu(task, task.to(device), Adam(lr=0.01), shared_batches=False)


def test_a_zoo_that_is_built_there_holds_the_numbers_of_the_cpu(device, tmp_path):
    task = get_task("digits", hidden=(4,))
    plan = {"num_runs": 4, "num_steps": 4, "block_size": 2, "num_snapshots": 3, "evaluated_splits": ("val",)}
    build_zoo(tmp_path / "here", task, **plan)
    build_zoo(tmp_path / "there", task.to(device), **plan)
    here, there = (Zoo.open(tmp_path / name) for name in ("here", "there"))
    assert there.verify() == []
    assert_same(torch.tensor(there.params[:]).to(device), torch.tensor(here.params[:]))
    np.testing.assert_allclose(there.metric("val_loss"), here.metric("val_loss"), rtol=1e-4)
    build_zoo(tmp_path / "here", task.to(device), **plan | {"num_runs": 6})  # resumed on another device
    assert Zoo.open(tmp_path / "here").verify() == []


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize(
    ("name", "architecture"),
    [("digits", "mlp"), ("digits", "cnn"), ("digits_subset", "mlp"), ("python_source", "transformer")],
)
def test_steps_of_a_population_never_wait_for_the_device(name, architecture, optimizer, device):
    task = named_task(name, architecture=architecture).to(device)
    snapshots = train_population(task, OPTIMIZERS[optimizer](), SEEDS, num_steps=9, batch_size=8, snapshot_steps=(1, 9))
    next(snapshots)
    with never_waiting():
        last = next(snapshots)
    assert last.alive.all()


@pytest.mark.parametrize("shared", [True, False])
def test_random_steps_never_wait_for_the_device(shared, device):
    data = get_task("digits", augment=["flip", "crop", "affine", "noise"]).dataset
    objective = {"name": "cross_entropy", "label_smoothing": 0.1, "weight": [1.0, 2.0] * 5, "ignore_index": 3}
    task = Task("own", data, dropped, objective).to(device)
    options = {"num_steps": 4, "batch_size": 8, "snapshot_steps": (1, 4), "shared_batches": shared, "accumulate": 2}
    snapshots = train_population(task, Adam(lr=0.01), SEEDS, **options)
    next(snapshots)
    with never_waiting():
        last = next(snapshots)
    assert last.alive.all()


def test_one_step_never_waits_for_the_device_whatever_differs_between_runs(device):
    task = get_task("digits").to(device)
    optimizer = Adam(lr=torch.tensor([1e-3, 1e-2]), schedule=Schedule("wsd", warmup_steps=2))
    params = task.init_runs(SEEDS)
    state, step = optimizer.init_state(task.layout, params), InnerStep(task, optimizer)
    indices = shared_indices(0, len(task.dataset.train), 8, device)
    with never_waiting():
        for inner_step in range(4):
            step(params, state, task.batch(next(indices), 2), inner_step=inner_step, num_steps=4)


def test_measures_of_networks_are_those_of_the_cpu(device):
    rng = torch.Generator().manual_seed(0)
    mlp, adapted = named_task("digits"), get_task("digits", hidden=(4,), adapter={"base": "own", "rank": 2})
    networks = [torch.randn(5, task.layout.num_params, generator=rng) for task in (mlp, adapted)]
    log_probs = torch.randn(5, 20, 3, generator=rng).log_softmax(-1)
    predictions, targets = log_probs.argmax(-1), torch.arange(20) % 3

    def measured(place):
        full, low = (params.to(place) for params in networks)
        said, wanted = predictions.to(place), targets.to(place)
        return [
            metrics.matched_distances(mlp.layout, full),
            align(mlp.layout, full[1:], full[0]).params,
            low_rank.distances(adapted.layout, low),
            low_rank.mean(adapted.layout, low),
            low_rank.align(adapted.layout, low[1:], low[0]),
            metrics.wrong_prediction_iou(said, wanted),
            metrics.loss_correlation(log_probs.exp()[..., 0].to(place)),
            metrics.log_prob_distance(log_probs.to(place)),
            *metrics.ensemble_gain(log_probs.to(place), wanted),
            metrics.r2(full[:, 0], full[:, 1]),
            torch.tensor(metrics.bootstrap_interval(full[:, 0], torch.Generator().manual_seed(0))),
        ]

    for here, there in zip(measured("cpu"), measured(device), strict=True):
        torch.testing.assert_close(
            torch.as_tensor(there).cpu().double(), torch.as_tensor(here).double(), rtol=1e-4, atol=1e-4
        )


def test_auto_is_a_device_that_computes():
    device = resolve_device("auto")
    assert torch.zeros(2, device=device).device == device
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu")])
def test_cpu_has_the_device_of_its_tensors(name):
    assert resolve_device(name) == torch.zeros(1).device


def test_index_is_that_of_tensors_on_the_device(device):
    for name in (device.type, f"{device.type}:0", device):
        assert resolve_device(name) == torch.zeros(1, device=name).device == device


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", "hpu", "cpu:1", "", 7, None])
def test_device_that_is_not_there_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=r"no device '.*' on this machine; choose one of \['cpu'.*'auto'"):
        resolve_device(name)


def test_pretended_device_has_one_card():
    with pretended_device(), pytest.raises(ValueError, match="sim:1"):
        resolve_device("sim:1")
