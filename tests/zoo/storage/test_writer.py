import errno
import json
import os
import random
import resource
import signal
import time
import tracemalloc

import numpy as np
import pytest
import torch
import zarr

import zoo.storage.durable
import zoo.storage.shards
from zoo.networks.layout import ParamLayout
from zoo.settings import SettingsMismatchError
from zoo.storage.locks import LockLostError
from zoo.storage.schema import RunStatus, ZooFormatError, ZooSpec
from zoo.storage.writer import ZooWriteError, ZooWriter
from zoo.storage.zoo import Zoo


def test_a_zoo_is_continued_by_equal_settings_alone(tmp_path, toy):
    ZooWriter.create(tmp_path / "zoo", toy.spec())
    assert ZooWriter.create(tmp_path / "zoo", toy.spec()).pending_blocks() == [0, 1, 2]
    for changes, key in [
        ({"task_config": {"name": "toy", "hidden": [8]}}, r"task\.hidden"),
        ({"optimizer_config": {"name": "sgd", "lr": 0.1}}, r"optimizer\.name"),
        ({"num_runs": 9}, "num_runs"),
        ({"dtype": "float16"}, "dtype"),
        ({"seed": 4}, "seed"),
    ]:
        with pytest.raises(SettingsMismatchError, match=key):
            ZooWriter.create(tmp_path / "zoo", toy.spec(**changes))


def test_other_software_is_pointed_out(tmp_path, toy):
    ZooWriter.create(tmp_path / "zoo", toy.spec(software={"torch": "2.0"}))
    with pytest.warns(UserWarning, match=r"torch 2\.0 -> 2\.1"):
        ZooWriter.create(tmp_path / "zoo", toy.spec(software={"torch": "2.1"}))


def test_a_path_that_holds_something_else_is_left_alone(tmp_path, toy):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no zoo"):
        ZooWriter.create(tmp_path, toy.spec())
    with pytest.raises(FileExistsError, match="no zoo"):
        ZooWriter.create(tmp_path / "thesis.txt", toy.spec())
    assert os.listdir(tmp_path) == ["thesis.txt"]
    zarr.create_group(tmp_path / "foreign")
    with pytest.raises(ZooFormatError, match="weightfoundry-zoo"):
        ZooWriter.create(tmp_path / "foreign", toy.spec())


def test_a_path_below_a_file_is_refused(tmp_path, toy):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooWriteError, match="cannot create a zoo at"):
        ZooWriter.create(tmp_path / "file" / "zoo", toy.spec())


def test_an_empty_folder_may_become_a_zoo(tmp_path, toy):
    assert toy.fill(tmp_path).verify() == []


def test_nothing_to_open(tmp_path):
    with pytest.raises(FileNotFoundError, match="no zoo"):
        ZooWriter.open(tmp_path / "nothing")


def test_an_unwritable_path_is_named(toy):
    with pytest.raises(ZooWriteError, match="cannot create a zoo at /proc/zoo"):
        ZooWriter.create("/proc/zoo", toy.spec())


def test_changed_attributes_stop_the_writer(tmp_path, toy):
    toy.fill(tmp_path / "zoo")
    zarr.open_group(tmp_path / "zoo", mode="r+").attrs["seed"] = 4
    with pytest.raises(ZooFormatError, match="checksum"):
        ZooWriter.create(tmp_path / "zoo", toy.spec(seed=4))


