import json
import pickle
import zipfile

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from zarr.storage import LocalStore, MemoryStore, ZipStore

from zoo.networks.architectures import MLP
from zoo.storage.schema import RunStatus, ZooFormatError
from zoo.storage.splits import SplitRule
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import DamagedZooError, Zoo


@pytest.fixture(scope="module")
def path(tmp_path_factory, toy):
    path = tmp_path_factory.mktemp("store") / "zoo"
    toy.fill(path)
    return path


@pytest.fixture
def zoo(path):
    return Zoo.open(path)


@pytest.fixture(scope="module")
def want(toy):
    return toy.params(toy.spec())


def test_what_was_written_is_read(zoo, toy, want):
    assert np.array_equal(zoo.params[:], want)
    blocks = [toy.contents(zoo.spec, block) for block in range(3)]
    assert np.array_equal(zoo.inner_step, np.concatenate([block["inner_step"] for block in blocks]))
    for name in zoo.spec.metric_names:
        assert np.array_equal(zoo.metric(name), np.concatenate([block["metrics"][name] for block in blocks]))
    for name in ("seed", "lr", "width"):
        assert np.array_equal(zoo.runs[name], np.concatenate([block["runs"][name] for block in blocks]))
    assert (zoo.status == RunStatus.COMPLETE).all()
    assert (zoo.num_runs, zoo.num_snapshots, zoo.num_blocks) == (10, 3, 3)
    assert zoo.task_config == {"name": "toy", "hidden": [4]}


def test_the_parameters_are_an_array(zoo, want):
    assert len(zoo.params) == 10
    assert zoo.params.ndim == 3
    assert np.array_equal(np.asarray(zoo.params), want)
    assert np.array(zoo.params, dtype=np.float64).dtype == np.float64
    assert np.isclose(np.mean(zoo.params), want.mean())
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(zoo.params, want, strict=True))
    with pytest.raises(ValueError, match="copy=False"):
        np.array(zoo.params, copy=False)


RUNS, PAIRS = np.arange(10) % 3 == 0, np.arange(30).reshape(10, 3) % 4 == 0


@pytest.mark.parametrize(
    "key",
    [
        *(np.int64(-1), (np.int32(2), np.uint8(1)), (-3, -1), (slice(2, None, 3), slice(None, None, -1))),
        *([], ([], -1), [1, -2], ([4, 0, 4], 1), (np.array([1, 2]), np.array([0, 2])), np.array(5)),
        *(RUNS, (RUNS, -1), RUNS.tolist(), PAIRS, (PAIRS, slice(3, 5)), (PAIRS, 4), (slice(None), [True, False, True])),
        *((..., 3), (2, ...), (slice(None), slice(None), [1, 5]), (slice(None), slice(None), np.arange(26) > 20)),
    ],
    ids=str,
)
def test_they_are_indexed_as_in_numpy(zoo, want, key):
    assert np.array_equal(zoo.params[key], want[key])
    if isinstance(key, np.ndarray):
        assert np.array_equal(zoo.params[torch.from_numpy(key)], want[key])


@pytest.mark.parametrize(
    "key",
    [None, (None, 0, 0), True, (0, False), 1.0, "0", 10, (0, -4), (0, 0, 26), [10], (0, 0, 0, 0), RUNS[:9]],
    ids=str,
)
def test_what_is_no_index_is_refused(zoo, key):
    with pytest.raises(IndexError):
        zoo.params[key]


def test_networks_are_counted_from_either_end(zoo, want, tmp_path):
    for run, snapshot in [(-1, -1), (np.int64(9), np.int64(2)), (torch.tensor(9), 2)]:
        assert torch.equal(zoo.layout.flatten(zoo.state_dict(run, snapshot)), torch.from_numpy(want[9, 2]))
        zoo.export(run, snapshot, tmp_path / "new/folder/net.safetensors")
        assert json.loads((tmp_path / "new/folder/net.json").read_text())["run"]["seed"] == 1009
    for run, snapshot in [(10, 0), (-11, 0), (0, 3), (0, -4)]:
        with pytest.raises(IndexError, match="must be in 0"):
            zoo.state_dict(run, snapshot)
    for run in (True, 1.0, None, slice(2)):
        with pytest.raises(TypeError):
            zoo.export(run, 0, tmp_path / "x.safetensors")
    assert np.array_equal(zoo.read([(-1, -3), (0, -1), (2, 1)]), want[[9, 0, 2], [0, 2, 1]])
    assert zoo.read([]).shape == (0, zoo.layout.num_params)


