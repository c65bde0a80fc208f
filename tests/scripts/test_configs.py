"""Every config composes, takes its defaults from the classes that it is for, and says nothing that these say."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from scripts import cli
from scripts.cli import compose
from scripts.defaults import default_config
from zoo.settings import as_json, differences

CONF = Path(cli.__file__).parent / "conf"
SCRIPTS = sorted(path.stem for path in CONF.glob("*.yaml"))
FOLDERS = {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "__pycache__"}
GROUPS = sorted(FOLDERS - {"experiment"})
FILES = sorted(CONF.rglob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def entries_of(path: Path) -> list[tuple[str, object]]:
    """The entries of a config's defaults list that have a key."""
    listed = yaml.safe_load(path.read_text()).get("defaults", [])
    return [item for entry in listed if isinstance(entry, dict) for item in entry.items()]


def groups_of(script: str) -> set[str]:
    return {key for key, _ in entries_of(CONF / f"{script}.yaml") if not key.startswith("/")}


CHOICES = [
    (script, group, choice.stem)
    for script in SCRIPTS
    for group in GROUPS
    if group in groups_of(script)
    for choice in sorted((CONF / group).glob("*.yaml"))
]


@cache
def default_of(script: str) -> dict:
    """The config of a script, not resolved."""
    return OmegaConf.to_container(compose(script), resolve=False)


@cache
def script_of(experiment: str) -> str:
    """The one script whose groups an experiment chooses among and whose settings it sets."""

    def fits(script: str) -> bool:
        try:
            return set(compose(script, [f"experiment={experiment}"])) <= set(default_of(script))
        except hydra.errors.ConfigCompositionException:  # it overrides a group that the script has not
            return False

    (found,) = [script for script in SCRIPTS if "experiment" in groups_of(script) and fits(script)]
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_config_belongs_to_a_script(script):
    assert (CONF.parent / f"{script}.py").exists()
    assert default_of(script)


@pytest.mark.parametrize(("script", "group", "choice"), CHOICES, ids=str)
def test_every_choice_of_every_group_composes(script, group, choice):
    assert isinstance(compose(script, [f"{group}={choice}"])[group], DictConfig)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_belongs_to_one_script(experiment):
    assert script_of(experiment)


def given_by(path: Path) -> dict:
    """What a file itself says, without its defaults list."""
    return {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "defaults"}


def repeated(given: dict, default: dict, prefix: str = "") -> list[str]:
    """Fields to which both give the same value."""
    found = []
    for key in given.keys() & default.keys() - {"_target_"}:
        if isinstance(given[key], dict) and isinstance(default[key], dict):
            found += repeated(given[key], default[key], f"{prefix}{key}.")
        elif given[key] == default[key]:
            found.append(f"{prefix}{key}")
    return found


def targets_in(value: object) -> Iterator[dict]:
    """All mappings with a `_target_`, at any depth."""
    if isinstance(value, dict) and "_target_" in value:
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from targets_in(inner)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_no_file_repeats_a_default_of_what_it_configures(path):
    given = given_by(path)
    found = []
    for key, names in entries_of(path):
        if key.startswith("/defaults@"):
            section = given
            for part in key.removeprefix("/defaults@").removeprefix("_here_").split("."):
                section = section.get(part, {}) if part else section
            for name in [names] if isinstance(names, str) else names:
                found += repeated(section, default_config(name))
    for one in targets_in(given):
        found += repeated(one, default_config(one["_target_"]))
    assert found == []


@pytest.mark.parametrize("experiment", sorted(set(EXPERIMENTS) - {"mulo", "mulo_norm"}))
def test_no_experiment_repeats_what_its_script_has(experiment):
    """Those of meta-training have no script's values to differ from; see the test above."""
    assert repeated(given_by(CONF / "experiment" / f"{experiment}.yaml"), default_of(script_of(experiment))) == []


def test_defaults_are_those_of_the_classes():
    from generator import GeneratorConfig
    from zoo.building import BuildPlan

    settings = hydra.utils.instantiate(compose("train_generator", ["zoo=x"]).generator, _convert_="all")
    assert differences(as_json(GeneratorConfig()), replace(settings, model={})) == []
    assert compose("build_zoo", ["out=x"]).batch_size == BuildPlan.batch_size


def test_a_default_that_does_not_exist_is_named():
    with pytest.raises(ImportError, match="Nonsense"):
        default_config("generator.Nonsense.x")
