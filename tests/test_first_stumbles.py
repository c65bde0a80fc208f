"""What newcomers type first is answered in one line that says what to do."""

import pytest
import torch
from torch import nn

from generator.networks import read_start
from generator.training.train import train_generator
from learned_opt import MuLO
from zoo.building.build import build_zoo
from zoo.checkpoints.adapters import save_adapter
from zoo.networks.architectures import MLP
from zoo.networks.layout import ParamLayout
from zoo.tasks.datasets import Dataset, Split
from zoo.tasks.files.columns import column
from zoo.tasks.files.tables import TableColumns, encode_table
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task


@pytest.fixture(scope="module")
def digits():
    return get_task("digits", hidden=(4,))


def test_a_module_in_place_of_a_function_that_makes_one(digits):
    with pytest.raises(TypeError, match=r"build must be a function .* lambda: Net\(\), got the Linear itself"):
        Task("mine", digits.dataset, nn.Linear(64, 10), "cross_entropy")


def test_another_kind_of_dataset():
    pairs = torch.utils.data.TensorDataset(torch.zeros(9, 4), torch.zeros(9))
    with pytest.raises(TypeError, match=r"must be a zoo.tasks.datasets.Dataset.* got TensorDataset; .*from_rows"):
        Task("mine", pairs, lambda: nn.Linear(4, 2), "cross_entropy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_runs": 2, "num_steps": 2, "lr": 0.1},
            r"no settings \['lr'\]; .*optimizer=\{'name': 'adam', 'lr': 0.01\}",
        ),
        ({"num_runs": 2, "num_step": 2}, r"no settings \['num_step'\]; there are .*'num_steps'"),
        ({"num_runs": 2}, "needs num_steps=..."),
    ],
)
def test_settings_that_there_are_not(digits, tmp_path, settings, message):
    with pytest.raises(TypeError, match=f"^build_zoo .*{message}"):
        build_zoo(tmp_path / "zoo", digits, **settings)


def test_columns_that_there_are_not_and_columns_that_name_rows():
    table = {"name": column([f"row {i}" for i in range(30)]), "kind": column(["a", "b"] * 15)}
    with pytest.raises(ValueError, match=r"among the columns \['name', 'kind'\], got \['Kind'\]"):
        encode_table(table, TableColumns(target="Kind"), "mine.csv")
    with pytest.warns(UserWarning, match=r"'name' has 30 different words in 30 rows.*leave the column out"):
        encode_table(table, TableColumns(target="kind"), "mine.csv")


def test_a_learning_rate_for_an_optimizer_without_one():
    model = nn.Linear(3, 2)
    with pytest.warns(UserWarning, match=r"with 0.001, as AdamW needs it, training hardly moves; leave it out"):
        MuLO(model, num_training_steps=5, lr=1e-3)
    with pytest.raises(TypeError, match=r"theta must be a name .*, got 0.001"):
        MuLO(model, 1e-3)


def test_a_path_in_place_of_a_zoo_and_a_prompt_in_place_of_a_start(tmp_path):
    with pytest.raises(TypeError, match=r"as from Zoo.open\(path\), got 'out/zoo'"):
        train_generator("out/zoo", out=tmp_path)
    with pytest.raises(TypeError, match="config must be a GeneratorConfig, got a dict"):
        train_generator([], {"num_steps": 3}, out=tmp_path)
    with pytest.raises(ValueError, match=r"start must be a state dict, got .*pipe\(prompt=...\)"):
        read_start({"loss": 0.5}, [ParamLayout.of(MLP(4, (3,), 2))])


def test_a_dataset_that_names_no_hash_has_that_of_its_numbers(digits):
    data = digits.dataset
    again = Dataset("again", data.train, data.val, data.test, data.num_classes)
    assert again.data_hash == data.data_hash
    other = Split(data.val.inputs + 1, data.val.targets)
    assert Dataset("other", data.train, other, data.test, data.num_classes).data_hash != data.data_hash


def test_arguments_of_an_adapter_in_the_other_order(tmp_path):
    with pytest.raises(TypeError, match="tensors must be what was trained, by name, got Linear"):
        save_adapter(tmp_path / "adapter", nn.Linear(3, 2), {})
