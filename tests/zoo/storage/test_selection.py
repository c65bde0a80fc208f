"""What a selection leaves out cannot be seen; what it keeps is what the zoo holds."""

import numpy as np
import pytest

from zoo.networks.layout import ParamLayout, ParamSlot
from zoo.storage.schema import RunStatus, ZooSpec
from zoo.storage.selection import SelectedZoo
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import Zoo

NUM_RUNS, NUM_SNAPSHOTS, NUM_PARAMS = 6, 4, 3


@pytest.fixture
def zoo(tmp_path) -> Zoo:
    layout = ParamLayout((ParamSlot("weight", (NUM_PARAMS,), "float32", "param", "bias", 1, 0),))
    spec = ZooSpec(
        layout=layout, num_runs=NUM_RUNS, num_snapshots=NUM_SNAPSHOTS, block_size=4, metric_names=("val_loss",)
    )
    writer = ZooWriter.create(tmp_path / "zoo", spec)
    rng = np.random.default_rng(0)
    for block in range(writer.num_blocks):
        num = len(writer.block_runs(block))
        writer.write_block(
            block,
            rng.normal(size=(num, NUM_SNAPSHOTS, NUM_PARAMS)).astype(np.float32),
            np.tile(np.arange(NUM_SNAPSHOTS) * 10, (num, 1)),
            {"val_loss": rng.uniform(size=(num, NUM_SNAPSHOTS)).astype(np.float32)},
            {"seed": np.array(writer.block_runs(block))},
            np.full(num, RunStatus.COMPLETE, np.uint8),
        )
    return Zoo.open(tmp_path / "zoo")


def test_everything_selected_is_the_zoo(zoo):
    view = SelectedZoo(zoo)
    np.testing.assert_array_equal(view.params[:, :], zoo.params[:, :])
    np.testing.assert_array_equal(view.metric("val_loss"), zoo.metric("val_loss"))
    np.testing.assert_array_equal(view.inner_step, zoo.inner_step)
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(view.split(name), zoo.split(name))


def test_snapshots_that_are_left_follow_one_another(zoo):
    keep = np.ones((NUM_RUNS, NUM_SNAPSHOTS), bool)
    keep[:, 1] = False
    keep[5] = [True, False, False, False]
    view = SelectedZoo(zoo, keep=keep)
    np.testing.assert_array_equal(view.inner_step[0], [0, 20, 30, -1])
    np.testing.assert_array_equal(view.inner_step[5], [0, -1, -1, -1])
    np.testing.assert_array_equal(view.params[:5, :3], zoo.params[:5][:, [0, 2, 3]])
    np.testing.assert_array_equal(view.metric("val_loss")[:5, :3], zoo.metric("val_loss")[:5, [0, 2, 3]])
    assert np.isnan(view.params[:, 3]).all()
    assert np.isnan(view.metric("val_loss")[5, 1:]).all()
    seen = np.concatenate([block for _, block in view.blocks()])
    np.testing.assert_array_equal(seen, view.params[:, :])


def test_only_selected_runs_belong_to_splits(zoo):
    chosen = zoo.split("train")[::2]
    view = SelectedZoo(zoo, runs=chosen)
    np.testing.assert_array_equal(view.split("train"), chosen)
    assert not len(view.split("val"))


def test_a_selection_of_a_selection(zoo):
    keep = np.ones((NUM_RUNS, NUM_SNAPSHOTS), bool)
    keep[:, 0] = False
    twice = SelectedZoo(SelectedZoo(zoo, keep=keep), keep=keep)
    np.testing.assert_array_equal(twice.inner_step[0], [20, 30, -1, -1])
    np.testing.assert_array_equal(twice.params[:, :2], zoo.params[:, 2:])


def test_a_mask_of_another_shape_is_refused(zoo):
    with pytest.raises(ValueError, match=r"keep must be of shape \(6, 4\).*got \(6, 3\)"):
        SelectedZoo(zoo, keep=np.ones((6, 3), bool))


def test_runs_are_chosen_by_numbers_or_by_a_mask(zoo):
    for runs in ([1, 3, -1], np.array([False, True, False, True, False, True])):
        assert SelectedZoo(zoo, runs=runs).usable_runs().tolist() == [1, 3, 5]
    for runs in ([6], np.ones(5, bool)):
        with pytest.raises(IndexError):
            SelectedZoo(zoo, runs=runs)
