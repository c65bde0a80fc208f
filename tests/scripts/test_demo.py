"""The demo at tiny sizes: from nothing to its page, again, interrupted, in strange places."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from generator.training.module import GeneratorModule
from scripts import cli, demo
from tests.devices import other_device

ROOT = Path(__file__).parents[2]
STAGES = ["zoo", "generator", "prompting", "optimizer", "join", "tables"]


def test_it_ends_with_numbers_settings_and_charts(demo_folder):
    summary = json.loads((demo_folder / "summary.json").read_text())
    assert list(summary["stages"]) == sorted(STAGES)
    assert summary["seed"] == 0
    assert summary["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert 0 < summary["seconds"] == pytest.approx(sum(one["seconds"] for one in summary["stages"].values()))
    assert (demo_folder / "config.yaml").exists()
    assert sorted(path.stem for path in (demo_folder / "figures").iterdir()) == [
        "distances", "fine_tuning", "optimizers", "prompts", "tables", "training",
    ]  # fmt: skip


def test_finished_stages_are_kept(demo_folder, compose_demo):
    records = {path: path.read_bytes() for path in (demo_folder / "stages").iterdir()}
    (demo_folder / "report.html").unlink()
    demo.main(compose_demo(demo_folder))
    assert (demo_folder / "report.html").exists()
    assert {path: path.read_bytes() for path in (demo_folder / "stages").iterdir()} == records


def test_stages_on_another_device_find_what_those_of_the_cpu_find(demo_folder, compose_demo, tmp_path):
    """The generator, which Lightning trains, is that of the CPU."""
    with other_device("sim"):
        demo.main(compose_demo(tmp_path, "device=sim", "generator.device=cpu"))
    there, here = (json.loads((folder / "summary.json").read_text())["stages"] for folder in (tmp_path, demo_folder))
    assert there["zoo"]["final_test_accuracy"] == here["zoo"]["final_test_accuracy"]
    for stage in ("prompting", "optimizer", "join"):
        found, expected = (numbers_of(stages[stage]) for stages in (there, here))
        assert found == pytest.approx(expected, rel=1e-3, abs=5e-3)  # an answer of 810 may flip


def numbers_of(summary, prefix=""):
    """Figures by their dotted names, without times."""
    flat = {}
    for name, value in summary.items():
        if isinstance(value, dict):
            flat |= numbers_of(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and "seconds" not in name:
            flat[f"{prefix}{name}"] = value
    return flat


@pytest.mark.slow
def test_the_command_needs_no_display(demo_folder, tiny_demo):
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | {"MPLBACKEND": "TkAgg"}
    command = [sys.executable, "-m", "scripts.demo", f"out='{demo_folder}'", *tiny_demo]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_other_settings_are_refused_with_the_setting(demo_folder, compose_demo):
    with pytest.raises(ValueError, match=r"generator\.optimization\.num_steps: begun with 6, now 9"):
        demo.main(compose_demo(demo_folder, "generator.generator.optimization.num_steps=9"))
    with pytest.raises(ValueError, match="seed: begun with 0, now 1"):
        demo.main(compose_demo(demo_folder, "seed=1"))


def test_records_of_a_release_that_had_fewer_settings_are_kept(demo_folder, compose_demo, tmp_path):
    shutil.copytree(demo_folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "stages" / "zoo.json"
    record = json.loads(path.read_text())
    del record["settings"]["zoo"]["optimizer"]["eps"], record["settings"]["zoo"]["num_snapshots"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"zoo\.num_snapshots: begun with 21, now 4"):
        demo.main(compose_demo(tmp_path, "stages=[zoo]"))
    record["settings"]["zoo"]["num_snapshots"] = 4
    path.write_text(json.dumps(record))
    demo.main(compose_demo(tmp_path, "stages=[zoo]"))
    with pytest.raises(ValueError, match=r"zoo\.optimizer\.eps: begun with 1e-08, now 0\.1"):
        demo.main(compose_demo(tmp_path, "stages=[zoo]", "zoo.optimizer.eps=0.1"))


def test_stages_can_be_chosen_and_skipped(tmp_path, compose_demo):
    demo.main(compose_demo(tmp_path, "stages=[zoo,optimizer]", "skip=[zoo]"))
    assert [path.name for path in (tmp_path / "stages").iterdir()] == ["optimizer.json"]
    assert (tmp_path / "report.html").read_text().count("<svg") == 1
    with pytest.raises(ValueError, match="'join' needs 'zoo', which is not finished"):
        demo.main(compose_demo(tmp_path, "stages=[join]"))
    for key in ("stages", "skip"):
        with pytest.raises(ValueError, match=f"{key} must be some of .* got \\['zoos'\\]"):
            demo.main(compose_demo(tmp_path, f"{key}=[zoos]"))
        with pytest.raises(ValueError, match=f"{key} must be a list"):
            demo.main(compose_demo(tmp_path, f"{key}=zoo"))


@pytest.fixture
def run_command(tiny_demo, monkeypatch, capfd):
    """Function from a folder and overrides to exit code and stderr of the command, started in this process."""

    def run(folder, *overrides):
        monkeypatch.setattr(sys, "argv", ["scripts/demo.py", f"out='{folder}'", *tiny_demo, *overrides])
        with pytest.raises(SystemExit) as exit_:
            cli.run(demo.main, "demo")
        return exit_.value.code or 0, capfd.readouterr().err

    return run


@pytest.fixture
def _interruptible():
    """Lightning leaves interrupts switched off behind it."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("_interruptible")
