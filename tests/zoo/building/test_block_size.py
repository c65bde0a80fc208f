"""Blocks of a size that nobody named: they fit, are equally large, and stay the same when a zoo is resumed."""

import numpy as np
import pytest
import torch

from zoo.building import block_size
from zoo.building.block_size import fitting_block_size
from zoo.building.build import build_zoo
from zoo.building.plan import BuildPlan
from zoo.tasks.registry import get_task

TASK = get_task("digits", hidden=(4,))
SETTINGS = {"num_runs": 10, "num_steps": 6, "num_snapshots": 3, "evaluated_splits": ("val",)}


def plan(**options):
    return BuildPlan(**{"task": TASK, "block_size": "auto"} | SETTINGS | options)


def free_memory(monkeypatch, num_bytes):
    monkeypatch.setattr(block_size, "_free_on_host", lambda: float(num_bytes))


def test_blocks_fill_the_device_and_are_equally_large(monkeypatch):
    free_memory(monkeypatch, 2**50)
    most = block_size.FILLING // TASK.layout.num_params
    assert fitting_block_size(plan(num_runs=most)) == most
    assert fitting_block_size(plan(num_runs=2 * most + 1)) == -(-(2 * most + 1) // 3)
    assert fitting_block_size(plan(num_runs=7)) == 7


def test_blocks_fit_what_is_free(monkeypatch):
    free_memory(monkeypatch, 2**24)
    sizes = [fitting_block_size(plan(num_runs=100_000, num_snapshots=n)) for n in (2, 40)]
    assert 100_000 > sizes[0] > sizes[1] >= 1
    free_memory(monkeypatch, 1)
    assert fitting_block_size(plan()) == 1


def test_the_size_is_recorded_and_a_run_does_not_depend_on_it(monkeypatch, tmp_path):
    free_memory(monkeypatch, 2**17)
    small = build_zoo(tmp_path / "small", TASK, block_size="auto", **SETTINGS)
    assert 1 <= small.spec.block_size < 10
    free_memory(monkeypatch, 2**50)
    assert build_zoo(tmp_path / "small", TASK, block_size="auto", **SETTINGS).spec == small.spec
    large = build_zoo(tmp_path / "large", TASK, block_size="auto", **SETTINGS)
    assert large.spec.block_size == 10
    np.testing.assert_allclose(large.params[:], small.params[:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", ["large", True, 0, 1.5])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="block_size must be a positive integer"):
        plan(block_size=size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_run_is_measured_on_a_gpu():
    cnn = plan(task=get_task("digits", architecture="cnn").to("cuda"))
    params = 4 * cnn.task.layout.num_params
    assert 6 * params < block_size._bytes_on_device(cnn) < 100 * (params + 64 * cnn.task.bytes_per_example)
    assert fitting_block_size(cnn) == 10
