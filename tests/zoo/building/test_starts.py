"""Runs that start from given networks."""

import numpy as np
import pytest

from zoo.building.build import build_zoo
from zoo.settings import SettingsMismatchError
from zoo.storage.zoo import Zoo
from zoo.tasks.registry import get_task

TASK = get_task("digits", hidden=(4,))
SETTINGS = {"num_steps": 4, "num_snapshots": 2, "evaluated_splits": ("val",)}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("earlier") / "zoo"
    build_zoo(path, TASK, num_runs=2, seed=3, **SETTINGS)
    return path


@pytest.mark.parametrize("kind", ["zoo", "checkpoints"])
def test_run_i_starts_from_network_i_modulo_their_number(path, kind, tmp_path):
    earlier, source = Zoo.open(path), path
    if kind == "checkpoints":
        source = tmp_path / "checkpoints"
        for run in range(2):
            earlier.export(run, 1, source / f"run_{run}.safetensors")
    zoo = build_zoo(tmp_path / "zoo", TASK, num_runs=3, init_from=str(source), block_size=2, **SETTINGS)
    np.testing.assert_array_equal(zoo.params[:, 0], earlier.params[:, 1][[0, 1, 0]])
    assert not np.array_equal(zoo.params[:, 1], zoo.params[:, 0])
    with pytest.raises(SettingsMismatchError, match="init_from"):
        build_zoo(tmp_path / "zoo", TASK, num_runs=3, block_size=2, **SETTINGS)


def test_networks_of_another_architecture_and_scales_are_refused(path, tmp_path):
    path = str(path)
    with pytest.raises(ValueError, match=r"init_from: the networks of .* are not the task's: .*layers\.0\.weight"):
        build_zoo(tmp_path / "zoo", get_task("digits", hidden=(5,)), num_runs=1, init_from=path, **SETTINGS)
    with pytest.raises(ValueError, match=r"init_scale is of fresh networks, got 2\.0"):
        build_zoo(tmp_path / "zoo", TASK, num_runs=1, init_from=path, init_scale=2.0, **SETTINGS)
