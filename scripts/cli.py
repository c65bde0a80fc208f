"""How every command starts: a Hydra config, settings that are checked, and user errors in one line.

`HYDRA_FULL_ERROR=1` shows the full traceback instead, and where warnings come from. Exit codes: 0 done, 1 a finding or
failure that the script reports, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from zoo.devices import is_out_of_memory
from zoo.tracking import Tracker, make_tracker

from . import defaults  # noqa: F401 (Hydra finds the defaults of dataclasses through it)
from .usage import help_text

console = Console()
_HYDRA_SETTINGS = (
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)
_USER_ERRORS = (ValueError, LookupError, OSError, ImportError, HydraException, OmegaConfBaseException)


def run(main: Callable[[DictConfig], int | None], config_name: str) -> None:
    """Compose `conf/<config_name>.yaml` with the command line's overrides, call `main` with it, exit with its code."""

    def guarded(config: DictConfig) -> None:
        if os.environ.get("HYDRA_FULL_ERROR") != "1":
            warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        code = _report_errors(lambda: main(_checked(config, config_name)))
        if code or HydraConfig.get().mode is not RunMode.MULTIRUN:
            sys.exit(code)

    arguments = sys.argv[1:]
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    is_plain = asks_for_help or overrides == arguments
    if code := _report_errors(lambda: _check_overrides(config_name, arguments, overrides if is_plain else [])):
        sys.exit(code)
    try:
        if asks_for_help:
            text = str(sys.modules[main.__module__].__doc__)
            print(help_text(text, config_name, compose(config_name, overrides)), flush=True)
            sys.exit(0)
        first = next((i for i, argument in enumerate(sys.argv) if "=" in argument), len(sys.argv))  # all in one row
        sys.argv[first:first] = _HYDRA_SETTINGS
        hydra.main(version_base="1.3", config_path="conf", config_name=config_name)(guarded)()
    except BrokenPipeError:  # whoever read the help has left: --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def compose(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config `conf/<config_name>.yaml` with overrides as on a command line."""
    with hydra.initialize_config_module(f"{__package__}.conf", version_base="1.3"):
        return hydra.compose(config_name, list(overrides))


@cache
def default_config(config_name: str) -> DictConfig:
    """The config without overrides; kept, because Hydra composes nothing else while a command runs."""
    return compose(config_name)


def save_run(out: Path, config: DictConfig, summary: Mapping[str, object]) -> None:
    """Write the resolved config and `summary.json` beside a script's outputs in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    (out / "summary.json").write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n")


@contextmanager
def tracking(
    config: DictConfig, folder: Path, curves: Callable[[Tracker], Callable[..., object]]
) -> Iterator[Callable[..., object]]:
    """The callback that draws these curves with the tracker that `config.logger` names; with null it does nothing."""
    if config.logger is None:
        yield lambda *state: None
        return
    tracker = make_tracker(config.logger, folder)
    tracker.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    try:
        yield curves(tracker)
    except BaseException:
        tracker.finalize("failed")
        raise
    tracker.finalize("success")


def _check_overrides(config_name: str, arguments: Sequence[str], overrides: Sequence[str]) -> None:
    known = _flat(default_config(config_name))
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0].replace("-", "_")
        if argument.startswith("--") and name in known:
            raise ValueError(f"settings are given as NAME=VALUE: {name}=..., got {argument!r}")
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ValueError(f"settings are given as NAME=VALUE, got {override!r}; see --help")
    try:
        compose(config_name, overrides)
    except ConfigCompositionException as error:
        if not (found := re.match(r"Could not override '([^']+)'", str(error))):
            raise
        near = get_close_matches(found[1], known, n=1, cutoff=0.8)
        is_open = known.get(found[1].rpartition(".")[0]) == {}
        hint = f"+{found[1]}=... adds it" if is_open else f"did you mean {near[0]}?" if near else "see --help"
        raise ValueError(f"{config_name} has no setting {found[1]!r}; {hint}") from error


def _flat(config: DictConfig) -> dict[str, object]:
    """Settings by their dotted names, groups of them included."""

    def flat(values: Mapping[object, object], prefix: str) -> Iterator[tuple[str, object]]:
        for key, value in values.items():
            yield f"{prefix}{key}", value
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{key}.")

    return dict(flat(cast("dict[object, object]", OmegaConf.to_container(config)), ""))


def _checked(config: DictConfig, config_name: str) -> DictConfig:
    unknown = sorted({str(key) for key in config} - set(default_config(config_name)))
    if unknown:
        raise ValueError(f"{config_name} has no settings {unknown}; see --help")
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"missing value: give {' '.join(f'{key}=...' for key in missing)}, or see --help")
    usual = _flat(default_config(config_name))
    for name, value in _flat(config).items():
        if value == "" and usual.get(name, "") != "":
            raise ValueError(f"{name} is empty; give a value, or null for none")
        if isinstance(usual.get(name), bool) and not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
        is_word = isinstance(value, str) and value != "auto" and not value.startswith("${")
        if is_word and isinstance(usual.get(name), int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
    return config


def _report_errors(action: Callable[[], int | None]) -> int:
    try:
        return action() or 0
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise  # Lightning, on the other hand, turns an interrupt into an exit
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    except Exception as error:
        is_expected = isinstance(error, _USER_ERRORS) or is_out_of_memory(error)
        if not is_expected or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: BaseException) -> str:
    if isinstance(error, InstantiationException) and error.__cause__:
        return _one_line(error.__cause__)  # what the class said, not that it was called
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; pip install 'weightfoundry[all]' brings what the commands need"
    if is_out_of_memory(error) and not isinstance(error, MemoryError):  # the allocator's text is a page
        return f"{str(error).partition('. ')[0]}; lower what is computed at once (batch_size, block_size, num_samples)"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return "; ".join(lines)
    if len(lines) > 1 and lines[1].startswith("Available options"):
        return f"{lines[0]}; there are {', '.join(takewhile(lambda line: not line.endswith('path:'), lines[2:]))}"
    is_unquoted = isinstance(error, OverrideParseException)
    hint = "values with parentheses, commas or spaces go in quotes: \"NAME='VALUE'\"" if is_unquoted else "see --help"
    return f"{lines[0].rstrip('.')}; {hint}"
