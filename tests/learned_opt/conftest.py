"""Two processes for all tests that need ranks: to start them takes longer than most of what they do."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from os import _exit

import pytest
import torch


@pytest.fixture(scope="session")
def two_ranks():
    """Runs `function(rank, *arguments)` in both at once and returns what it returned; it makes and ends its group."""
    pool = ProcessPoolExecutor(
        2, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )

    def run(function, *arguments):
        ranks = [pool.submit(function, rank, *arguments) for rank in range(2)]
        return [rank.result() for rank in ranks]

    yield run
    with suppress(BrokenProcessPool):  # threads of DDP outlive its group, and abort an interpreter that finalizes
        pool.submit(_exit, 0).result()
    pool.shutdown()  # Python 3.12.1 waits for ever at its end if a broken pool is collected before