def test_lost_metadata_of_arrays_is_written_anew(tmp_path, toy):
    toy.fill(tmp_path / "zoo")
    (tmp_path / "zoo/params/zarr.json").unlink()
    (tmp_path / "zoo/runs/seed/zarr.json").write_text("{}")
    assert {finding.kind for finding in Zoo.open(tmp_path / "zoo").verify()} == {"metadata"}
    ZooWriter.open(tmp_path / "zoo")
    assert Zoo.open(tmp_path / "zoo").verify() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": np.zeros((3, 3, 26))}, r"params must have shape \(4, 3, 26\)"),
        ({"params": np.zeros((4, 3, 25))}, r"got \(4, 3, 25\)"),
        ({"inner_step": np.zeros((4, 2), int)}, r"inner_step must have shape \(4, 3\)"),
        ({"inner_step": np.zeros((4, 3))}, "inner_step must hold integers"),
        ({"metrics": {"val_loss": np.zeros((4, 3))}}, "missing arrays .*val_error"),
        ({"runs": {"seed": np.arange(4), "lr": np.ones(4), "width": np.arange(4), "wd": np.ones(4)}}, "unknown .*wd"),
        ({"runs": {"seed": np.arange(4), "lr": np.ones(4)}}, "missing .*width"),
        ({"status": np.array([1, 1, 0, 1])}, "status must be"),
        ({"status": np.array([1, 1, 7, 1])}, "status must be"),
    ],
)
def test_a_block_that_does_not_fit_is_refused(tmp_path, toy, change, message):
    writer = ZooWriter.create(tmp_path / "zoo", toy.spec())
    with pytest.raises(ValueError, match=message):
        writer.write_block(0, **(toy.contents(writer.spec, 0) | change))
    assert writer.pending_blocks() == [0, 1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_only_diverged_runs_may_hold_numbers_that_are_not_finite(tmp_path, toy, bad):
    writer = ZooWriter.create(tmp_path / "zoo", toy.spec())
    contents = toy.contents(writer.spec, 1)
    contents["params"][2, 1, 7] = bad
    with pytest.raises(ValueError, match=r"run 6 .*not finite.*diverged"):
        writer.write_block(1, **contents)
    contents["status"][2] = RunStatus.DIVERGED
    writer.write_block(1, **contents)
    assert [finding.block for finding in Zoo.open(tmp_path / "zoo").verify()] == [0, 2]


def test_numbers_too_large_for_the_dtype_are_refused(tmp_path, toy):
    writer = ZooWriter.create(tmp_path / "zoo", toy.spec(dtype="float16"))
    contents = toy.contents(writer.spec, 0)
    contents["params"][3, 0, 0] = 1e5
    with pytest.raises(ValueError, match=r"run 3 .*too large for float16"):
        writer.write_block(0, **contents)


def test_a_block_committed_while_it_is_locked_leaves_no_lock(tmp_path, toy, monkeypatch):
    writer = ZooWriter.create(tmp_path / "zoo", toy.spec(num_runs=40))
    answers = iter([False, True])  # another process commits between the two questions
    monkeypatch.setattr(ZooWriter, "is_committed", lambda self, block: next(answers))
    assert writer.lock(0) is None
    assert not list((tmp_path / "zoo/runs/status/claims").iterdir())


def test_committed_blocks_are_not_locked_and_discarded_ones_are(tmp_path, toy):
    toy.fill(tmp_path / "zoo")
    writer = ZooWriter.open(tmp_path / "zoo")
    assert writer.lock(1) is None
    writer.discard_block(1)
    assert writer.pending_blocks() == [1]
    with writer.lock(1) as lock:
        assert writer.lock(1) is None
        writer.write_block(1, **toy.contents(writer.spec, 1), lock=lock)
    assert Zoo.open(tmp_path / "zoo").verify() == []


def test_a_builder_that_lost_its_block_does_not_commit_it(tmp_path, toy):
    writer = ZooWriter.create(tmp_path / "zoo", toy.spec())
    late = writer.lock(0)
    os.utime(late.path, (0, 0))
    assert writer.lock(0) is not None
    with pytest.raises(LockLostError):
        writer.write_block(0, **toy.contents(writer.spec, 0), lock=late)
    assert not writer.is_committed(0)


def test_a_damaged_marker_does_not_count(tmp_path, toy):
    toy.fill(tmp_path / "zoo")
    writer = ZooWriter.open(tmp_path / "zoo")
    marker = tmp_path / "zoo/runs/status/c/1"
    for content in (b"", b"\x01", marker.read_bytes()[:-1], b"\x00" + marker.read_bytes()[1:]):
        marker.write_bytes(content)
        assert writer.pending_blocks() == [1]


class FailAt:
    """Lets the n-th call of a function of the system fail."""

    def __init__(self, monkeypatch, name, n, action):
        self.calls = 0
        self.original = getattr(os, name)
        self.n, self.action = n, action
        monkeypatch.setattr(zoo.storage.durable.os, name, self)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.n:
            return self.action()
        return self.original(*args, **kwargs)


def disk_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_loses_nothing_at_any_moment(tmp_path, toy, monkeypatch):
    spec = toy.spec()
    writer = ZooWriter.create(tmp_path / "zoo", spec)
    writer.write_block(0, **toy.contents(spec, 0))
    n = 0
    while not writer.is_committed(1):  # it is once only the last fsync of all fails
        n += 1
        with monkeypatch.context() as patch:
            FailAt(patch, "fsync", n, disk_full)
            with pytest.raises(ZooWriteError, match=r"block 1 .*No space left.*same command again") as error:
                writer.write_block(1, **toy.contents(spec, 1))
        assert error.value.errno == errno.ENOSPC
        assert not list((tmp_path / "zoo").rglob("*.partial"))
        assert np.array_equal(Zoo.open(tmp_path / "zoo").params[:4], toy.contents(spec, 0)["params"])
    assert n > 10
    writer.write_block(1, **toy.contents(spec, 1))
    assert Zoo.open(tmp_path / "zoo").verify([0, 1]) == []


def test_a_quota_met_in_the_middle_of_a_shard_loses_nothing(tmp_path, toy, forked):
    spec = toy.spec(num_runs=64, block_size=32)
    writer = ZooWriter.create(tmp_path / "zoo", spec)
    writer.write_block(0, **toy.contents(spec, 0))

    def write_within_quota():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            writer.write_block(1, **toy.contents(spec, 1))
        except ZooWriteError:
            os._exit(7)

    process = forked(write_within_quota)[0]
    process.join()
    assert process.exitcode == 7
    assert writer.pending_blocks() == [1]
    assert not list((tmp_path / "zoo").rglob("*.partial"))
    assert toy.fill(tmp_path / "zoo", spec).verify() == []


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(path, spec, contents, n):
    """Write block 1, but be killed at the n-th use of the disk."""
    monkeypatch = pytest.MonkeyPatch()
    counter = FailAt(monkeypatch, "fsync", n, die)
    monkeypatch.setattr(zoo.storage.durable.os, "replace", _counted(counter, os.replace))
    ZooWriter.open(path).write_block(1, **contents)
    os._exit(0)


def _counted(counter, function):
    def call(*args):
        counter.calls += 1
        if counter.calls == counter.n:
            counter.action()
        return function(*args)

    return call


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_uses_of_the_disk(tmp_path, toy, forked, bytes_of, stride):
    """Nothing that was committed is lost, and the resumed zoo is that of an undisturbed build, bit for bit."""
    spec = toy.spec()
    toy.fill(tmp_path / "undisturbed", spec)
    want = bytes_of(tmp_path / "undisturbed")
    writer = ZooWriter.create(tmp_path / "zoo", spec)
    writer.write_block(0, **toy.contents(spec, 0))
    n, exit_code = 1 - stride, -signal.SIGKILL
    while exit_code == -signal.SIGKILL:
        n += stride
        writer.discard_block(1)
        process = forked(write_and_die, tmp_path / "zoo", spec, toy.contents(spec, 1), n)[0]
        process.join()
        exit_code = process.exitcode
        assert writer.is_committed(0)
        kinds = {finding.kind for finding in Zoo.open(tmp_path / "zoo").verify([0, 1])}
        assert kinds <= {"empty"}
    assert exit_code == 0
    assert n > 20
    toy.fill(tmp_path / "zoo", spec)
    assert bytes_of(tmp_path / "zoo") == want
    assert not list((tmp_path / "zoo").rglob("*.partial"))


def build_and_exit(toy, path, spec):
    writer = ZooWriter.create(path, spec)
    for block in writer.pending_blocks():
        with writer.lock(block) as lock:
            writer.write_block(block, **toy.contents(spec, block), lock=lock)
    os._exit(0)


def kill_at_random(toy, tmp_path, forked, bytes_of, *, num_kills):
    spec = toy.spec(num_runs=48)
    started = time.monotonic()
    toy.fill(tmp_path / "undisturbed", spec)
    duration = time.monotonic() - started
    want = bytes_of(tmp_path / "undisturbed")
    rng = random.Random(0)
    path = tmp_path / "zoo"
    committed, kills, finished = set(), 0, 0
    while kills < num_kills:
        process = forked(build_and_exit, toy, path, spec)[0]
        process.join(rng.uniform(0, duration / 2))
        kills += process.is_alive()
        process.kill()
        process.join()
        if not path.exists():
            continue
        before, committed = committed, set(range(spec.num_blocks)) - set(ZooWriter.open(path).pending_blocks())
        assert before <= committed
        found = bytes_of(path)
        assert all(found[f"params/c/{block}/0/0"] == want[f"params/c/{block}/0/0"] for block in committed)
        if len(committed) == spec.num_blocks:  # begin again, until there were enough kills
            assert found == want
            finished += 1
            committed = set()
            path.rename(tmp_path / f"finished {finished}")
    for lock in path.rglob("claims/*"):  # one killed before it could sign its lock leaves that until it expires
        os.utime(lock, (0, 0))
    toy.fill(path, spec)
    assert bytes_of(path) == want
    assert Zoo.open(path).verify() == []


def test_killed_at_random_moments(toy, tmp_path, forked, bytes_of):
    kill_at_random(toy, tmp_path, forked, bytes_of, num_kills=4)


@pytest.mark.slow
def test_killed_at_many_random_moments(toy, tmp_path, forked, bytes_of):
    kill_at_random(toy, tmp_path, forked, bytes_of, num_kills=60)


def test_several_writers_share_the_work(toy, tmp_path, forked, bytes_of):
    spec = toy.spec(num_runs=40)
    toy.fill(tmp_path / "undisturbed", spec)
    for process in forked(toy.fill, tmp_path / "zoo", spec, count=3):  # all create it, one is first
        process.join()
        assert process.exitcode == 0
    assert bytes_of(tmp_path / "zoo") == bytes_of(tmp_path / "undisturbed")
    assert not list((tmp_path / "zoo/runs/status/claims").iterdir())


def test_runs_are_added_to_a_finished_zoo(tmp_path, toy):
    toy.fill(tmp_path / "zoo", toy.spec(num_runs=8))
    before = Zoo.open(tmp_path / "zoo")
    zarr.open_group(tmp_path / "zoo", mode="r+").attrs["note"] = "mine"
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "zoo").rglob("c/**/*") if file.is_file()}
    writer = ZooWriter.create(tmp_path / "zoo", toy.spec(num_runs=10))
    assert writer.pending_blocks() == [2]
    assert before.params[:].shape[0] == 8
    writer.write_block(2, **toy.contents(writer.spec, 2))
    zoo = Zoo.open(tmp_path / "zoo")
    assert zoo.verify() == []
    assert zoo.attributes["note"] == "mine"
    assert np.array_equal(zoo.params[:], toy.params(toy.spec()))
    assert np.array_equal(zoo.params[:8], before.params[:])
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    with pytest.raises(SettingsMismatchError, match="num_runs: begun with 10, now 8"):
        ZooWriter.create(tmp_path / "zoo", toy.spec(num_runs=8))


