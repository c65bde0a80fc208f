import math
import os
import sys

import pytest

from zoo.building.executors import InProcess, LocalProcesses, RayExecutor, WorkerLostError

WORK = """
import os, signal
from pathlib import Path

class Work:
    '''Squares a number; the worker is killed when a number is in `lethal` and its attempts are fewer than `lives`.'''

    def __init__(self, folder, lethal=(), lives=1):
        self.folder, self.lethal, self.lives = folder, lethal, lives

    def __call__(self, number):
        attempts = len(list(Path(self.folder).glob(f"{number}.*")))
        Path(self.folder, f"{number}.{attempts}").touch()
        if number in self.lethal and attempts < self.lives:
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2, os.getpid()
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The class above, in a module that other processes can import."""
    (tmp_path / "lethal_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    import lethal_work

    yield lethal_work.Work
    del sys.modules["lethal_work"]


def test_in_process():
    assert list(InProcess().run(math.factorial, [3, 1, 4])) == [6, 1, 24]


def test_processes_go_on_when_a_worker_is_killed(tmp_path, work):
    executor = LocalProcesses(num_workers=1)
    results = list(executor.run(work(str(tmp_path), lethal=(2,)), [0, 1, 2, 3]))
    assert sorted(square for square, _ in results) == [0, 1, 4, 9]
    assert os.getpid() not in {pid for _, pid in results}


@pytest.mark.slow
def test_processes_give_up_when_workers_die_again_and_again(tmp_path, work):
    with pytest.raises(WorkerLostError, match="smaller block_size"):
        list(LocalProcesses(num_workers=1, max_retries=1).run(work(str(tmp_path), lethal=(0,), lives=9), [0]))
    assert len(list(tmp_path.glob("0.*"))) == 2


@pytest.mark.slow
def test_errors_reach_the_caller():
    with pytest.raises(ValueError, match="negative"):
        list(LocalProcesses(num_workers=1).run(math.factorial, [-1]))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="num_workers"):
        LocalProcesses(num_workers=0)


@pytest.mark.slow
def test_ray_repeats_tasks_whose_worker_died(tmp_path, work):
    ray = pytest.importorskip("ray")
    executor = RayExecutor(num_cpus=2, max_retries=1)
    results = list(executor.run(work(str(tmp_path), lethal=(2,)), [0, 1, 2, 3]))
    assert sorted(square for square, _ in results) == [0, 1, 4, 9]
    with pytest.raises(WorkerLostError, match="block_size"):
        list(executor.run(work(str(tmp_path), lethal=(5,), lives=9), [5]))
    with pytest.raises(ValueError, match="negative"):
        list(executor.run(math.factorial, [-1]))
    assert not ray.is_initialized()
