import csv
import re

import numpy as np
import pytest
import torch

from zoo.tasks.datasets import REAL_TABLES, get_dataset
from zoo.tasks.registry import get_task

COLOURS = ("red", "green", "blue")


def write(file, count=200, seed=0, **changes):
    rng = np.random.RandomState(seed)
    x = rng.randn(count)
    columns = {
        "size": [f"{3 + 2 * value:.6f}" for value in x],
        "colour": [COLOURS[i % 3] for i in range(count)],
        "zone": [str(i % 4) for i in range(count)],
        "kind": ["small" if value < 0 else "large" for value in x],
        "price": [f"{10 * value + 5:.6f}" for value in x],
    } | changes
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return file


def parts(data):
    return data.train, data.val, data.test


def test_numbers_are_standardised_by_the_train_split_and_words_one_hot(tmp_path):
    file = write(tmp_path / "table.csv")
    data = get_dataset("table", path=file, target="kind", features=["size", "colour", "zone"], categorical=["zone"])
    assert data.num_classes == 2
    assert data.train.inputs.shape[1] == 1 + 3 + 4
    train = data.train.inputs[:, 0]
    torch.testing.assert_close(
        torch.stack((train.mean(), train.std(correction=0))), torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0
    )
    for split in parts(data):
        assert torch.equal(split.inputs[:, 1:4].sum(1), torch.ones(len(split)))
        assert torch.equal(split.inputs[:, 4:].sum(1), torch.ones(len(split)))
    inputs, targets = torch.cat([s.inputs for s in parts(data)]), torch.cat([s.targets for s in parts(data)])
    small, large = inputs[targets == 1, 0], inputs[targets == 0, 0]  # "large" comes first
    assert small.max() < large.min()
    assert (
        get_dataset(
            "table", path=file, target="kind", features=["size", "colour", "zone"], categorical=["zone"]
        ).data_hash
        == data.data_hash
    )


def test_targets_are_classes_or_numbers(tmp_path):
    file = write(tmp_path / "table.csv")
    price = get_dataset("table", path=file, target="price", features=["size"])
    assert price.num_classes == 0
    torch.testing.assert_close(price.val.targets, price.val.inputs, atol=1e-3, rtol=1e-3)  # both linear in one number
    both = get_dataset("table", path=file, target=["price", "zone"])
    assert both.train.targets.shape[1] == 2
    assert both.train.inputs.shape[1] == 1 + 3 + 2
    assert get_dataset("table", path=file, target="zone").num_classes == 4
    assert get_dataset("table", path=file, target="zone", regression=True).num_classes == 0
    task = get_task("table", path=file, target="price", features=["size"], hidden=[4])
    assert get_task(**task.config).dataset.data_hash == task.dataset.data_hash


def test_missing_values_are_said_and_filled(tmp_path):
    sizes = ["" if i < 5 else str(i % 7) for i in range(200)]
    colours = ["?" if i in (7, 8) else COLOURS[i % 3] for i in range(200)]
    file = write(tmp_path / "table.csv", size=sizes, colour=colours)
    with pytest.warns(UserWarning, match="5 of 'size', 2 of 'colour' are missing: numbers become the mean"):
        data = get_dataset("table", path=file, target="kind", features=["size", "colour"])
    inputs = torch.cat([split.inputs for split in parts(data)])
    assert inputs.shape[1] == 1 + 4
    assert (inputs[:, 0] == 0).sum() == 5
    assert inputs[:, 1].sum() == 2  # the category of what is missing


