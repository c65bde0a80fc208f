import pytest
import torch

from zoo.tasks.datasets import get_dataset
from zoo.tasks.families.label_subsets import LabelSubsets
from zoo.tasks.registry import get_task


def test_digits_subset_is_a_case_of_it():
    old, new = get_task("digits_subset"), get_task("label_subsets", base="digits")
    runs = [0, 500, 1023]
    for name, values in old.run_attributes(runs).items():
        assert torch.equal(new.run_attributes(runs)[name], values)
    assert old.split_key == "mask_pair"
    batches = [task.for_runs(runs).batch(torch.arange(20), 3) for task in (old, new)]
    assert torch.equal(batches[0].targets, batches[1].targets)
    assert old.family.num_members == 1022


def test_a_subset_and_its_complement_share_their_pair():
    subsets = LabelSubsets(get_dataset("real_table", source="iris"))
    assert subsets.num_members == 6
    attributes = subsets.attributes(torch.arange(6))
    assert attributes["mask"].tolist() == [1, 2, 3, 4, 5, 6]
    assert attributes["mask_pair"].tolist() == [1, 2, 3, 3, 2, 1]


def test_data_and_masks_that_have_no_subsets_are_refused():
    numbers = get_dataset("python_source", size=20_000, context=16)
    with pytest.raises(ValueError, match=r"label subsets are of 2 to 16 classes, .* 'python_source' has 128"):
        LabelSubsets(numbers)
    with pytest.raises(ValueError, match=r"masks must be numbers from 1 to 1022, got \[1023\]"):
        LabelSubsets(get_dataset("digits"), [1, 1023])
    with pytest.raises(ValueError, match="base must be the name of a data set, or its name and options"):
        get_task("label_subsets", base={"path": "x"})
