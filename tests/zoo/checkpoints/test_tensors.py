import json

import pytest
import torch
from safetensors.torch import save_file

from zoo.checkpoints.tensors import CheckpointError, read_tensors

STATE = {"a.weight": torch.randn(2, 3), "a.count": torch.tensor(7)}


def assert_state(tensors):
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], value) for name, value in STATE.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "pth.tar"])
def test_torch_files_old_and_new(tmp_path, suffix, zipped):
    path = tmp_path / f"x.{suffix}"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    assert_state(read_tensors(path).tensors)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_the_state_dict_inside_a_training_checkpoint_is_found(tmp_path, key):
    torch.save({key: STATE, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "x.pt")
    assert_state(read_tensors(tmp_path / "x.pt").tensors)


def test_another_entry_can_be_chosen(tmp_path):
    torch.save({"model": {}, "ema": STATE}, tmp_path / "x.pt")
    assert_state(read_tensors(tmp_path / "x.pt", "ema").tensors)
    with pytest.raises(CheckpointError, match=r"under nonsense; .*\['model', 'ema'\]"):
        read_tensors(tmp_path / "x.pt", "nonsense")


def test_entries_that_hold_other_networks_are_named(tmp_path):
    torch.save({"model": STATE, "model_ema": STATE, "optimizer": {"state": {}}, "epoch": 2}, tmp_path / "x.pt")
    assert read_tensors(tmp_path / "x.pt").other_keys == ("model_ema",)
    assert read_tensors(tmp_path / "x.pt", "model_ema").other_keys == ("model",)
    save_file(STATE, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="state_key='model' is for torch files"):
        read_tensors(tmp_path / "x.safetensors", "model")


def test_layers_of_a_safetensors_file_come_in_the_order_of_their_numbers(tmp_path):
    names = [f"layers.{i}.weight" for i in range(12)]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "x.safetensors")
    assert list(read_tensors(tmp_path / "x.safetensors").tensors) == names


def save_shards(folder, suffix, files=None):
    """STATE cut into one file for each tensor; returns the index."""
    places = {}
    for i, (name, value) in enumerate(STATE.items(), 1):
        places[name] = f"model-0000{i}-of-00002.{suffix}"
        save = save_file if suffix == "safetensors" else torch.save
        save({name: value}, folder / places[name])
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": places | (files or {})}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_model_cut_into_files_is_read_by_its_index(tmp_path, suffix):
    assert_state(read_tensors(save_shards(tmp_path, suffix)).tensors)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"b": "model-00002-of-00002.safetensors"}, r"do not agree about \['b'\]"),
        ({"a.count": "model-00001-of-00002.safetensors"}, r"do not agree about \['a.count'\]"),
        ({"b": "model-00003-of-00003.safetensors"}, "cannot read .*00003"),
        ({"b": "../elsewhere.safetensors"}, "must stand beside it"),
        ({"b": 3}, "cannot read the index"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path, files, message):
    with pytest.raises(CheckpointError, match=message):
        read_tensors(save_shards(tmp_path, "safetensors", files))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no tensor"),
        ([1, 2], "must hold a state dict, got list"),
        ({"epoch": 3}, "no state dict under"),
        ({"state_dict": {"w": "text"}}, "'w' must be a tensor, got str"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "dense real tensor, got torch.complex64"),
        ({"w": torch.eye(2).to_sparse()}, "dense real tensor"),
    ],
)
def test_other_contents_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_damaged_and_missing_files_are_named(tmp_path, name, damage):
    if damage is not None:
        (tmp_path / name).write_bytes(damage)
    with pytest.raises(CheckpointError, match=name):
        read_tensors(tmp_path / name)


def test_a_truncated_torch_file_is_named(tmp_path):
    torch.save(STATE, tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        read_tensors(tmp_path / "x.pt")