def test_an_export_that_cannot_be_written_says_where(zoo, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file/net\.safetensors"):
        zoo.export(0, 0, tmp_path / "file/net.safetensors")


@pytest.mark.parametrize("as_store", [False, True])
def test_a_relative_path_outlives_a_change_of_folder(path, want, tmp_path, monkeypatch, as_store):
    monkeypatch.chdir(path.parent)
    zoo = Zoo.open(LocalStore(path.name, read_only=True) if as_store else path.name)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(zoo.params[7], want[7])
    assert zoo.metric("val_loss").shape == (10, 3)
    assert zoo.verify() == []


def test_a_writer_outlives_a_change_of_folder(tmp_path, toy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = ZooWriter.create("zoo", toy.spec(num_runs=np.int64(4)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    writer.write_block(0, **toy.contents(writer.spec, 0))
    assert Zoo.open(tmp_path / "zoo").verify() == []


def test_plain_zarr_reads_the_same(path, zoo, want):
    group = zarr.open_group(path, mode="r")
    assert np.array_equal(group["params"][...], want)
    assert np.array_equal(group["metrics/val_loss"][...], zoo.metric("val_loss"))
    assert np.array_equal(group["runs/seed"][...], np.arange(1000, 1010))
    assert group.attrs["format"] == "weightfoundry-zoo"
    assert group.attrs["format_version"] == 1
    assert sorted(name for name, _ in group.members()) == ["inner_step", "metrics", "params", "runs"]


def test_tensorstore_reads_the_same(path, want):
    store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/params/"}}
    array = tensorstore.open(store, read=True).result()
    assert array.domain.labels == ("run", "snapshot", "param")
    assert np.array_equal(array.read().result(), want)
    assert np.array_equal(array[7, 1].read().result(), want[7, 1])


def test_a_shard_that_another_library_wrote_is_read_too(tmp_path, toy, want):
    toy.fill(tmp_path / "zoo")
    before = (tmp_path / "zoo/params/c/0/0/0").read_bytes()
    params = zarr.open_group(tmp_path / "zoo", mode="r+")["params"]
    params[...] = want  # zarr-python puts the chunks of a shard in another order
    assert (tmp_path / "zoo/params/c/0/0/0").read_bytes() != before
    again = Zoo.open(tmp_path / "zoo")
    assert np.array_equal(again.params[:], want)
    assert again.verify() == []


def test_random_pairs(zoo, want):
    pairs = np.random.default_rng(0).integers(0, [10, 3], (50, 2))
    assert np.array_equal(zoo.read(pairs), want[pairs[:, 0], pairs[:, 1]])
    assert np.array_equal(zoo.read(torch.from_numpy(pairs)), zoo.read(pairs.tolist()))
    assert zoo.read([]).shape == (0, 26)
    assert zoo.read(pairs).flags.c_contiguous
    assert zoo.read(pairs).flags.writeable


@pytest.mark.parametrize(
    "key",
    [
        3,
        -1,
        (2, 1),
        (-1, -1),
        (slice(2, 7), 0),
        (slice(None, None, 3), slice(1, None)),
        ([1, 5, 1], [0, 2, 2]),
        (np.arange(10) % 2 == 0),
        (4, slice(None), slice(3, 9)),
        (Ellipsis, 2, 1),
        (slice(1, 3), 2, 5),
    ],
    ids=str,
)
def test_params_are_indexed_like_an_array(zoo, want, key):
    assert np.array_equal(zoo.params[key], want[key])


@pytest.mark.parametrize("key", [(..., 0), (1, ...), (..., 2, slice(None)), (..., slice(1, 3), [0, 2])])
def test_an_ellipsis_stands_for_what_is_missing(zoo, want, key):
    assert np.array_equal(zoo.params[key], want[key])


@pytest.mark.parametrize("key", [([0, 1], [1, 2], [0, 1]), (0, slice(None), [0, 1]), (0, 0, 0, 0), (..., ...)])
def test_indices_that_would_mean_something_else_are_refused(zoo, key):
    with pytest.raises(IndexError, match="index"):
        zoo.params[key]


@pytest.mark.parametrize("pairs", [[[10, 0]], [[0, 3]], [[-11, 0]], [[0, -4]], [[0, 0, 0]], [0, 1], [[0.5, 1.0]]])
def test_impossible_pairs_are_refused(zoo, pairs):
    with pytest.raises(IndexError, match="pairs must"):
        zoo.read(pairs)


def test_unknown_names_list_the_known_ones(zoo):
    with pytest.raises(KeyError, match="val_error"):
        zoo.metric("nonsense")
    with pytest.raises(KeyError, match="train"):
        zoo.split("nonsense")


def test_a_scan_sees_every_run(zoo, want):
    runs, params = zip(*zoo.blocks(), strict=True)
    assert [run for part in runs for run in part] == list(range(10))
    assert np.array_equal(np.concatenate(params), want)


def test_state_dict_loads(zoo, want):
    model = MLP(3, (4,), 2)
    model.load_state_dict(zoo.state_dict(6, 2))
    assert np.array_equal(zoo.layout.flatten(model), want[6, 2])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_dtypes_round_to_nearest(tmp_path, toy, want, dtype):
    zoo = toy.fill(tmp_path / "zoo", toy.spec(dtype=dtype))
    rounded = torch.from_numpy(want).to(getattr(torch, dtype))
    assert np.array_equal(zoo.params[:], rounded.float())
    assert zoo.params[:].dtype == np.float32
    plain = zarr.open_group(tmp_path / "zoo", mode="r")["params"]
    assert plain.attrs["dtype"] == dtype
    stored = torch.from_numpy(plain[...])
    assert torch.equal(stored.view(getattr(torch, dtype)), rounded)
    assert zoo.verify() == []


def test_runs_with_fewer_snapshots(tmp_path, toy):
    spec = toy.spec(num_snapshots=3)
    writer = ZooWriter.create(tmp_path / "zoo", spec)
    for block in range(3):
        contents = toy.contents(spec, block, status=RunStatus.IMPORTED)
        contents["inner_step"][:2, 2] = -1
        contents["params"][:2, 2] = np.nan
        writer.write_block(block, **contents)
    zoo = Zoo.open(tmp_path / "zoo")
    assert zoo.verify() == []
    assert np.isnan(zoo.params[[0, 1, 4, 5], 2]).all()
    assert np.isfinite(zoo.params[2:4]).all()
    assert np.isnan(zarr.open_group(tmp_path / "zoo")["params"][0, 2]).all()
    with pytest.raises(IndexError, match="no snapshot"):
        zoo.state_dict(0, 2)


def test_splits_do_not_depend_on_blocks_and_leave_out_what_failed(tmp_path, toy):
    splits = SplitRule({"train": 0.5, "test": 0.5})
    one = toy.fill(tmp_path / "one", toy.spec(num_runs=40, block_size=7, splits=splits))
    other = toy.fill(tmp_path / "other", toy.spec(num_runs=40, block_size=16, splits=splits))
    assert np.array_equal(one.split("train"), other.split("train"))
    assert sorted([*one.split("train"), *one.split("test")]) == list(range(40))
    spec = toy.spec(num_runs=40, block_size=40, splits=splits)
    writer = ZooWriter.create(tmp_path / "third", spec)
    contents = toy.contents(spec, 0)
    contents["status"][::2] = RunStatus.DIVERGED
    writer.write_block(0, **contents)
    third = Zoo.open(tmp_path / "third")
    assert third.split("train").tolist() == [run for run in one.split("train") if run % 2]
    assert np.array_equal(third.split("train", include_diverged=True), one.split("train"))


def test_splits_keep_equal_keys_together(tmp_path, toy):
    spec = toy.spec(num_runs=40, block_size=40, splits=SplitRule({"train": 0.5, "test": 0.5}, "width"))
    contents = toy.contents(spec, 0)
    contents["runs"]["width"] = np.arange(40) % 8
    ZooWriter.create(tmp_path / "zoo", spec).write_block(0, **contents)
    zoo = Zoo.open(tmp_path / "zoo")
    sides = [set(zoo.runs["width"][zoo.split(name)].tolist()) for name in ("train", "test")]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(range(8))


def test_runs_that_are_not_there_yet(tmp_path, toy):
    spec = toy.spec()
    writer = ZooWriter.create(tmp_path / "zoo", spec)
    writer.write_block(1, **toy.contents(spec, 1))
    zoo = Zoo.open(tmp_path / "zoo")
    assert np.array_equal(zoo.params[4:8], toy.contents(spec, 1)["params"])
    assert [list(runs) for runs, _ in zoo.blocks()] == [[4, 5, 6, 7]]
    assert zoo.usable_runs().tolist() == [4, 5, 6, 7]
    with pytest.raises(IndexError, match="run 2 is not there yet"):
        zoo.read([[5, 0], [2, 0]])


@pytest.mark.parametrize("kind", ["memory", "zip"])
def test_any_zarr_store_holds_a_zoo(path, tmp_path, bytes_of, want, kind):
    files = bytes_of(path)
    if kind == "memory":
        buffer = zarr.buffer.default_buffer_prototype().buffer
        store = MemoryStore({key: buffer.from_bytes(content) for key, content in files.items()})
    else:
        with zipfile.ZipFile(tmp_path / "zoo.zip", "w") as archive:
            for key, content in files.items():
                archive.writestr(key, content)
        store = ZipStore(tmp_path / "zoo.zip", mode="r")
    zoo = Zoo.open(store)
    assert np.array_equal(zoo.params[:], want)
    assert zoo.verify() == []


def test_a_zoo_can_be_sent_to_another_process(zoo, want):
    zoo.read([[0, 0]])
    again = pickle.loads(pickle.dumps(zoo))
    assert np.array_equal(again.params[:], want)


def test_a_flipped_bit_is_never_returned(tmp_path, toy):
    zoo = toy.fill(tmp_path / "zoo")
    shard = tmp_path / "zoo/params/c/1/0/0"
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedZooError, match=r"block 1 \(runs 4 to 7\).*build again"):
        zoo.params[4:8]
    chunk = tmp_path / "zoo/metrics/val_loss/c/0/0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(DamagedZooError, match="val_loss"):
        zoo.metric("val_loss")


def test_what_is_no_zoo_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        Zoo.open(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no Zarr group"):
        Zoo.open(tmp_path)
    zarr.create_group(tmp_path / "foreign", attributes={"title": "weather"})
    with pytest.raises(ZooFormatError, match="weightfoundry-zoo"):
        Zoo.open(tmp_path / "foreign")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"zarr_format": 3}', b'{"attributes": {}}', b"\xff\xfe"])
def test_a_damaged_root_is_refused(tmp_path, toy, content):
    toy.fill(tmp_path / "zoo")
    (tmp_path / "zoo/zarr.json").write_bytes(content)
    with pytest.raises((ZooFormatError, FileNotFoundError)):
        Zoo.open(tmp_path / "zoo")
    with pytest.raises(ZooFormatError):
        ZooWriter.open(tmp_path / "zoo")


def test_export_writes_what_load_state_dict_takes(zoo, tmp_path, want):
    from safetensors.torch import load_file

    zoo.export(3, 1, tmp_path / "network.safetensors")
    assert np.array_equal(zoo.layout.flatten(load_file(tmp_path / "network.safetensors")), want[3, 1])
