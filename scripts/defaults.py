"""One default: configs take theirs from the dataclasses and functions that they are for, so YAML names what differs.

In a config's defaults list `/defaults@generator: generator.GeneratorConfig` puts all fields of that dataclass with
their defaults under `generator`, dataclasses among them with their `_target_`. A function gives its arguments, one
parameter of it (`generator.ParameterPipeline.__call__.guidance_scale`) itself, a mapping its entries. What has no
default is left to the YAML. Nothing is imported before a config asks for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import is_dataclass
from pkgutil import resolve_name
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from zoo.settings import as_json, defaults_of

GROUP = "defaults"


def default_config(name: str) -> dict[str, Any]:
    """Config of the defaults of what has that full name.

    Raises:
        ImportError: if nothing has.
    """
    owner, _, last = name.rpartition(".")
    try:
        whole = resolve_name(owner)
        if callable(whole) and last in (known := defaults_of(whole)):
            return {last: _node(known[last])}
        found = whole[last] if isinstance(whole, Mapping) else resolve_name(name)
    except (AttributeError, KeyError) as error:
        raise ImportError(f"there is no {name!r} to take defaults from") from error
    values = dict(found) if isinstance(found, Mapping) else defaults_of(found)
    return {key: _node(value) for key, value in values.items()}


def _node(value: object) -> Any:
    if not is_dataclass(value):
        return as_json(value)
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    is_public = getattr(importlib.import_module(package), kind.__name__, None) is kind
    target = f"{package if is_public else kind.__module__}.{kind.__name__}"
    return {"_target_": target, **default_config(target)}


class DefaultsSource(ConfigSource):
    """Where Hydra finds the configs of the group `defaults`."""

    @staticmethod
    def scheme() -> str:
        return GROUP

    def load_config(self, config_path: str) -> ConfigResult:
        name = config_path.removeprefix(f"{GROUP}/").removesuffix(".yaml")
        config = OmegaConf.create(default_config(name))
        return ConfigResult(self.provider, f"{GROUP}://", config, header={"package": None})

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.rstrip("/") == GROUP

    def is_config(self, config_path: str) -> bool:
        return config_path.startswith(f"{GROUP}/")

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []


class DefaultsSearchPath(SearchPathPlugin):
    """Lets Hydra look there."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(GROUP, f"{GROUP}://")


for plugin in (DefaultsSource, DefaultsSearchPath):
    Plugins.instance().register(plugin)
