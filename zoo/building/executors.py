"""Where the blocks of a zoo are built: in this process, in local processes, or on a Ray cluster.

An executor only calls a function for each block and hands back what it returns. That the function may be called twice
for one block, or its process killed, is harmless: blocks are locked and committed in the store.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import torch

from zoo.lazy import needs

Result = TypeVar("Result")

_LONG_BUILD: Final = 2**20  # model-steps, a quarter of a minute: several times what processes take to start


class WorkerLostError(RuntimeError):
    """Workers died again and again, for instance because memory ran out."""


class Executor(Protocol):
    """Calls a function for each block."""

    def run(self, build: Callable[[int], Result], blocks: Sequence[int]) -> Iterator[Result]:
        """Results as they come, in any order; an exception of `build` is raised here.

        Args:
            build: to call with a block; it must be picklable unless the executor is InProcess.
            blocks: at least one.

        Raises:
            WorkerLostError: if workers die more often than the executor retries.
        """
        ...


@dataclass(frozen=True)
class InProcess:
    """One block after the other, in this process."""

    def run(self, build: Callable[[int], Result], blocks: Sequence[int]) -> Iterator[Result]:
        yield from map(build, blocks)


@dataclass(frozen=True, kw_only=True)
class LocalProcesses:
    """Several fresh processes on this machine, each with its share of the cores.

    The main module of a script that uses it must be guarded by `if __name__ == "__main__":`.

    Args:
        num_workers: processes; None for one per core.
        max_retries: how often in a row lost workers are replaced without a block being finished in between.
    """

    num_workers: int | None = None
    max_retries: int = 3

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers must be positive, got {self.num_workers}")

    def run(self, build: Callable[[int], Result], blocks: Sequence[int]) -> Iterator[Result]:
        remaining = list(blocks)
        failures = 0
        while remaining:
            try:
                for block, result in self._run_pool(build, remaining):
                    remaining.remove(block)
                    failures = 0
                    yield result
            except BrokenProcessPool as error:
                failures += 1
                if failures > self.max_retries:
                    raise WorkerLostError(
                        f"worker processes were killed {failures} times in a row; is memory short? "
                        "Try fewer workers or a smaller block_size"
                    ) from error

    def _run_pool(self, build: Callable[[int], Result], blocks: list[int]) -> Iterator[tuple[int, Result]]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(self.num_workers or cores, len(blocks))
        pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin_worker,
            initargs=(max(1, cores // workers),),
        )
        try:
            futures = {pool.submit(build, block): block for block in blocks}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def default_executor(device: torch.device, model_steps: int) -> Executor:
    """What commands build with unless told: processes of one thread each for long builds on a CPU, else this process.

    A step of small networks is many short parallel regions, at the end of each of which threads wait for each other:
    on two idle cores two processes take two thirds of the time of two threads, beside a busy process less than a third.

    Args:
        device: of the task.
        model_steps: training steps over all runs.
    """
    return LocalProcesses() if device.type == "cpu" and model_steps >= _LONG_BUILD else InProcess()


@dataclass(frozen=True, kw_only=True)
class RayExecutor:
    """Tasks on a Ray cluster, whose machines must share the zoo's folder. Needs the extra `ray`.

    Args:
        address: of a running cluster ("auto" or host:port); None starts one on this machine, if none is connected.
        num_cpus: cores of the cluster that is started; None for all.
        cpus_per_block, gpus_per_block: resources of one task; fractions are possible.
        max_retries: how often Ray repeats a task whose worker died.
    """

    address: str | None = None
    num_cpus: int | None = None
    cpus_per_block: float = 1
    gpus_per_block: float = 0
    max_retries: int = 3

    def run(self, build: Callable[[int], Result], blocks: Sequence[int]) -> Iterator[Result]:
        with needs("the Ray executor is of ray", "'weightfoundry[ray]'"):
            import ray
        started = not ray.is_initialized()
        if started:
            ray.init(address=self.address, num_cpus=self.num_cpus, log_to_driver=False)
        try:
            remote = ray.remote(
                num_cpus=self.cpus_per_block, num_gpus=self.gpus_per_block, max_retries=self.max_retries
            )
            task = remote(build_with_threads)
            shared = ray.put(build)
            waiting = [task.remote(shared, block, max(1, int(self.cpus_per_block))) for block in blocks]
            while waiting:
                done, waiting = ray.wait(waiting, num_returns=1)
                yield ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            raise WorkerLostError(
                f"a worker died {self.max_retries + 1} times on one block; is memory short? Try a smaller block_size"
            ) from error
        finally:
            if started:
                ray.shutdown()


def build_with_threads(build: Callable[[int], Result], block: int, num_threads: int) -> Result:
    """Call `build` with that many threads for PyTorch; what a worker of a cluster runs."""
    torch.set_num_threads(num_threads)
    return build(block)


def _begin_worker(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C reaches all; one traceback less per worker
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is gone: nobody else would tell it to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
