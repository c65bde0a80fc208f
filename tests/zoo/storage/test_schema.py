import json

import numpy as np
import pytest
import zarr

from zoo.settings import SettingsMismatchError
from zoo.storage.schema import (
    FORMAT_VERSION,
    ZooFormatError,
    ZooSpec,
    array_metadata,
    attributes_checksum,
)
from zoo.storage.splits import SplitRule


def test_attributes_round_trip(toy):
    spec = toy.spec(dtype="bfloat16", splits=SplitRule({"train": 0.5, "test": 0.5}, "width"), extra={"note": [1, None]})
    attributes = json.loads(json.dumps(spec.to_attributes()))
    again = ZooSpec.from_attributes(attributes)
    assert again.to_attributes() == spec.to_attributes()
    assert again.layout == spec.layout
    assert attributes["checksum"] == attributes_checksum(attributes)


def test_attributes_of_users_do_not_disturb_the_checksum(toy):
    attributes = toy.spec().to_attributes()
    assert attributes_checksum({**attributes, "remark": "mine"}) == attributes["checksum"]
    assert attributes_checksum({**attributes, "seed": 4}) != attributes["checksum"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_runs": 0}, "num_runs must be a positive integer, got 0"),
        ({"num_runs": -3}, "num_runs"),
        ({"num_runs": True}, "num_runs must be a positive integer, got True"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"snapshot_steps": (0, 0.5)}, r"each of snapshot_steps must be an integer of at least 0, got 0\.5"),
        ({"snapshot_steps": (-1, 2)}, "at least 0, got -1"),
        ({"metric_names": ("a", "b", "a")}, "different names"),
        ({"metric_names": "val_loss"}, "different names"),
        ({"block_size": 0}, "block_size"),
        ({"snapshot_steps": ()}, "num_snapshots"),
        ({"snapshot_steps": None}, "num_snapshots"),
        ({"dtype": "float8"}, "float8"),
        ({"metric_names": ("val loss",)}, "identifiers"),
        ({"columns": {"status": "int64"}}, "status"),
        ({"columns": {"lr": "complex64"}}, "complex64"),
        ({"splits": SplitRule(key="lr")}, "'lr'"),
    ],
)
def test_impossible_settings_are_refused(toy, changes, message):
    with pytest.raises(ValueError, match=message):
        toy.spec(**changes)


def test_integers_of_numpy_are_integers(toy):
    spec = toy.spec(num_runs=np.int64(10), seed=np.uint8(3), snapshot_steps=np.array([0, 5, 20]))
    assert spec.to_attributes() == toy.spec().to_attributes()


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()], ids=["nan", "set", "object"])
def test_settings_must_be_json(toy, value):
    with pytest.raises(ValueError, match="JSON"):
        toy.spec(task_config={"value": value}).to_attributes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected a Zarr group with format"),
        ({"format_version": FORMAT_VERSION + 1}, "upgrade"),
        ({"format_version": "one"}, "format_version must be an integer"),
        ({"layout": {"version": 1}}, "damaged"),
        ({"num_runs": "ten"}, "damaged"),
        ({"splits": None}, "damaged"),
        ({"metrics": None}, "damaged"),
    ],
)
def test_foreign_newer_and_damaged_attributes_are_told_apart(toy, change, message):
    with pytest.raises(ZooFormatError, match=message):
        ZooSpec.from_attributes(toy.spec().to_attributes() | change)


def test_a_missing_attribute_is_named(toy):
    attributes = toy.spec().to_attributes()
    del attributes["block_size"]
    with pytest.raises(ZooFormatError, match="block_size"):
        ZooSpec.from_attributes(attributes)


def test_every_differing_key_is_named(toy):
    other = toy.spec(num_runs=11, task_config={"name": "toy", "hidden": [8]}, software={"torch": "0.1"})
    with pytest.raises(SettingsMismatchError) as error:
        toy.spec().require_same(other, "out/zoo")
    assert "out/zoo" in str(error.value)
    assert "num_runs: begun with 10, now 11" in str(error.value)
    assert "task.hidden: begun with [4], now [8]" in str(error.value)
    assert "software" not in str(error.value)


def test_blocks_cover_the_runs_once(toy):
    spec = toy.spec()
    assert [run for block in range(spec.num_blocks) for run in spec.block_runs(block)] == list(range(10))
    with pytest.raises(IndexError, match=r"0\.\.2"):
        spec.block_runs(3)


def test_metadata_is_what_the_format_promises(toy, tmp_path):
    for name, content in array_metadata(toy.spec()).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    group = zarr.open_group(tmp_path, mode="r")
    params = group["params"]
    assert params.shape == (10, 3, 26)
    assert params.shards == (4, 3, 26)
    assert params.chunks == (1, 1, 26)
    assert params.metadata.dimension_names == ("run", "snapshot", "param")
    assert np.isnan(params.fill_value)
    for name, array in group["metrics"].arrays():
        assert array.dtype == np.float32, name
        assert np.isnan(array.fill_value)
        assert array.metadata.dimension_names == ("run", "snapshot")
    assert group["inner_step"].dtype == np.int64
    assert group["runs/status"].fill_value == 0
    assert all(array.chunks == (4,) for _, array in group["runs"].arrays())
