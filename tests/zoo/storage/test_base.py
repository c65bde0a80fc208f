"""Zoos of networks that share a base: complete by themselves, of format version 2, refused on another base."""

import json
from contextlib import suppress

import numpy as np
import pytest
import torch
import zarr
from torch import nn
from zarr.storage import ZipStore

from zoo.building.build import build_zoo
from zoo.networks.adapters import adapt, merge
from zoo.networks.architectures import MLP
from zoo.settings import SettingsMismatchError
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import DamagedZooError, Zoo
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task

with suppress(ImportError):
    import ml_dtypes  # noqa: F401 (from then on NumPy knows a dtype "bfloat16", which Zarr does not)

DIGITS = get_task("digits")
SETTINGS = {"num_runs": 3, "num_steps": 6, "num_snapshots": 3, "block_size": 2}


class Odd(nn.Module):
    """A frozen layer of bfloat16, a scalar, integers and an empty tensor beside one that is trained."""

    def __init__(self, seed=0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.frozen = nn.Parameter(torch.randn(64, 8, generator=rng).bfloat16(), requires_grad=False)
        self.gain = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.register_buffer("order", torch.arange(8).flip(0))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head((self.gain * (x.flatten(1) @ self.frozen.float())).relu()[:, self.order])


def task_of(build):
    return Task("own", DIGITS.dataset, build, DIGITS.objective)


@pytest.fixture
def zoo(tmp_path):
    return build_zoo(tmp_path / "zoo", task_of(Odd), **SETTINGS)


def test_a_zoo_is_complete_by_itself(zoo):
    assert zoo.verify() == []
    assert zoo.attributes["format_version"] == 2
    assert zoo.layout.num_params == 8 * 10 + 10
    module = Odd()
    expected = {name: value for name, value in module.state_dict().items() if "head" not in name}
    assert zoo.base.keys() == expected.keys()
    for name, value in zoo.base.items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name])
    whole = Odd(seed=1)
    whole.load_state_dict(zoo.state_dict(2, -1, merged=True))
    data = DIGITS.dataset.test
    with torch.no_grad():
        error = (whole(data.inputs).argmax(1) != data.targets).float().mean()
    assert error.item() == pytest.approx(float(zoo.metric("test_error")[2, -1]), abs=1e-6)
    assert zoo.state_dict(2, -1).keys() == {"head.weight", "head.bias"}


def test_any_zarr_reader_reads_the_base(zoo, tmp_path):
    group = zarr.open_group(tmp_path / "zoo", mode="r")
    bits = np.asarray(group["base/frozen"])
    assert (bits.dtype, group["base/frozen"].attrs["dtype"]) == (np.uint16, "bfloat16")
    np.testing.assert_array_equal(bits, Odd().frozen.detach().view(torch.int16).numpy().view(np.uint16))
    np.testing.assert_array_equal(group["base/order"], np.arange(8)[::-1])
    assert group["base/gain"][()] == 0.5
    with zipfile_of(tmp_path / "zoo", tmp_path / "zoo.zip") as store:
        assert Zoo.open(store).base.keys() == zoo.base.keys()


def zipfile_of(folder, path):
    import shutil

    shutil.make_archive(str(path.with_suffix("")), "zip", folder)
    return ZipStore(path, mode="r")


def test_another_base_is_refused_in_a_line(zoo, tmp_path):
    with pytest.raises(SettingsMismatchError, match=r"^the zoo [^\n]* holds networks on the base sha256:[^\n]*$"):
        build_zoo(tmp_path / "zoo", task_of(lambda: Odd(seed=1)), **SETTINGS)
    with pytest.raises(ValueError, match="the base must have the hash"):
        ZooWriter.create(tmp_path / "other", zoo.spec, base={})
    with pytest.raises(ValueError, match="a base needs both its layout and its hash"):
        type(zoo.spec)(layout=zoo.layout, num_runs=1, num_snapshots=1)


def test_a_damaged_base_is_found_and_written_again(zoo, tmp_path):
    file = tmp_path / "zoo/base/frozen/c/0/0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    (finding,) = Zoo.open(tmp_path / "zoo").verify()
    assert finding.kind == "base"
    assert "base/frozen" in finding.message
    with pytest.raises(DamagedZooError, match="base/frozen"):
        Zoo.open(tmp_path / "zoo").state_dict(0, 0, merged=True)
    (tmp_path / "zoo/base/order/zarr.json").unlink()
    again = build_zoo(tmp_path / "zoo", task_of(Odd), **SETTINGS)
    assert again.verify() == []
    assert torch.equal(torch.from_numpy(again.params[:]), torch.from_numpy(zoo.params[:]))


def test_runs_are_added_on_the_same_base(zoo, tmp_path):
    with pytest.warns(UserWarning, match="was not full"):
        more = build_zoo(tmp_path / "zoo", task_of(Odd), **SETTINGS | {"num_runs": 4})
    assert more.verify() == []
    np.testing.assert_array_equal(more.params[:3], zoo.params[:])


def test_zoos_without_a_base_stay_of_version_1(tmp_path):
    zoo = build_zoo(tmp_path / "zoo", DIGITS, **SETTINGS)
    attributes = json.loads((tmp_path / "zoo/zarr.json").read_text())["attributes"]
    assert attributes["format_version"] == 1
    assert "base_hash" not in attributes
    assert "base" not in attributes["layout"]
    assert not (tmp_path / "zoo/base").exists()
    assert zoo.base == {}
    assert zoo.state_dict(0, 0, merged=True).keys() == zoo.state_dict(0, 0).keys()


def test_an_exported_adapter_says_its_base_and_a_merged_one_is_the_network(tmp_path):
    torch.manual_seed(0)
    base = MLP(64, (8,), 10)
    zoo = build_zoo(tmp_path / "zoo", task_of(lambda: adapt(base, rank=2)), **SETTINGS)
    zoo.export(0, -1, tmp_path / "part.safetensors")
    assert json.loads((tmp_path / "part.json").read_text())["base_hash"] == zoo.spec.base_hash
    adapted = adapt(base, rank=2)
    adapted.load_state_dict(zoo.state_dict(0, -1, merged=True))
    inputs = DIGITS.dataset.test.inputs[:9]
    torch.testing.assert_close(merge(adapted)(inputs), adapted(inputs))
