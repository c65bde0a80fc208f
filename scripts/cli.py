"""How every command starts: a Hydra config, help that helps, and user errors in one line.

`HYDRA_FULL_ERROR=1` shows the full traceback instead. Exit codes: 0 done, 1 a finding or failure that the script
reports, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from . import defaults  # noqa: F401 (Hydra finds the defaults of dataclasses through it)

console = Console()
_HYDRA_SETTINGS = (
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.help.header='Values and their defaults:'",
)
_USER_ERRORS = (ValueError, KeyError, OSError, ImportError, HydraException, OmegaConfBaseException)


def run(main: Callable[[DictConfig], int | None], config_name: str) -> None:
    """Compose `conf/<config_name>.yaml` with the command line's overrides, call `main` with it, exit with its code."""

    def guarded(config: DictConfig) -> None:
        code = _report_errors(lambda: main(_checked(config, config_name)))
        if code or HydraConfig.get().mode is not RunMode.MULTIRUN:
            sys.exit(code)

    is_plain = not any(argument.startswith("-") for argument in sys.argv[1:])
    if code := _report_errors(lambda: compose(config_name, sys.argv[1:] if is_plain else []) and None):
        sys.exit(code)
    default_config(config_name)
    sys.argv[1:1] = _HYDRA_SETTINGS
    try:
        if {"-h", "--help"} & set(sys.argv):
            print(_usage(str(sys.modules[main.__module__].__doc__)), flush=True)
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


def _usage(text: str) -> str:
    """A script's docstring, its commands as they are typed where this package was started from."""
    if __package__ == "scripts":
        return text
    return re.sub(r"python -m scripts\.(\w+)", lambda found: f"weightfoundry {found[1].replace('_', '-')}", text)


def _checked(config: DictConfig, config_name: str) -> DictConfig:
    unknown = sorted({str(key) for key in config} - set(default_config(config_name)))
    if unknown:
        raise ValueError(f"{config_name} has no settings {unknown}; see --help")
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"missing value: give {' '.join(f'{key}=...' for key in missing)}, or see --help")
    return config


def _report_errors(action: Callable[[], int | None]) -> int:
    try:
        return action() or 0
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise  # Lightning, on the other hand, turns an interrupt into an exit
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: BaseException) -> str:
    if isinstance(error, InstantiationException) and error.__cause__:
        return _one_line(error.__cause__)  # what the class said, not that it was called
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; pip install 'weightfoundry[all]' brings what the commands need"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return "; ".join(lines)
    if len(lines) > 1 and lines[1].startswith("Available options"):
        return f"{lines[0]}; there are {', '.join(takewhile(lambda line: not line.endswith('path:'), lines[2:]))}"
    return f"{lines[0].rstrip('.')}; see --help"
