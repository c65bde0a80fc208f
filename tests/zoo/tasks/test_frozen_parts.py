"""A population does what the plain module does in a plain loop; what is frozen is shared, and stays as it is."""

import copy
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from zoo.building.build import build_zoo
from zoo.building.plan import BuildPlan, _named_task
from zoo.networks.adapters import adapt
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.base import sharing_copy, with_own_memory
from zoo.tasks.looped_module import LoopedModule
from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task
from zoo.tasks.vmapped_module import VmappedModule
from zoo.training.batches import shared_indices
from zoo.training.optimizers import Adam
from zoo.training.population import train_population

DIGITS, TEXT = get_task("digits"), get_task("python_source", width=8, num_blocks=1, num_heads=2)
SEEDS = [3, 4]


def only(base, *trained):
    """A copy of which the named parameters are trained."""
    module = sharing_copy(base)
    for name, param in module.named_parameters():
        param.requires_grad_(any(part in name for part in trained))
    return module


def tasks():
    torch.manual_seed(0)
    mlp, cnn = MLP(64, (12, 8), 10), CNN(1, (4, 6), 10)
    text = ByteTransformer(TEXT.layout["head.bias"].numel, TEXT.dataset.train.inputs.shape[1], 8, 1, 2)
    lstm = nn.Sequential(Last(nn.LSTM(8, 6, batch_first=True)), nn.Linear(6, 10))
    return {
        "adapters": (DIGITS, lambda: adapt(mlp, rank=2, alpha=3)),
        "biases": (DIGITS, lambda: only(mlp, "bias")),
        "last layer": (DIGITS, lambda: only(cnn, "head")),
        "convolutions": (DIGITS, lambda: adapt(cnn, rank=2, train="norms.*")),
        "transformer": (TEXT, lambda: adapt(text, rank=2, train="norm.*")),
        "looped": (DIGITS, lambda: only(lstm, "1.")),
    }


def test_as_many_examples_run_at_once_as_fill_the_memory_of_the_base():
    base = MLP(64, (1200, 1200), 10)
    task = Task("adapters", DIGITS.dataset, lambda: adapt(base, rank=1), DIGITS.objective)
    at_once = 4 * sum(param.numel() for param in base.parameters()) // task.bytes_per_example
    assert at_once <= task.networks_at_once(1) <= 1.01 * at_once


class Last(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.squeeze(1))[0][:, -1]


@pytest.mark.filterwarnings("ignore:.*one after another")
@pytest.mark.parametrize("name", tasks())
def test_a_population_trains_as_the_plain_module_does(name):
    whole, build = tasks()[name]
    task = Task(name, whole.dataset, build, whole.objective)
    assert isinstance(task.backend, LoopedModule if name == "looped" else VmappedModule)
    frozen = {n for n, param in build().named_parameters() if not param.requires_grad}
    assert {slot.name for slot in task.layout.base} == frozen
    assert task.layout.num_params == sum(v.numel() for n, v in build().state_dict().items() if n not in frozen)
    before = task.base_hash
    *_, last = train_population(task, Adam(lr=0.01), SEEDS, num_steps=4, batch_size=16, data_seed=5)
    for seed, params in zip(SEEDS, last.params, strict=True):
        torch.manual_seed(seed)
        model = with_own_memory(task.make_model().train())
        optimizer = torch.optim.Adam((param for param in model.parameters() if param.requires_grad), 0.01)
        for _, indices in zip(range(4), shared_indices(5, len(task.dataset.train), 16, task.device), strict=False):
            batch = task.batch(indices, 1)
            outputs = model(batch.inputs)
            loss = F.cross_entropy(outputs.flatten(0, -2), batch.targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(params, task.layout.flatten(model), rtol=1e-3, atol=1e-5)
    assert task.base_hash == before == Task(name, whole.dataset, build, whole.objective).base_hash


def test_symmetries_of_frozen_units_are_gone_and_those_of_adapters_there():
    mlp = MLP(64, (12, 8), 10)
    whole = Task("a", DIGITS.dataset, lambda: only(mlp, "layers"), DIGITS.objective)
    last = Task("b", DIGITS.dataset, lambda: only(mlp, "layers.2"), DIGITS.objective)
    both = Task("c", DIGITS.dataset, lambda: adapt(mlp, rank=2), DIGITS.objective)
    assert [group.kind for group in whole.layout.groups] == ["permutation", "permutation"]
    assert last.layout.groups == ()
    assert [group.kind for group in both.layout.groups] == ["linear"] * 3


class Inner(nn.Module):
    """Names like those of a low-rank adapter, and a rectifier between the factors."""

    def __init__(self):
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(3, 64)), nn.Parameter(torch.randn(10, 3))

    def forward(self, x):
        return F.relu(x.flatten(1) @ self.lora_A.T) @ self.lora_B.T


