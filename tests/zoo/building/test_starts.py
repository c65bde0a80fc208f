"""Runs that start from given networks."""

import numpy as np
import pytest

from zoo.building.build import build_zoo
from zoo.checkpoints.adapters import save_adapter
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


def test_networks_of_another_base_or_that_are_not_finite_are_refused(path, tmp_path):
    """Of a task whose first layer is frozen; the whole networks at `path` have first layers of their own."""
    from safetensors.torch import save_file

    Zoo.open(path).export(0, 1, tmp_path / "base.safetensors")
    task = get_task("digits", hidden=(4,), adapter={"base": str(tmp_path / "base.safetensors"), "rank": 1})
    Zoo.open(path).export(1, 1, tmp_path / "other.safetensors")
    other = get_task("digits", hidden=(4,), adapter={"base": str(tmp_path / "other.safetensors"), "rank": 1})
    zoo = build_zoo(tmp_path / "zoo", task, num_runs=1, **SETTINGS)
    zoo.export(0, 1, tmp_path / "whole/a.safetensors", merged=True)
    save_adapter(tmp_path / "peft", zoo.state_dict(0, 1), task.make_model())
    for source in (tmp_path / "zoo", tmp_path / "whole", tmp_path / "peft"):
        again = build_zoo(tmp_path / f"again_{source.name}", task, num_runs=1, init_from=str(source), **SETTINGS)
        np.testing.assert_array_equal(again.params[0, 0], zoo.params[0, 1])
        if source.name != "peft":  # whose folders do not say what their base was
            with pytest.raises(ValueError, match=r"init_from: .* has another base than the model: "):
                build_zoo(tmp_path / "new", other, num_runs=1, init_from=str(source), **SETTINGS)
    scaled = get_task(
        "digits", hidden=(4,), adapter={"base": str(tmp_path / "base.safetensors"), "rank": 1, "alpha": 4}
    )
    with pytest.raises(ValueError, match="adapters of another kind: alpha None and 4"):
        build_zoo(tmp_path / "new", scaled, num_runs=1, init_from=str(tmp_path / "zoo"), **SETTINGS)
    (tmp_path / "nan").mkdir()
    broken = {name: value / 0 for name, value in Zoo.open(path).state_dict(0, 1).items()}
    save_file(broken, tmp_path / "nan/a.safetensors")
    with pytest.raises(ValueError, match=r"init_from: .* number 0 has infinities or NaN"):
        build_zoo(tmp_path / "new", TASK, num_runs=1, init_from=str(tmp_path / "nan"), **SETTINGS)
