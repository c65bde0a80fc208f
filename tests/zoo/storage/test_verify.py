import json
import shutil

import numpy as np
import pytest
import zarr

import zoo.storage.writer
from zoo.building.build import discard_damaged_blocks
from zoo.storage.schema import RunStatus
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import Zoo


@pytest.fixture(scope="module")
def sound(tmp_path_factory, toy):
    path = tmp_path_factory.mktemp("verify") / "sound"
    toy.fill(path)
    return path


@pytest.fixture
def path(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "zoo")


def flip(file, position, bit):
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


def files_of_block(path, block):
    return [
        file for file in sorted(path.rglob(f"c/{block}*/**/*")) + sorted(path.rglob(f"c/{block}")) if file.is_file()
    ]


def test_a_sound_zoo_has_no_findings(path):
    assert Zoo.open(path).verify() == []


def test_a_flipped_bit_anywhere_in_a_shard_is_found(path):
    zoo = Zoo.open(path)
    shard = path / "params/c/1/0/0"
    size = shard.stat().st_size
    rng = np.random.default_rng(0)
    index = range(size - 4 * 3 * 16 - 4, size)
    for position in [0, *rng.integers(0, size, 30).tolist(), *index[::7], size - 1]:
        bit = int(rng.integers(8))
        flip(shard, position, bit)
        findings = zoo.verify([1])
        assert [(finding.block, finding.kind) for finding in findings] == [(1, "shard")], position
        assert "runs 4 to 7" in findings[0].message
        assert "build again" in findings[0].message
        flip(shard, position, bit)
    assert zoo.verify() == []


def test_a_flipped_bit_in_any_other_file_of_a_block_is_found(path):
    zoo = Zoo.open(path)
    rng = np.random.default_rng(0)
    files = files_of_block(path, 2)
    assert len(files) == 9
    for file in files:
        for position in rng.integers(0, file.stat().st_size, 5).tolist():
            flip(file, position, 3)
            assert {finding.block for finding in zoo.verify([2])} == {2}, file
            flip(file, position, 3)


@pytest.mark.parametrize("content", [b"", b"\1\2\3", b"\0" * 5000], ids=["empty", "short", "zeros"])
def test_a_file_of_other_contents_is_found(path, content):
    for file in files_of_block(path, 1):
        original = file.read_bytes()
        file.write_bytes(content)
        findings = Zoo.open(path).verify([1])
        assert {finding.block for finding in findings} == {1}, file
        assert all("uild again" in finding.message for finding in findings)
        file.write_bytes(original)


def test_a_missing_file_is_found(path):
    for file in files_of_block(path, 0):
        content = file.read_bytes()
        file.unlink()
        findings = Zoo.open(path).verify()
        assert {finding.block for finding in findings} == {0}, file
        assert all("build again" in finding.message for finding in findings)
        file.write_bytes(content)


@pytest.mark.parametrize("length", [0, 3, 200, -1])
def test_a_truncated_shard_is_found(path, length):
    shard = path / "params/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:length])
    findings = Zoo.open(path).verify()
    assert [(finding.block, finding.kind) for finding in findings] == [(0, "shard")]
    assert "truncated" in findings[0].message


def test_a_shard_that_cannot_be_opened_is_found(path):
    shard = path / "params/c/1/0/0"
    shard.unlink()
    shard.mkdir()
    (finding,) = Zoo.open(path).verify()
    assert (finding.block, finding.kind) == (1, "shard")
    assert "cannot be read: [Errno 21] Is a directory" in finding.message


def test_a_lengthened_shard_is_found(path):
    shard = path / "params/c/0/0/0"
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert [finding.kind for finding in Zoo.open(path).verify()] == ["shard"]


def test_exchanged_shards_are_found(path):
    shards = [path / f"params/c/{block}/0/0" for block in (0, 1)]
    contents = [shard.read_bytes() for shard in shards]
    for shard, content in zip(shards, reversed(contents), strict=True):
        shard.write_bytes(content)
    assert {(finding.block, finding.kind) for finding in Zoo.open(path).verify()} == {(0, "checksum"), (1, "checksum")}


def test_changed_numbers_are_found_though_zarr_wrote_good_checksums(path):
    group = zarr.open_group(path, mode="r+")
    group["metrics/val_loss"][5, 1] = 0.5
    findings = Zoo.open(path).verify()
    assert [(finding.block, finding.kind) for finding in findings] == [(1, "checksum")]
    assert "run 5" in findings[0].message


def test_nan_in_a_complete_run_is_found(path, toy, monkeypatch):
    writer = ZooWriter.open(path)
    contents = toy.contents(writer.spec, 1)
    contents["params"][3, 0, 4] = np.nan
    monkeypatch.setattr(zoo.storage.writer, "is_finite", lambda stored, dtype: np.ones_like(stored, bool))
    writer.write_block(1, **contents)
    findings = Zoo.open(path).verify()
    assert [(finding.block, finding.kind) for finding in findings] == [(1, "not finite")]
    assert "run 7" in findings[0].message
    contents["status"][3] = RunStatus.DIVERGED
    writer.write_block(1, **contents)
    assert Zoo.open(path).verify() == []


def test_blocks_that_were_not_built_are_named(path):
    ZooWriter.open(path).discard_block(1)
    findings = Zoo.open(path).verify()
    assert [(finding.block, finding.kind) for finding in findings] == [(1, "empty")]
    assert "finish" in str(findings[0])


def test_a_layout_that_does_not_fit_is_found(path):
    root = json.loads((path / "zarr.json").read_text())
    slot = root["attributes"]["layout"]["slots"][-1]
    slot["shape"] = [slot["shape"][0] + 1]
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.warns(UserWarning, match="were changed; verify"):
        findings = Zoo.open(path).verify()
    assert {finding.kind for finding in findings} == {"attributes", "metadata"}
    assert any("shape of array params must be (10, 3, 27)" in finding.message for finding in findings)
    assert any("restore" in finding.message for finding in findings)


def test_an_array_of_another_shape_is_found(path):
    metadata = json.loads((path / "inner_step/zarr.json").read_text())
    metadata["shape"] = [9, 3]
    (path / "inner_step/zarr.json").write_text(json.dumps(metadata))
    findings = Zoo.open(path).verify()
    assert [finding.kind for finding in findings] == ["metadata"]
    assert "inner_step" in findings[0].message


def test_attributes_that_vanish_are_found(path):
    zoo = Zoo.open(path)
    (path / "zarr.json").write_text("{")
    assert [finding.kind for finding in zoo.verify()] == ["attributes"]


def test_only_damaged_and_missing_blocks_are_made_anew(path, sound, toy, bytes_of):
    flip(path / "params/c/0/0/0", 100, 0)
    (path / "runs/status/c/2").unlink()
    intact = (path / "params/c/1/0/0").stat()
    writer = ZooWriter.create(path, toy.spec())
    assert discard_damaged_blocks(writer) == [0]
    assert writer.pending_blocks() == [0, 2]
    assert toy.fill(path).verify() == []
    assert bytes_of(path) == bytes_of(sound)
    assert (path / "params/c/1/0/0").stat().st_mtime_ns == intact.st_mtime_ns


@pytest.mark.parametrize("name", ["metrics", "runs"])
def test_a_group_without_metadata_is_found_and_made_anew(path, name):
    (path / name / "zarr.json").unlink()
    assert [finding.kind for finding in Zoo.open(path).verify()] == ["metadata"]
    ZooWriter.open(path)
    assert Zoo.open(path).verify() == []
