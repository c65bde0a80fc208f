import os
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from zoo.checkpoints.distributed import read_distributed
from zoo.checkpoints.importer import import_checkpoints
from zoo.checkpoints.tensors import CheckpointError
from zoo.networks.architectures import CNN


def save(folder, content):
    with warnings.catch_warnings(action="ignore"):  # that it is a single process
        dcp.save(content, checkpoint_id=folder, no_dist=True)
    return folder


def trained(seed):
    """A CNN and its optimizer after a step."""
    torch.manual_seed(seed)
    module = CNN(1, (4,), 3)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(5, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    return module, optimizer


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) and value.dtype == second[name].dtype for name, value in first.items())


def test_sharded_checkpoints_become_a_run(tmp_path):
    expected = {}
    for step in (100, 20):
        module, optimizer = trained(step)
        content = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        save(tmp_path / f"in/run/step-{step}", content)
        expected[step] = module.state_dict()
    with pytest.warns(UserWarning, match="entry 'optimizer' of 2 files such as"):
        zoo = import_checkpoints(tmp_path / "in", tmp_path / "zoo", model=CNN(1, (4,), 3))
    np.testing.assert_array_equal(zoo.inner_step, [[20, 100]])
    assert_same(zoo.state_dict(0, 0), expected[20])
    assert_same(zoo.state_dict(0, 1), expected[100])


@pytest.mark.filterwarnings("error")
def test_a_bare_state_dict_and_the_folder_of_accelerate(tmp_path):
    state = trained(0)[0].state_dict()
    save(tmp_path / "bare", state)
    zoo = import_checkpoints(tmp_path / "bare", tmp_path / "a")
    assert_same(zoo.state_dict(0, 0), state)
    save(tmp_path / "run/checkpoint-5/pytorch_model_fsdp_0", {"model": state})
    (tmp_path / "run/checkpoint-5/trainer_state.json").write_text('{"global_step": 5, "log_history": []}')
    zoo = import_checkpoints([tmp_path / "run"], tmp_path / "b", model=CNN(1, (4,), 3))
    assert zoo.inner_step.tolist() == [[5]]
    assert_same(zoo.state_dict(0, 0), state)


def test_pieces_of_one_tensor_are_put_together(tmp_path, forked):
    """Two processes, each with half of the rows, as FSDP has them."""
    processes = [*forked(save_half, 0, tmp_path), *forked(save_half, 1, tmp_path)]
    for process in processes:
        process.join()
    assert sorted(path.name for path in (tmp_path / "ckpt").iterdir()) == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    assert torch.equal(read_distributed(tmp_path / "ckpt").tensors["w"], torch.arange(24.0).reshape(6, 4))


def save_half(rank, folder):
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    whole = torch.arange(24.0).reshape(6, 4)
    dcp.save({"model": {"w": distribute_tensor(whole, mesh, [Shard(0)])}}, checkpoint_id=folder / "ckpt")
    torch.distributed.destroy_process_group()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_metadata_that_would_run_code_are_refused_and_run_none(tmp_path):
    save(tmp_path / "ckpt", {"model": {"w": torch.ones(2)}})
    metadata = pickle.loads((tmp_path / "ckpt/.metadata").read_bytes())
    metadata.planner_data = Bomb(tmp_path / "exploded")
    (tmp_path / "ckpt/.metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"cannot read .*\.metadata: it names posix\.mkdir, .* refused"):
        read_distributed(tmp_path / "ckpt")
    assert not (tmp_path / "exploded").exists()


def test_pieces_outside_the_folder_are_refused(tmp_path):
    save(tmp_path / "ckpt", {"model": {"w": torch.ones(2)}})
    metadata: Metadata = pickle.loads((tmp_path / "ckpt/.metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../secret"
    (tmp_path / "ckpt/.metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"files outside its folder: .*\.\./secret"):
        read_distributed(tmp_path / "ckpt")


def test_what_is_damaged_missing_or_unnamed(tmp_path):
    save(tmp_path / "ckpt", {"net": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}})
    with pytest.raises(CheckpointError, match=r"no state dict; choose a state_key among \['net', 'ema'\]"):
        read_distributed(tmp_path / "ckpt")
    assert torch.equal(read_distributed(tmp_path / "ckpt", "ema").tensors["w"], torch.zeros(2))
    assert read_distributed(tmp_path / "ckpt", "ema").other_keys == ("net",)
    with pytest.raises(CheckpointError, match="no state dict under x"):
        read_distributed(tmp_path / "ckpt", "x")
    (tmp_path / "ckpt/__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*ckpt: "):
        read_distributed(tmp_path / "ckpt", "net")
    (tmp_path / "ckpt/.metadata").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot read .*\.metadata"):
        read_distributed(tmp_path / "ckpt")
