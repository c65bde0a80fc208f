"""Databases in the layout of G.pt, written as its trainings write them."""

import json

import numpy as np
import pytest
import torch

from zoo.checkpoints.importer import import_checkpoints
from zoo.checkpoints.runs import find_runs
from zoo.checkpoints.tensors import CheckpointError
from zoo.networks.architectures import CNN, MLP
from zoo.networks.layout import ParamLayout

lmdb = pytest.importorskip("lmdb")


def write_run(folder, modules, fused=()):
    """A run of two epochs of four steps; `fused` are the names of runs that one database holds."""
    runs = {}
    folder.mkdir(parents=True)
    database = lmdb.open(str(folder), map_size=2**24)
    for name in fused or (folder.name,):
        checkpoints = {}
        for module, (epoch, step) in zip(modules, ((0, 0), (0, 3), (1, 2), (1, 4)), strict=True):
            key = f"{name}/ep{epoch:03d}_it{step:05d}.pt"
            state = module.state_dict()
            flat = torch.cat([value.flatten() for value in state.values()]).type(torch.float32)
            sizes = torch.tensor([value.numel() for value in state.values()]).type(torch.float32)
            with database.begin(write=True) as transaction:
                transaction.put(key.encode(), flat.numpy().tobytes())
                transaction.put(f"{key}_arch".encode(), sizes.numpy().tobytes())
            checkpoints[key] = {"avg_train_loss": 0.5, "avg_test_loss": 1.0 / (epoch + 1), "avg_test_err": 6.5}
        runs[name] = {"checkpoints": checkpoints, "metadata": {"avg_test_loss": [1.0], "optimal_test_loss": 0.5}}
    database.close()
    noted = runs if fused else runs[folder.name]
    (folder / "runs.json").write_text(json.dumps(noted, indent=2, sort_keys=True))
    (folder / "DONE.txt").write_text("")


def networks(count=4, build=lambda: MLP(4, (3,), 2)):
    torch.manual_seed(0)
    return [build() for _ in range(count)]


def test_runs_come_with_steps_metrics_and_seeds(tmp_path):
    modules = networks()
    write_run(tmp_path / "mnist/000000", modules)
    write_run(tmp_path / "mnist/000007", modules[::-1])
    zoo = import_checkpoints(tmp_path / "mnist", tmp_path / "zoo", model=MLP(4, (3,), 2))
    assert zoo.verify() == []
    np.testing.assert_array_equal(zoo.inner_step, [[0, 3, 6, 8]] * 2)
    np.testing.assert_array_equal(zoo.metric("avg_test_loss"), [[1, 1, 0.5, 0.5]] * 2)
    np.testing.assert_array_equal(zoo.runs["seed"], [0, 7])
    layout = ParamLayout.of(MLP(4, (3,), 2))
    expected = torch.stack([layout.flatten(module) for module in modules])
    assert torch.equal(torch.from_numpy(zoo.params[0]), expected)
    assert torch.equal(torch.from_numpy(zoo.params[1]), expected.flip(0))


def test_databases_of_several_runs(tmp_path):
    write_run(tmp_path / "3_12", networks(), fused=("3", "12"))
    runs, remarks = find_runs(tmp_path)
    assert [run.name for run in runs] == ["3", "12"]
    assert remarks == []
    layout = ParamLayout.of(MLP(4, (3,), 2))  # which suffices where there are no buffers
    zoo = import_checkpoints([tmp_path / "3_12"], tmp_path / "zoo", model=layout)
    np.testing.assert_array_equal(zoo.runs["seed"], [3, 12])


def test_buffers_in_between_need_the_module(tmp_path):
    modules = networks(build=lambda: CNN(1, (2, 3), 2))
    for i, module in enumerate(modules):
        module.norms[0].num_batches_tracked += 100 * i
    write_run(tmp_path / "000001", modules)
    zoo = import_checkpoints(tmp_path / "000001", tmp_path / "zoo", model=CNN(1, (2, 3), 2))
    for name, value in modules[3].state_dict().items():
        assert torch.equal(zoo.state_dict(0, 3)[name], value)
    with pytest.raises(CheckpointError, match="in this order; give the module itself"):
        import_checkpoints(tmp_path / "000001", tmp_path / "b", model=ParamLayout.of(CNN(1, (2, 3), 2)))


@pytest.mark.parametrize("model", [None, MLP(4, (5,), 2)])
def test_the_model_must_be_known_and_fit(tmp_path, model):
    write_run(tmp_path / "000001", networks())
    with pytest.raises(CheckpointError, match=r"without names; give the model|has tensors of .* numbers, the model of"):
        import_checkpoints(tmp_path / "000001", tmp_path / "zoo", model=model)


def test_a_network_that_is_missing_is_named(tmp_path):
    write_run(tmp_path / "000001", networks())
    noted = json.loads((tmp_path / "000001/runs.json").read_text())
    noted["checkpoints"]["000001/ep001_it00003.pt"] = {"avg_test_loss": 1.0}
    (tmp_path / "000001/runs.json").write_text(json.dumps(noted))
    with pytest.raises(
        CheckpointError, match=r"no whole network under 000001/ep001_it00003\.pt, which runs\.json names"
    ):
        import_checkpoints(tmp_path / "000001", tmp_path / "zoo", model=MLP(4, (3,), 2))
    (tmp_path / "000001/runs.json").write_text('{"checkpoints": {"x": {}}}')
    with pytest.raises(CheckpointError, match=r"cannot read .*runs\.json"):
        find_runs([tmp_path / "000001"])
