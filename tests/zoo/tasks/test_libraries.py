"""Modules of other libraries and of one's own are architectures of tasks."""

import importlib
import pickle

import pytest
import torch

from zoo.building.build import build_zoo
from zoo.building.plan import BuildPlan
from zoo.tasks.files.examples import resource_folder
from zoo.tasks.registry import get_task

SETTINGS = {"num_runs": 2, "num_steps": 3, "num_snapshots": 2, "batch_size": 8, "evaluated_splits": ("val",)}
OWN = """
from torch import nn

def make_model(width=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


def extra(name):
    """A library, or a skip that says why it cannot be used."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a torchvision of another torch raises RuntimeError
        pytest.skip(f"{name} cannot be imported: {error}")


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(OWN)
    (tmp_path / "carrier" / "weights").mkdir(parents=True)
    (tmp_path / "carrier" / "__init__.py").write_text("raise RuntimeError('nobody asked for the package to be run')")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_module_of_ones_own_is_named_by_its_factory(own_package, tmp_path):
    own = {"architecture": "own", "factory": "own_models.make_model", "model_options": {"width": 7}}
    task = get_task("digits", **own)
    assert task.layout["1.weight"].shape == (7, 64)
    zoo = build_zoo(tmp_path / "zoo", task, **SETTINGS)
    assert "own_models" not in repr(dict(zoo.task_config))  # what a zoo records makes nobody import code
    assert build_zoo(tmp_path / "zoo", get_task("digits", **own), **SETTINGS).verify() == []
    plan = pickle.loads(pickle.dumps(BuildPlan(task=task, **SETTINGS)))  # as it goes to other processes
    torch.testing.assert_close(plan.initial_params([1]), BuildPlan(task=task, **SETTINGS).initial_params([1]))


def test_adapters_train_on_the_module_as_it_is_built(own_package, tmp_path):
    adapter = {"base": "own", "rank": 2, "targets": "1", "train": "3.*"}
    task = get_task("digits", architecture="own", factory="own_models.make_model", adapter=adapter)
    torch.random.manual_seed(0)
    built = importlib.import_module("own_models").make_model()
    assert torch.equal(task.base["1.weight"], built[1].weight)
    assert torch.equal(task.make_model().state_dict()["3.weight"], built[3].weight)
    assert {slot.name for slot in task.layout} == {"1.lora_A", "1.lora_B", "3.weight", "3.bias"}


@pytest.mark.parametrize("factory", ["nothing.make_model", "own_models.nothing", "make_model"])
def test_a_factory_that_there_is_not(factory, own_package):
    with pytest.raises(ValueError, match="factory must be the full name of a function"):
        get_task("digits", architecture="own", factory=factory)


def test_folders_inside_packages_are_found_without_importing_them(own_package, tmp_path):
    assert resource_folder("carrier/weights") == tmp_path / "carrier" / "weights"
    assert resource_folder(str(tmp_path)) == tmp_path
    for missing in ("carrier/nothing", "no_such_package/weights", "/no/such/folder"):
        with pytest.raises(FileNotFoundError, match="install what brings it, or give the folder"):
            resource_folder(missing)


def test_models_of_timm(tmp_path):
    extra("timm")
    vit = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}
    task = get_task("digits", architecture="timm", model="vit_tiny_patch16_224", model_options=vit)
    assert task.layout["patch_embed.proj.weight"].shape == (12, 1, 4, 4)
    assert task.layout["head.bias"].shape == (10,)
    again = get_task(**build_zoo(tmp_path / "zoo", task, **SETTINGS).task_config)
    assert again.layout == task.layout
    for wrong, message in (("resnet1800", "no model 'resnet1800'; near it are"), ("hf-hub:a/b", "no model")):
        with pytest.raises(ValueError, match=message):
            get_task("digits", architecture="timm", model=wrong)
    with pytest.raises(ValueError, match="take images"):
        get_task("mnist1d", architecture="timm", model="resnet18")


@pytest.fixture
def bert(tmp_path):
    """A folder as `save_pretrained` writes it."""
    transformers = extra("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=128, max_position_embeddings=16, **sizes)
    with torch.random.fork_rng():
        transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_checkpoints_of_transformers(bert, tmp_path):
    for name in "ab":
        (tmp_path / "texts" / name).mkdir(parents=True)
        for i in range(9):
            (tmp_path / "texts" / name / f"{i}.txt").write_text(f"{name}{i} and again " * 12)
    data = {"name": "text_classes", "path": str(tmp_path / "texts"), "context": 16}
    adapter = {"base": "own", "rank": 2, "targets": ["query", "value"], "train": "classifier.*"}
    settings = data | {"architecture": "transformers", "checkpoint": str(bert)}
    task = get_task(**settings, adapter=adapter)
    assert task.layout["bert.encoder.layer.0.attention.self.query.lora_A"].shape == (2, 8)
    assert task.base["bert.embeddings.word_embeddings.weight"].shape == (128, 8)
    zoo = build_zoo(tmp_path / "zoo", task, **SETTINGS)
    assert zoo.verify() == []
    whole = get_task(**settings)
    assert whole.layout.num_params > task.layout.num_params
    (tmp_path / "texts" / "a" / "8.txt").write_bytes(bytes([255]) * 200)
    with pytest.raises(ValueError, match=r"tokens up to 255, .* knows 128; give the data its tokenizer"):
        get_task(**settings)
