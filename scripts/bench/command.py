"""A benchmark as a command: the options are the parameters of the function that measures.

    def rows(zoo: str, *, num_starts: int = 64) -> Iterator[Row]:
        '''What is measured.

        Args:
            zoo: said of it by --help.
        '''

    if __name__ == "__main__":
        bench("generator", rows)

is `python -m scripts.bench.NAME ZOO [--num-starts 64] [--num-threads 1] [--record]`, which the module's docstring
explains. A parameter `device` is a name on the command line.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, get_origin

import torch

from zoo.devices import resolve_device

from ..rows import Row, tables
from .record import record

_ARGUMENT: Final = re.compile(r"^ +(\w+): (.+)$", re.MULTILINE)  # of a docstring
PACKAGES: Final = ("torch", "numpy")


def bench(
    topic: str,
    rows: Callable[..., Iterable[Row]],
    *,
    packages: Sequence[str] = PACKAGES,
    num_threads: int | None = None,
) -> None:
    """Measure rows with the parameters that the command line gives, and publish them.

    Args:
        topic, packages: see `record`.
        rows: measures as it is iterated. Parameters are strings, numbers, truth values that are false by default, or
            tuples of such; those without a default must be given.
        num_threads: default of the threads.
    """
    parser = arguments(str(sys.modules[rows.__module__].__doc__))
    parser.set_defaults(num_threads=num_threads or torch.get_num_threads())
    said = dict(_ARGUMENT.findall(rows.__doc__ or ""))
    parameters = inspect.signature(rows, eval_str=True).parameters
    for name, parameter in parameters.items():
        is_option = parameter.kind is parameter.KEYWORD_ONLY
        flag = f"--{name.replace('_', '-')}" if is_option else name
        parser.add_argument(flag, help=said.get(name), **_kind(parameter))
    options = parser.parse_args()
    if "device" in parameters:
        options.device = resolve_device(options.device)
    first = [getattr(options, name) for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    others = [getattr(options, name) for name, one in parameters.items() if one.kind is one.VAR_POSITIONAL]
    named = {name: getattr(options, name) for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    measured = rows(*first, *(value for values in others for value in values), **named)
    publish(topic, measured, options, packages=packages, device=named.get("device", "cpu"))


def arguments(doc: str) -> argparse.ArgumentParser:
    """The command line of a benchmark, of which the docstring is the help; `publish` reads what it adds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--record", action="store_true", help="put the rows into scripts/bench/results")
    return parser


def publish(
    topic: str,
    rows: Iterable[Row],
    options: argparse.Namespace,
    *,
    packages: Sequence[str] = PACKAGES,
    device: str | torch.device = "cpu",
) -> None:
    """Measure with the threads that were asked for, print the tables, and record the rows if that was asked for.

    Args:
        topic, packages, device: see `record`.
        rows: printed as they are measured, and all together at the end.
        options: of `arguments`.
    """
    torch.set_num_threads(options.num_threads)
    measured = []
    for row in rows:
        measured.append(row)
        print(tables([row]), flush=True)
    print(f"\n{tables(measured)}")
    if options.record:
        print(f"recorded in {record(topic, measured, packages=packages, device=device)}")


def _kind(parameter: inspect.Parameter) -> dict[str, Any]:
    """What argparse must know of a parameter."""
    default = parameter.default
    if parameter.kind is parameter.VAR_POSITIONAL:
        return {"nargs": "*"}
    if default is parameter.empty:
        several = {} if get_origin(parameter.annotation) is None else {"nargs": "+"}
        return several | ({"required": True} if parameter.kind is parameter.KEYWORD_ONLY else {})
    if isinstance(default, bool):
        return {"action": "store_true"}
    if isinstance(default, tuple):
        return {"nargs": "*", "type": type(default[0]) if default else str, "default": default}
    return {"type": type(default), "default": default}
