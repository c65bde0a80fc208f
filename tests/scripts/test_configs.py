"""Every config composes: each choice of each group with each script that uses the group."""

from pathlib import Path

import hydra
import pytest
import yaml

import scripts.cli

CONF = Path(scripts.cli.__file__).parent / "conf"
SCRIPTS = sorted(path.stem for path in CONF.glob("*.yaml"))
GROUPS = sorted(
    path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("experiment", "__pycache__")
)


def groups_of(script: str) -> set[str]:
    defaults = yaml.safe_load((CONF / f"{script}.yaml").read_text()).get("defaults", [])
    return {key.removeprefix("optional ") for entry in defaults if isinstance(entry, dict) for key in entry}


def test_every_group_is_known():
    folders = {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*GROUPS, "experiment"}


def compose(script: str, *overrides: str):
    with hydra.initialize_config_module("scripts.conf", version_base="1.3"):
        return hydra.compose(script, list(overrides))


CHOICES = [
    (script, group, choice.stem)
    for script in SCRIPTS
    for group in GROUPS
    if group in groups_of(script)
    for choice in sorted((CONF / group).glob("*.yaml"))
]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_config_belongs_to_a_script(script):
    assert (CONF.parent / f"{script}.py").exists()


@pytest.mark.parametrize(("script", "group", "choice"), CHOICES, ids=str)
def test_every_choice_of_every_group_composes(script, group, choice):
    assert compose(script, f"{group}={choice}")[group]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_belongs_to_one_script(experiment):
    assert len([script for script in SCRIPTS if fits(script, experiment)]) == 1


def fits(script: str, experiment: str) -> bool:
    """Whether an experiment chooses among the groups of a script, and sets nothing but what the script knows."""
    if "experiment" not in groups_of(script):
        return False
    try:
        composed = compose(script, f"experiment={experiment}")
    except hydra.errors.ConfigCompositionException:  # it overrides a group that the script has not
        return False
    return set(composed) <= set(yaml.safe_load((CONF / f"{script}.yaml").read_text())) | groups_of(script)