def test_a_symmetry_that_names_claim_is_tried():
    assert Task("inner", DIGITS.dataset, Inner, DIGITS.objective).layout.groups == ()


def test_what_is_frozen_is_not_drawn_anew():
    mlp = MLP(64, (12,), 10)
    with pytest.raises(ValueError, match="'mup' draws all parameters anew, but some are frozen"):
        Task("a", DIGITS.dataset, lambda: adapt(mlp), OBJECTIVES["cross_entropy"], parametrization="mup")


class TestOption:
    @pytest.fixture
    def base(self, tmp_path):
        torch.manual_seed(1)
        save_file(MLP(64, (12,), 10).state_dict(), tmp_path / "base.safetensors")
        return tmp_path / "base.safetensors"

    def test_adapters_are_an_option_of_named_tasks(self, base):
        task = get_task("digits", hidden=[12], adapter={"base": base, "rank": 2, "alpha": 4, "targets": ["layers.0"]})
        assert [slot.name for slot in task.layout] == ["layers.0.lora_A", "layers.0.lora_B"]
        again = get_task(**task.config)
        assert (again.layout, again.base_hash) == (task.layout, task.base_hash)
        held = get_task(**{**task.config, "adapter": {**task.config["adapter"], "base": task.base}})
        assert held.base_hash == task.base_hash
        assert task.config["adapter"] == {"base": str(base), "rank": 2, "alpha": 4, "targets": ["layers.0"]}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"base": None}, "adapter takes a base and"),
            ({"size": 3}, "adapter takes a base and"),
            ({"base": "nowhere.safetensors"}, "cannot read the base of the adapters, nowhere.safetensors"),
            ({"base": {"layers.0.weight": torch.zeros(12, 64)}}, "missing 'layers.0.bias'"),
            ({"rank": 0}, "rank must be a positive integer"),
        ],
    )
    def test_what_does_not_fit_is_told_in_a_line(self, base, change, message):
        with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
            get_task("digits", hidden=[12], adapter={"base": base, "rank": 2} | change)

    def test_other_processes_get_the_same_base_or_say_why_not(self, base):
        task = get_task("digits", hidden=[12], adapter={"base": base, "rank": 2})
        sent = pickle.dumps(BuildPlan(task=task, num_runs=1, num_steps=1))
        assert pickle.loads(sent).task.base_hash == task.base_hash
        _named_task.cache_clear()
        save_file({name: value + 1 for name, value in load_file(base).items()}, base)
        with pytest.raises(ValueError, match="the data or the base of task 'digits' have changed"):
            pickle.loads(sent)
        held = get_task("digits", hidden=[12], adapter={"base": task.base, "rank": 2})
        with pytest.raises(ValueError, match="is in memory; for other processes give a file or a zoo"):
            pickle.dumps(BuildPlan(task=held, num_runs=1, num_steps=1))

    @pytest.mark.parametrize("name", ["warped_images", "label_subsets"])
    def test_members_of_families_have_adapters(self, name, tmp_path):
        options = {"name": name, "base": "digits", "hidden": [4]}
        build_zoo(tmp_path / "base", get_task(**options), num_runs=1, num_steps=1, num_snapshots=2)
        task = get_task(**options, adapter={"base": tmp_path / "base", "rank": 2}, augment=["noise"])
        zoo = build_zoo(tmp_path / "zoo", task, num_runs=3, num_steps=2, num_snapshots=2, block_size=2)
        assert zoo.verify() == []
        alone = build_zoo(tmp_path / "alone", task, num_runs=3, num_steps=2, num_snapshots=2, block_size=3)
        np.testing.assert_allclose(zoo.params[:], alone.params[:], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*one after another")
@pytest.mark.parametrize("name", ["last layer", "looped"])
def test_the_base_is_that_of_the_networks_whatever_becomes_of_the_original(name):
    """Here each module is built with a copy of its own, of a network that is trained on after the task was made."""
    whole, build = tasks()[name]
    original = build()
    task = Task(name, whole.dataset, lambda: copy.deepcopy(original), whole.objective)
    frozen = {n: param.detach().clone() for n, param in original.named_parameters() if not param.requires_grad}
    params, inputs = task.init_runs([0]), whole.dataset.val.inputs[:4]
    outputs = task.predict(params, inputs)
    with torch.no_grad():
        for param in original.parameters():
            param.add_(1)
    assert torch.equal(task.predict(params, inputs), outputs)
    assert task.base.keys() == frozen.keys()
    assert all(torch.equal(task.base[name], value) for name, value in frozen.items())
