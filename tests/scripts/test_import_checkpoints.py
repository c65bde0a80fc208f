import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from scripts.import_checkpoints import main
from zoo.storage.zoo import Zoo
from zoo.tasks.registry import get_task

DEFAULTS = {"task": None, "metrics": None, "state_key": None, "dtype": None, "keep_nonfinite": False}


def run_import(**config):
    return main(OmegaConf.create(DEFAULTS | config))


def test_checkpoints_of_a_task_become_its_zoo(tmp_path, capsys):
    task = get_task("digits", hidden=(3,))
    (tmp_path / "in").mkdir()
    params = task.init(torch.Generator().manual_seed(0), 2)
    for i, vector in enumerate(params):
        named = {name: value.clone() for name, value in task.layout.unflatten(vector).items()}
        save_file(named, tmp_path / f"in/{i}.safetensors")
    (tmp_path / "in/metrics.csv").write_text("file,step,val_loss\n0.safetensors,7,0.5\n1.safetensors,7,0.4\n")
    given = {"paths": str(tmp_path / "in"), "out": str(tmp_path / "zoo"), "task": {"name": "digits", "hidden": [3]}}
    assert run_import(**given) == 0
    assert "2 (2 imported)" in capsys.readouterr().out
    zoo = Zoo.open(tmp_path / "zoo")
    assert zoo.verify() == []
    assert zoo.layout == task.layout
    assert get_task(**zoo.task_config).config == task.config
    assert torch.equal(torch.from_numpy(zoo.params[:, 0]), params)
    with pytest.raises(FileExistsError, match="not empty"):
        run_import(**given)


def test_two_runs_can_be_listed(tmp_path):
    for name in ("a", "b"):
        save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    listed = [str(tmp_path / f"{name}.safetensors") for name in ("b", "a")]
    assert run_import(paths=listed, out=str(tmp_path / "zoo")) == 0
    assert Zoo.open(tmp_path / "zoo").attributes["extra"]["run_names"] == ["b", "a"]
