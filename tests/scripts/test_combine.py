import json

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scripts import cli
from scripts.combine import main
from zoo import import_checkpoints
from zoo.operations import ties
from zoo.tasks.registry import get_task


@pytest.fixture
def folder(tmp_path):
    """Three networks of the digits as files and as a zoo, and the base that they began with."""
    task = get_task("digits", hidden=(3,))
    params = task.init(torch.Generator().manual_seed(0), 4)
    for i, vector in enumerate(params):
        state = {name: value.clone() for name, value in task.layout.unflatten(vector).items()}
        save_file(state, tmp_path / ("base.safetensors" if i == 3 else f"{i}.safetensors"))
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    import_checkpoints(files, tmp_path / "zoo", model=task.layout, task_config=task.config)
    return tmp_path


def run_combine(folder, *overrides):
    return main(cli.compose("combine", [f"out='{folder}/x.safetensors'", *overrides]))


def test_files_are_merged_and_the_result_says_how(folder):
    addresses = f"networks=[{','.join(f'{folder}/{i}.safetensors' for i in range(3))}]"
    given = [f"base={folder}/base.safetensors", addresses, "method=ties", "ties.density=0.3"]
    assert run_combine(folder, *given) == 0
    states = [load_file(folder / f"{name}.safetensors") for name in (0, 1, 2, "base", "x")]
    vectors = torch.stack([torch.cat([state[name].flatten() for name in states[0]]) for state in states])
    assert torch.equal(vectors[4], ties(vectors[:3], vectors[3], 0.3))
    with safe_open(folder / "x.safetensors", "pt") as file:
        combined = json.loads(file.metadata()["combined"])
    assert combined["method"] == "ties"
    assert (combined["density"], combined["scale"]) == (0.3, 1.0)
    assert len(combined["networks"]) == 3
    with pytest.raises(ValueError, match="does not exist yet"):
        run_combine(folder, *given)


def test_runs_of_a_zoo_are_evaluated_beside_the_result(folder, capsys):
    assert run_combine(folder, "method=average", f"networks={folder}/zoo@all", "evaluate=true") == 0
    summary = json.loads((folder / "x-combine/summary.json").read_text())
    task = get_task("digits", hidden=(3,))
    result = task.layout.flatten(load_file(folder / "x.safetensors"))
    expected = task.evaluate(result[None], "val")["loss"].item()
    assert summary["val"]["loss"][-1] == pytest.approx(expected, rel=1e-4)
    assert len(summary["val"]["error"]) == 4
    assert "combined" in capsys.readouterr().out


def test_a_teleported_network_has_other_numbers_and_the_same_loss(folder):
    task = "task={name: digits, hidden: [3]}"
    assert run_combine(folder, "method=teleport", f"networks={folder}/0.safetensors", task, "evaluate=true") == 0
    before, after = json.loads((folder / "x-combine/summary.json").read_text())["val"]["loss"]
    assert after == pytest.approx(before, rel=1e-4)
    first, moved = (load_file(folder / f"{name}.safetensors")["layers.0.weight"] for name in (0, "x"))
    assert not torch.allclose(first, moved)


def test_a_soup_takes_the_task_of_the_zoo(folder):
    assert run_combine(folder, "method=greedy_soup", f"networks=[{folder}/zoo@0:0,{folder}/zoo@1]") == 0
    assert json.loads((folder / "x.json").read_text())["task"]["name"] == "digits"


def test_a_compressed_update_is_a_network_again_beside_its_base(folder, capsys):
    based = f"base={folder}/base.safetensors"
    assert run_combine(folder, "method=compress", f"networks={folder}/zoo@2", based, "compress.density=0.5") == 0
    lost = json.loads((folder / "x-combine/summary.json").read_text())["relative_error"]
    assert f"{lost:.3g} of the update's norm was lost" in capsys.readouterr().out
    read = ["method=average", f"networks={folder}/x.safetensors", based]
    assert main(cli.compose("combine", [*read, f"out='{folder}/y.safetensors'"])) == 0
    wanted, base, got = (load_file(folder / f"{name}.safetensors") for name in ("2", "base", "y"))
    vector, left = (torch.cat([(s[name] - base[name]).flatten() for name in base]) for s in (wanted, got))
    assert ((vector - left).norm() / vector.norm()).item() == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=mean"], "method must be one of average,"),
        (["method=compress"], "compress needs one network, and base="),
        (["method=ties"], "ties needs base="),
        (["method=average", "task={name: digits, hidden: [4]}"], "do not fit the layout"),
        (["method=teleport"], "teleport moves one network, got 3"),
    ],
)
def test_bad_input_is_named(folder, overrides, message):
    with pytest.raises(ValueError, match=message):
        run_combine(folder, f"networks={folder}/zoo@all", *overrides)
    assert not (folder / "x.safetensors").exists()


def test_evaluation_without_a_task_is_refused(folder):
    with pytest.raises(ValueError, match="losses need the task of the networks"):
        run_combine(folder, "method=average", f"networks={folder}/0.safetensors", "evaluate=true")
    assert OmegaConf.to_container(cli.compose("combine", ["method=average", "networks=x", "out=y"]))["ties"]