def test_interrupted_training_goes_on_and_ends_with_the_same_generator(demo_folder, run_command, tmp_path, monkeypatch):
    step, interrupted_at = GeneratorModule.training_step, 5

    def interrupt(module, batch, batch_idx):
        if module.current_epoch * 2 + batch_idx == interrupted_at:
            raise KeyboardInterrupt
        return step(module, batch, batch_idx)

    monkeypatch.setattr(GeneratorModule, "training_step", interrupt)
    code, error = run_command(tmp_path, "stages=[zoo,generator]")
    assert code == 130
    assert error.strip().endswith("interrupted; run the same command again to resume")
    assert "Traceback" not in error
    record = json.loads((tmp_path / "stages" / "generator.json").read_text())
    assert record["result"] is None
    assert record["seconds"] > 0

    monkeypatch.setattr(GeneratorModule, "training_step", step)
    code, _ = run_command(tmp_path, "stages=[zoo,generator]")
    assert code == 0
    name = "generator/pipeline/model/diffusion_pytorch_model.safetensors"
    expected, weights = load_file(demo_folder / name), load_file(tmp_path / name)
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


def test_interrupted_comparison_repeats_nothing(tmp_path, compose_demo, monkeypatch):
    from scripts.demo_stages import optimize

    train, calls = optimize.train, []

    def interrupt(*args, **options):
        calls.append(options)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(optimize, "train", interrupt)
    config = compose_demo(tmp_path, "stages=[optimizer]")
    with pytest.raises(KeyboardInterrupt):
        demo.main(config)
    demo.main(config)
    assert len(calls) == 5 * 2 + 1  # methods x seeds, and the one that was interrupted


def test_folder_that_cannot_be_written_gives_one_line(tmp_path, run_command):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "demo"]
    if os.geteuid():  # nothing is read-only for root
        (tmp_path / "folder").mkdir(mode=0o500)
        places.append(tmp_path / "folder" / "demo")
    for place in places:
        code, error = run_command(place)
        assert code == 2
        assert re.fullmatch(r"error: .*\n", error)


def test_settings_that_fail_keep_no_others_out(tmp_path, compose_demo):
    for wrong, message in (
        ("optimizer.num_seeds=0", r"optimizer\.num_seeds must be a positive integer, got 0"),
        ("optimizer.learning_rates=[]", r"learning_rates must be positive numbers"),
        ("optimizer.task.name=letters", r"task must be one of .* got 'letters'"),
    ):
        with pytest.raises(ValueError, match=message):
            demo.main(compose_demo(tmp_path, "stages=[optimizer]", wrong))
    with pytest.raises(ValueError, match="task must be a group of settings, got 'letters'"):
        demo.main(compose_demo(tmp_path, "stages=[zoo]", "zoo.task=letters"))
    demo.main(compose_demo(tmp_path, "stages=[optimizer]"))


def test_damaged_record_is_named(tmp_path, run_command):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "zoo.json").write_text('{"settings"')
    code, error = run_command(tmp_path)
    assert code == 2
    assert "zoo.json is damaged; remove it" in error
