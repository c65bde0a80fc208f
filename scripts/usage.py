"""What `--help` shows: a command's docstring, its choices, and its settings with their values and what they are for.

What a setting is for stands in the command's config file as a comment, or in the docstring of the class or function
that its default is taken from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parent / "conf"


def help_text(docstring: str, config_name: str, config: DictConfig) -> str:
    """All of it; `config` has the values to show."""
    source = (CONF / f"{config_name}.yaml").read_text()
    paragraphs = [as_typed(docstring).rstrip()]
    if choices := "\n".join(_choices(source, config)):
        paragraphs.append(f"Choices, as in task=digits, several experiments as in experiment=[a,b]:\n{choices}")
    if explained := "\n".join(_explained(source)):
        paragraphs.append(f"What is not said below is said by\n{explained}")
    settings = _with_comments(source, config)
    paragraphs.append(f"Settings, as in seed=1 or a.b=[2,3], with their values; ??? must be given:\n{settings}")
    return "\n\n".join(paragraphs)


def as_typed(docstring: str) -> str:
    """A script's docstring, its commands as they are typed where this package was started from."""
    if __package__ == "scripts":
        return docstring
    return re.sub(r"python -m scripts\.(\w+)", lambda found: f"weightfoundry {found[1].replace('_', '-')}", docstring)


def _defaults(source: str) -> dict[str, object]:
    entries = (yaml.safe_load(source) or {}).get("defaults", [])
    return {key: value for entry in entries if isinstance(entry, dict) for key, value in entry.items()}


def _choices(source: str, config: DictConfig) -> Iterator[str]:
    for group in _defaults(source):
        if (CONF / group).is_dir():
            files = sorted((CONF / group).glob("*.yaml"))
            names = [path.stem for path in files if group != "experiment" or _fits(path, config)]
            yield f"  {group}: {', '.join(names)}"


def _fits(experiment: Path, config: DictConfig) -> bool:
    """Whether a command has all settings that an experiment sets."""
    return set(yaml.safe_load(experiment.read_text())) - {"defaults"} <= set(config)


def _explained(source: str) -> Iterator[str]:
    """Where the defaults come from whose meaning the config does not say."""
    owners: dict[str, str] = {}
    for place, names in _defaults(source).items():
        if place.startswith("/defaults@"):
            for name in names if isinstance(names, list) else [names]:
                last = str(name).rpartition(".")[2]
                if last[0].isupper() and not last.isupper():
                    owners[str(name)] = place.removeprefix("/defaults@")
    return (f"  python -m pydoc {name}" + ("" if at == "_here_" else f"  # {at}") for name, at in owners.items())


def _with_comments(source: str, config: DictConfig) -> str:
    comments = dict(_said_of_defaults(source))
    comments |= {path: line.partition("# ")[2] for path, line in _paths(source) if path and "# " in line}
    lines = [(path, f"  {line}") for path, line in _paths(OmegaConf.to_yaml(config))]
    return "\n".join(f"{line}  # {comments[path]}" if path in comments else line for path, line in lines)


def _said_of_defaults(source: str) -> Iterator[tuple[str, str]]:
    """Dotted names in the list of defaults, and what is said of them there."""
    package = ""
    for line in source.splitlines():
        if at := re.search(r"/defaults@([\w.]+):", line):
            package = "" if at[1] == "_here_" else f"{at[1]}."
        if said := re.search(r"\.(\w+) +# (.+)$", line):
            yield f"{package}{said[1]}", said[2]


def _paths(text: str) -> Iterator[tuple[str, str]]:
    """Dotted name and line of each setting of a YAML text; other lines have no name."""
    names: list[str] = []
    for line in text.splitlines():
        if key := re.match(r"( *)(\w+):", line):
            names = [*names[: len(key[1]) // 2], key[2]]
        yield ".".join(names) if key else "", line
