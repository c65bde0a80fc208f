import json
import os
import time

import pytest

from zoo.storage.locks import LockLostError, remove_locks, try_lock


def race(folder, block, wins):
    """Try to lock; whoever wins leaves a file and never lets go."""
    lock = try_lock(folder, block)
    if lock is not None:
        (wins / str(os.getpid())).touch()
        os._exit(0)  # without releasing


@pytest.mark.parametrize("is_stale", [False, True], ids=["free", "stale"])
def test_of_many_processes_one_gets_the_lock(tmp_path, forked, is_stale):
    wins = tmp_path / "wins"
    wins.mkdir()
    for block in range(3):
        if is_stale:
            forked(race, tmp_path / "locks", block, tmp_path / "wins")[0].join()
            next(wins.iterdir()).unlink()
        # the winner must live on until all have tried, or the next would rightly take over
        processes = forked(hold, tmp_path / "locks", block, wins, count=6)
        time.sleep(0.3)
        for process in processes:
            process.terminate()
            process.join()
        assert len(list(wins.iterdir())) == 1
        next(wins.iterdir()).unlink()


def hold(folder, block, wins):
    if try_lock(folder, block) is not None:
        (wins / str(os.getpid())).touch()
    time.sleep(10)


def test_a_held_lock_is_exclusive_and_a_released_one_free(tmp_path):
    lock = try_lock(tmp_path, 7)
    assert lock is not None
    assert try_lock(tmp_path, 7) is None
    assert try_lock(tmp_path, 8) is not None
    lock.release()
    lock.release()
    assert try_lock(tmp_path, 7) is not None


def test_a_lock_ends_with_its_context_even_by_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), try_lock(tmp_path, 0):
        raise RuntimeError("stop")
    assert try_lock(tmp_path, 0) is not None


def test_a_killed_process_loses_its_lock_at_once(tmp_path, forked):
    (tmp_path / "wins").mkdir()
    process = forked(hold, tmp_path / "locks", 0, tmp_path / "wins")[0]
    while not list((tmp_path / "wins").iterdir()):
        time.sleep(0.01)
    assert try_lock(tmp_path / "locks", 0) is None
    process.kill()
    process.join()
    assert try_lock(tmp_path / "locks", 0) is not None


def test_a_lock_of_another_machine_counts_until_it_expires(tmp_path):
    path = tmp_path / "0.0"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": 0}))
    assert try_lock(tmp_path, 0, expiry=60) is None
    os.utime(path, (time.time() - 61,) * 2)
    assert try_lock(tmp_path, 0, expiry=60) is not None


def test_a_lock_that_is_just_being_written_counts(tmp_path):
    (tmp_path / "0.0").touch()
    assert try_lock(tmp_path, 0) is None


def test_a_working_holder_keeps_its_lock_beyond_the_expiry(tmp_path):
    with try_lock(tmp_path, 0, expiry=0.3) as lock:
        for _ in range(6):
            time.sleep(0.1)
            assert try_lock(tmp_path, 0, expiry=0.3) is None
        lock.require_held()


def test_a_holder_that_stood_still_notices_that_it_lost_the_block(tmp_path):
    late = try_lock(tmp_path, 0)
    os.utime(late.path, (0, 0))  # as if it had not been touched for long
    current = try_lock(tmp_path, 0)
    with pytest.raises(LockLostError, match="block 0"):
        late.require_held()
    current.require_held()
    late.release()
    current.require_held()
    remove_locks(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
