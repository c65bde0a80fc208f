import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from zoo.building.build import build_zoo
from zoo.checkpoints.importer import import_checkpoints
from zoo.checkpoints.tensors import CheckpointError
from zoo.networks.architectures import MLP
from zoo.networks.layout import ParamLayout
from zoo.operations import Networks, compress, read_networks, save_compressed
from zoo.operations.networks import save_network
from zoo.storage.zoo import Zoo
from zoo.tasks.registry import get_task

LAYOUT = ParamLayout.of(MLP(4, (3,), 2))


def save(path, state):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return state


@pytest.fixture
def zoo_path(tmp_path):
    """Two runs: of three snapshots, and of one."""
    torch.manual_seed(0)
    for name in ("a/step_0", "a/step_5", "a/step_20", "b/step_5"):
        save(tmp_path / f"in/{name}.safetensors", MLP(4, (3,), 2).state_dict())
    import_checkpoints(tmp_path / "in", tmp_path / "zoo", model=LAYOUT, task_config={"name": "digits"})
    return tmp_path / "zoo"


def test_addresses_of_zoos(zoo_path):
    def steps(address):
        return read_networks([f"{zoo_path}{address}"]).steps

    assert steps("@0") == steps("@0:-1") == (20,)
    assert steps("@0:all") == (0, 5, 20)
    assert steps("@all") == (20, 5)
    assert steps("@-1:0") == (5,)
    both = read_networks([f"{zoo_path}@1", str(zoo_path.parent / "in/b/step_5.safetensors")])
    assert torch.equal(both.params[0], both.params[1])
    assert both.layout == LAYOUT
    assert both.task_config == {}
    assert read_networks([f"{zoo_path}@1"]).task_config == {"name": "digits"}


@pytest.mark.parametrize("address", ["@2", "@-3", "@0:3", "@1:1", "@1:-1"])
def test_networks_that_a_zoo_does_not_have(zoo_path, address):
    with pytest.raises(IndexError, match=f"{address}: (the zoo has runs 0 to 1|run -?[01] has no snapshot)"):
        read_networks([f"{zoo_path}{address}"])


def test_a_folder_of_checkpoints_is_read_in_the_order_of_its_steps(tmp_path):
    states = {step: save(tmp_path / f"run/step_{step}.safetensors", {"w": torch.rand(3)}) for step in (100, 9)}
    read = read_networks([str(tmp_path / "run")])
    assert read.steps == (9, 100)
    assert torch.equal(read.params, torch.stack([states[9]["w"], states[100]["w"]]))


def test_another_layout_is_refused_in_one_line(zoo_path, tmp_path):
    save(tmp_path / "wide.safetensors", MLP(4, (5,), 2).state_dict())
    with pytest.raises(CheckpointError, match=r"wide.safetensors: tensors do not fit the layout: .*must be \(3, 4\)"):
        read_networks([f"{zoo_path}@0", str(tmp_path / "wide.safetensors")])
    other = import_checkpoints(tmp_path / "wide.safetensors", tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"other@0:0: tensors do not fit the layout: .*must be \(3, 4\)"):
        read_networks([f"{zoo_path}@0", f"{tmp_path / 'other'}@0"])
    assert other.num_runs == 1
    with pytest.raises(CheckpointError, match="no networks"):
        read_networks([])


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    save(tmp_path / "a.safetensors", {"w": torch.tensor([1.0, float("nan")])})
    with pytest.raises(CheckpointError, match=r"a\.safetensors has infinities or NaN"):
        read_networks([str(tmp_path / "a.safetensors")])


def test_what_is_left_out_is_said(tmp_path):
    save(tmp_path / "run/step_1.safetensors", {"w": torch.ones(2)})
    (tmp_path / "run/step_2.onnx").write_bytes(b"")
    torch.save({"model": {"w": torch.zeros(2)}, "ema": {"w": torch.ones(2)}}, tmp_path / "run/step_3.pt")
    with pytest.warns(UserWarning, match=r"step_2\.onnx was left out.*; \['ema'\] of .*step_3\.pt was left out"):
        read = read_networks([str(tmp_path / "run")])
    assert read.params.tolist() == [[1, 1], [0, 0]]


def test_what_is_saved_is_read_again_with_its_layout_and_story(tmp_path):
    params = torch.randn(LAYOUT.num_params)
    networks = Networks(LAYOUT, params[None], ("a",), (None,), {"name": "digits"})
    save_network(tmp_path / "x.safetensors", params, networks, {"method": "ties"})
    read = read_networks([str(tmp_path / "x.safetensors")])
    assert torch.equal(read.params[0], params)
    assert (read.layout, read.task_config) == (LAYOUT, {"name": "digits"})
    assert json.loads((tmp_path / "x.json").read_text())["combined"] == {"method": "ties"}
    MLP(4, (3,), 2).load_state_dict(load_file(tmp_path / "x.safetensors"))


def test_compressed_task_vectors_need_their_base(tmp_path, zoo_path):
    base = read_networks([f"{zoo_path}@0:0"])
    network = read_networks([f"{zoo_path}@0:2"]).params[0]
    small = compress(network - base.params[0], 0.5)
    save_compressed(tmp_path / "s.safetensors", LAYOUT, network, base.params[0], small)
    read = read_networks([str(tmp_path / "s.safetensors"), f"{zoo_path}@1"], base=base)
    torch.testing.assert_close(read.params[0], base.params[0] + small.dense())
    with pytest.raises(CheckpointError, match="compressed against its base; give base="):
        read_networks([str(tmp_path / "s.safetensors")])


def adapters(path, base, **options):
    task = get_task("digits", hidden=(3,), adapter={"base": str(base), "rank": 1, **options})
    build_zoo(path, task, num_runs=1, num_steps=1, num_snapshots=2, evaluated_splits=("val",))
    return f"{path}@0"


def test_networks_of_different_bases_or_scales_are_not_combined(tmp_path):
    """Their vectors have one layout, but an average of them would belong to neither base."""
    for name in ("one", "other"):
        save(tmp_path / f"{name}.safetensors", MLP(64, (3,), 10).state_dict())
    one = adapters(tmp_path / "zoo", tmp_path / "one.safetensors")
    other = adapters(tmp_path / "zoo2", tmp_path / "other.safetensors")
    scaled = adapters(tmp_path / "zoo3", tmp_path / "one.safetensors", alpha=4)
    with pytest.raises(CheckpointError, match=r"zoo@0:1 and .*zoo2@0:1 were trained on different bases"):
        read_networks([one, other])
    with pytest.raises(CheckpointError, match=r"zoo2@0:0 and .* were trained on different bases"):
        read_networks([one], base=read_networks([f"{other}:0"]))
    with pytest.raises(CheckpointError, match="different kinds of adapters: alpha None and 4"):
        read_networks([one, scaled])
    networks = read_networks([one])
    save_network(tmp_path / "x.safetensors", networks.params[0], networks, {})
    assert read_networks([str(tmp_path / "x.safetensors"), one]).base_hash == networks.base_hash != ""
    Zoo.open(tmp_path / "zoo2").export(0, 1, tmp_path / "whole.safetensors", merged=True)
    (tmp_path / "whole.json").unlink()
    with pytest.raises(CheckpointError, match="different bases"):
        read_networks([one, str(tmp_path / "whole.safetensors")])
