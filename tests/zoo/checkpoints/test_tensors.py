import pytest
import torch
from safetensors.torch import save_file

from zoo.checkpoints.tensors import CheckpointError, read_tensors

STATE = {"a.weight": torch.randn(2, 3), "a.count": torch.tensor(7)}


def assert_state(tensors):
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], value) for name, value in STATE.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
def test_torch_files_old_and_new(tmp_path, suffix, zipped):
    path = tmp_path / f"x.{suffix}"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    assert_state(read_tensors(path))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_the_state_dict_inside_a_training_checkpoint_is_found(tmp_path, key):
    torch.save({key: STATE, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "x.pt")
    assert_state(read_tensors(tmp_path / "x.pt"))


def test_another_entry_can_be_chosen(tmp_path):
    torch.save({"model": {}, "ema": STATE}, tmp_path / "x.pt")
    assert_state(read_tensors(tmp_path / "x.pt", "ema"))
    with pytest.raises(CheckpointError, match=r"under nonsense; .*\['model', 'ema'\]"):
        read_tensors(tmp_path / "x.pt", "nonsense")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    save_file({prefix + name: value for name, value in STATE.items()}, tmp_path / "x.safetensors")
    assert_state(read_tensors(tmp_path / "x.safetensors"))


def test_a_prefix_of_some_names_only_is_kept(tmp_path):
    save_file({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert read_tensors(tmp_path / "x.safetensors").keys() == {"module.a", "b"}


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
