import numpy as np
import pytest
import torch

from zoo.tasks.families.tabular_prior import TabularPrior

NUM = 256


@pytest.fixture(scope="module")
def family():
    return TabularPrior(num_features=12, num_classes=6, seed=1)


@pytest.fixture(scope="module")
def tables(family):
    members = family.bind(torch.arange(NUM))
    return {
        split: members.examples(torch.arange(size), split)
        for split, size in zip(("train", "val", "test"), family.sizes, strict=True)
    }


def test_features_are_as_many_as_said_and_standardised_by_the_training_rows(family, tables):
    attributes = family.attributes(torch.arange(NUM))
    assert set(attributes["features"].tolist()) == set(range(2, 13))
    inputs = tables["train"].inputs
    for count, rows in zip(attributes["features"].tolist(), inputs, strict=True):
        assert not rows[:, count:].any()
    kept = inputs.abs().amax((1,)) < 10  # columns that were not clamped
    mean, std = inputs.mean(1)[kept], inputs.std(1, correction=0)[kept]
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    assert (((std - 1).abs() < 1e-3) | (std == 0)).all()
    assert all(batch.inputs.abs().max() <= 10 for batch in tables.values())


def test_classes_are_as_many_as_said_and_of_all_kinds(family, tables):
    attributes = family.attributes(torch.arange(NUM))
    labels = torch.cat([batch.targets for batch in tables.values()], 1)
    assert (labels.amax(1) < attributes["classes"]).all()
    num_found = torch.tensor([len(row.unique()) for row in labels])
    assert (num_found == attributes["classes"]).float().mean() > 0.6
    assert (num_found > 1).float().mean() > 0.95
    assert attributes["kind"].bincount(minlength=4).min() > NUM / 12


def test_tables_can_be_learned_from_their_rows(family, tables):
    """A nearest neighbour does better than the commonest class on most tables of each kind."""
    train, test = tables["train"], tables["test"]
    nearest = torch.cdist(test.inputs, train.inputs).argmin(-1)  # (T, n)
    right = (train.targets.gather(1, nearest) == test.targets).float().mean(1)
    commonest = (train.targets.mode(1).values[:, None] == test.targets).float().mean(1)
    kinds = family.attributes(torch.arange(NUM))["kind"]
    for kind in range(4):
        assert (right > commonest)[kinds == kind].float().mean() > 0.5, kind


def test_some_features_are_categorical_and_some_are_not(tables):
    columns = tables["train"].inputs.transpose(1, 2).flatten(0, 1)
    distinct = np.array([len(column.unique()) for column in columns if column.any()])
    assert (distinct == 2).mean() > 0.03
    assert ((distinct > 2) & (distinct <= 8)).mean() > 0.05
    assert (distinct > 100).mean() > 0.4


def test_a_seed_is_another_world(family):
    members = torch.arange(3)
    other = TabularPrior(num_features=12, num_classes=6, seed=2).bind(members).examples(torch.arange(9))
    assert not torch.equal(family.bind(members).examples(torch.arange(9)).inputs, other.inputs)
    with pytest.raises(ValueError, match="two or more features, classes and rows"):
        TabularPrior(num_features=1)