def test_a_block_that_was_not_full_is_written_again_with_the_runs_added(tmp_path, toy):
    toy.fill(tmp_path / "zoo", toy.spec(num_runs=6))
    with pytest.warns(UserWarning, match=r"block 1 \(runs 4 to 5\) .* was not full: its runs are computed again"):
        writer = ZooWriter.create(tmp_path / "zoo", toy.spec(num_runs=10))
    assert writer.pending_blocks() == [1, 2]
    zoo = Zoo.open(tmp_path / "zoo")
    assert zoo.usable_runs().tolist() == [0, 1, 2, 3]
    assert [finding.kind for finding in zoo.verify()] == ["empty", "empty"]
    assert [list(runs) for runs, _ in zoo.blocks()] == [[0, 1, 2, 3]]
    for block in (1, 2):
        writer.write_block(block, **toy.contents(writer.spec, block))
    assert Zoo.open(tmp_path / "zoo").verify() == []


def test_an_extension_that_was_cut_short_is_finished(tmp_path, toy):
    toy.fill(tmp_path / "zoo", toy.spec(num_runs=8))
    file = tmp_path / "zoo/zarr.json"
    content = json.loads(file.read_text())
    content["attributes"] |= toy.spec().to_attributes()  # and the metadata of the arrays are as before
    file.write_text(json.dumps(content))
    zoo = toy.fill(tmp_path / "zoo")
    assert zoo.verify() == []
    assert np.array_equal(zoo.params[:], toy.params(toy.spec()))


def test_memory_is_bounded_by_a_portion_and_bytes_are_those_of_one(tmp_path, monkeypatch):
    spec = ZooSpec(
        layout=ParamLayout.of(torch.nn.Linear(1249, 100)),
        num_runs=2,
        snapshot_steps=range(20),
        block_size=2,
        metric_names=(),
    )
    params = np.random.default_rng(0).normal(size=spec.shape).astype(np.float32)  # 20 MB
    steps, status = np.tile(np.arange(20), (2, 1)), np.full(2, RunStatus.COMPLETE)
    content, peaks = [], []
    for nbytes in (2**26, 2**19):
        monkeypatch.setattr(zoo.storage.shards, "_PORTION_NBYTES", nbytes)
        writer = ZooWriter.create(tmp_path / str(nbytes), spec)
        tracemalloc.start()
        writer.write_block(0, params, steps, {}, {"seed": np.arange(2)}, status)
        assert Zoo.open(writer.path).verify() == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        content.append((writer.path / "params/c/0/0/0").read_bytes())
    assert content[0] == content[1]
    assert peaks[1] < params.nbytes / 2 < peaks[0]
