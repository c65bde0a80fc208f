"""The console command: `weightfoundry build-zoo out=PATH` is `python -m scripts.build_zoo out=PATH`, from anywhere.

What there is and what it is for is read from the files, so that the list comes without loading torch.
"""

from __future__ import annotations

import ast
import os
import sys
from difflib import get_close_matches
from importlib import import_module, metadata
from pathlib import Path

_FOLDER = Path(__file__).parent
COMMANDS = {path.stem.replace("_", "-"): path.stem for path in sorted((_FOLDER / "conf").glob("*.yaml"))}


def main() -> None:
    """Run the command that the process was started with, or say what there is; exits as `cli.run` does."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        _print(_usage())
    elif command == "--version":
        print(f"weightfoundry {metadata.version('weightfoundry')}")
    elif command == "doctor":  # also where what the other commands need is missing
        import_module(f"{__package__}.doctor").main()
    elif command not in COMMANDS:
        near = get_close_matches(command.replace("_", "-"), COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see weightfoundry --help"
        print(f"error: there is no command {command!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [f"weightfoundry {command}", *arguments]
        _run(COMMANDS[command])


def _run(script: str) -> None:
    try:
        cli = import_module(f"{__package__}.cli")
        module = import_module(f"{__package__}.{script}")
    except ModuleNotFoundError as error:
        if str(error.name).startswith(f"{__package__}."):
            raise
        print(f"error: this needs {error.name}: pip install 'weightfoundry[all]'", file=sys.stderr)
        sys.exit(2)
    cli.run(module.main, script)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever read the help has left: --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage() -> str:
    purposes = {
        command: str(ast.get_docstring(ast.parse((_FOLDER / f"{script}.py").read_text()))).partition("\n")[0]
        for command, script in {**COMMANDS, "doctor": "doctor"}.items()
    }
    width = max(map(len, purposes))
    lines = [f"  {command:{width}}  {purpose}" for command, purpose in purposes.items()]
    return "\n".join(
        [
            "weightfoundry COMMAND [NAME=VALUE ...]",
            "",
            *lines,
            "",
            "weightfoundry COMMAND --help shows what a command takes, and its defaults.",
        ]
    )


if __name__ == "__main__":
    main()