def test_equal_rows_share_a_split_and_columns_may_declare_it(tmp_path):
    file = write(tmp_path / "table.csv", size=[str(i % 40) for i in range(200)], colour=["red"] * 200)
    data = get_dataset("table", path=file, target="kind", features=["size", "colour"])
    keys = [{row.numpy().tobytes() for row in split.inputs} for split in parts(data)]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 40
    declared = ["train", "valid", "test", "train"] * 50
    file = write(tmp_path / "declared.csv", part=declared)
    data = get_dataset("table", path=file, target="kind", features=["size"], split="part")
    assert [len(split) for split in parts(data)] == [100, 50, 50]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "weight"}, r"a target and features among the columns \['size'.* got \['weight'\]"),
        ({"target": "kind", "features": ["kind", "size"]}, "'kind' is both a feature and target or split"),
        ({"target": "name", "features": ["size"]}, "class 'person .*' has no example in the train split, nor have"),
        ({"target": "kind", "features": ["name"]}, "'name' has 200 different words, more than 100; leave it out"),
        ({"target": "gap"}, "3 rows have no target 'gap'"),
        ({"target": ["kind", "price"]}, "targets .* must be numbers"),
        ({"target": "kind", "features": ["size"], "split": "zone"}, "column 'zone' must say train, val, test"),
        ({"target": "kind", "features": ["size"], "num_classes": 1}, "at most 1 classes, got 2"),
    ],
)
def test_columns_that_cannot_be_used_are_named(tmp_path, options, message):
    names = [f"person {i}" for i in range(200)]
    file = write(tmp_path / "table.csv", name=names, gap=["" if i < 3 else "1" for i in range(200)])
    with pytest.raises(ValueError, match=message):
        get_dataset("table", path=file, **options)


def test_numbers_that_hide_the_others_are_said(tmp_path):
    price = [str(i % 7) for i in range(29)] + ["1e9"]
    file = write(tmp_path / "table.csv", 30, price=price, kind=["a", "b"] * 15)
    with pytest.warns(UserWarning, match=r"a few numbers of \['price'\] are so far from the others"):
        get_dataset("table", path=file, target="kind", features=["size", "price"])


@pytest.mark.parametrize("odd", ["unknown", "0,5", "$3.00", "12%", "1'000"])
def test_numbers_as_people_write_them_do_not_become_words(tmp_path, odd):
    size = [odd if i == 7 else f"{i}.5" for i in range(30)]
    file = write(tmp_path / "table.csv", 30, size=size, kind=["a", "b"] * 15)
    with pytest.raises(ValueError, match=re.escape(f"'size' is of numbers, but {odd!r} is none")):
        get_dataset("table", path=file, target="kind")
    with pytest.warns(UserWarning, match="different words"):
        assert (
            get_dataset("table", path=file, target="kind", categorical=["size"], features=["size"]).train.inputs.shape[
                1
            ]
            == 30
        )


def test_a_column_that_counts_rows_is_said_and_may_have_no_name(tmp_path):
    """As pandas writes its index."""
    file = write(
        tmp_path / "table.csv", 30, **{"": range(30), "size": [i % 7 for i in range(30)], "kind": ["a", "b"] * 15}
    )
    with pytest.warns(UserWarning, match="column '' counts the rows"):
        get_dataset("table", path=file, target="kind")


@pytest.mark.parametrize("source", REAL_TABLES)
def test_real_tables_fit_networks_of_one_shape(source):
    task = get_task("real_table", source=source, num_features=20, num_classes=10, hidden=[3])
    assert task.layout["layers.0.weight"].shape == (3, 20)
    assert task.layout["layers.1.weight"].shape == (10, 3)
    raw = get_dataset("real_table", source=source)
    assert [len(s) for s in parts(task.dataset)] == [len(s) for s in parts(raw)]
    assert torch.equal(task.dataset.test.targets, raw.test.targets)
    size = raw.train.inputs.shape[1]
    if size <= 20:
        assert torch.equal(task.dataset.val.inputs[:, :size], raw.val.inputs)
        assert not task.dataset.val.inputs[:, size:].any()
    else:
        train = task.dataset.train.inputs.double()
        torch.testing.assert_close(train.T @ train / len(train), torch.eye(20).double(), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="source must be one of"):
        get_dataset("real_table", source="titanic")
