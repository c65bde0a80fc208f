"""What a user sees who mistypes: one line, no traceback, a non-zero exit code."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import scripts.__main__
from scripts import cli

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts" / "conf").glob("*.yaml"))


def start(script: str, *arguments: str, monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a script, started in this process."""
    monkeypatch.setattr(sys, "argv", [f"scripts/{script}.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.run(importlib.import_module(f"scripts.{script}").main, script)
    return int(exit_.value.code or 0), *capsys.readouterr()


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_key_gives_one_line_and_code_2(script, monkeypatch, capsys):
    code, _, stderr = start(script, "nonsense_key=1", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "nonsense_key" in stderr
    assert len(stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_usage_and_values(script, monkeypatch, capsys):
    code, stdout, _ = start(script, "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert f"python -m scripts.{script}" in stdout


def console(*arguments: str, monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the console command, started in this process."""
    monkeypatch.setattr(sys, "argv", ["weightfoundry", *arguments])
    try:
        scripts.__main__.main()
    except SystemExit as exit_:
        return int(exit_.code or 0), *capsys.readouterr()
    return 0, *capsys.readouterr()


def test_the_console_command_starts_any_script(monkeypatch, capsys):
    assert list(scripts.__main__.COMMANDS.values()) == SCRIPTS
    code, stdout, _ = console(monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert all(f"\n  {script.replace('_', '-')} " in stdout for script in SCRIPTS)
    code, _, stderr = console("inspect-zoo", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert stderr.strip() == "error: missing value: give zoo=..., or see --help"


def test_a_command_that_there_is_not_is_refused(monkeypatch, capsys):
    assert console("biuld_zoo", monkeypatch=monkeypatch, capsys=capsys) == (
        2,
        "",
        "error: there is no command 'biuld_zoo'; did you mean build-zoo?\n",
    )


def test_missing_value_is_named(monkeypatch, capsys):
    code, _, stderr = start("inspect_zoo", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert stderr.strip() == "error: missing value: give zoo=..., or see --help"


def test_unknown_choice_lists_what_there_is(monkeypatch, capsys):
    code, _, stderr = start("build_zoo", "out=x", "task=nonsense", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    names = sorted(file.stem for file in (ROOT / "scripts" / "conf" / "task").glob("*.yaml"))
    assert stderr.strip().endswith(f"there are {', '.join(names)}")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("num_run=3", "build_zoo has no setting 'num_run'; did you mean num_runs?"),
        ("num_runs=ten", "num_runs must be a number, got 'ten'"),
        ("shared_batches=perhaps", "shared_batches must be true or false, got 'perhaps'"),
        ("shared_batches=1", "shared_batches must be true or false, got 1"),
        ("out=", "out is empty; give a value, or null for none"),
        ("--num-runs=3", "settings are given as NAME=VALUE: num_runs=..., got '--num-runs=3'"),
        (
            "snapshot_steps=last_epoch(5)",
            "Error parsing override 'snapshot_steps=last_epoch(5)'; values with parentheses, commas or spaces go in "
            "quotes: \"NAME='VALUE'\"",
        ),
        ("three", "settings are given as NAME=VALUE, got 'three'; see --help"),
    ],
)
def test_what_was_mistyped_is_said_with_what_was_meant(argument, message, monkeypatch, capsys):
    code, stdout, stderr = start("build_zoo", "out=x", argument, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, stdout, stderr.strip()) == (2, "", f"error: {message}")


def test_help_shows_a_commands_own_choices_and_what_its_settings_are_for(monkeypatch, capsys):
    _, stdout, _ = start("build_zoo", "num_runs=7", "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert "\n  experiment: zoo_cartpole, zoo_lora_images" in stdout
    assert "\n  num_runs: 7\n" in stdout
    assert "\n  out: ???  # folder of the zoo;" in stdout
    assert "pydoc zoo.building.BuildPlan\n" in stdout
    assert "\n  - val\n" in stdout


@pytest.mark.parametrize(("added", "name"), [("+foo=1", "foo"), ("experiment=generator_cnn", "generator")])
def test_settings_that_a_script_does_not_have_are_not_ignored(added, name, tmp_path, monkeypatch, capsys):
    code, _, stderr = start("build_zoo", f"out={tmp_path}/zoo", added, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert stderr.strip() == f"error: build_zoo has no settings ['{name}']; see --help"
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    code, _, stderr = start("build_zoo", f"out={tmp_path}/zoo", "device=foo", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert stderr.startswith("error: there is no device 'foo' on this machine; choose one of ['cpu'")


def test_memory_that_runs_out_gives_one_line(tmp_path, monkeypatch, capsys):
    def main(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has\nmany pages. to say")

    monkeypatch.setattr(importlib.import_module("scripts.build_zoo"), "main", main)
    code, _, stderr = start("build_zoo", f"out={tmp_path}/zoo", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert stderr.startswith("error: CUDA out of memory; lower ")
    assert stderr.count("\n") == 1


def test_a_value_that_a_class_refuses_is_reported_in_its_words(tmp_path, monkeypatch, capsys):
    arguments = ("experiment=mulo_norm", "+stages.scalars.estimator.tasks.families.nonsense=1", f"out={tmp_path}")
    code, _, stderr = start("meta_train", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert stderr.startswith("error: families must name some of")


def test_developers_can_ask_for_the_traceback(monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(FileNotFoundError):
        start("inspect_zoo", "zoo=/nonexistent", monkeypatch=monkeypatch, capsys=capsys)
