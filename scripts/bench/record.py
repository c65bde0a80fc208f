"""Records of benchmarks: a Markdown file in `results` with command, commit, versions and hardware above its tables."""

from __future__ import annotations

import datetime
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from ..machine import commit, num_cores, processor

RESULTS = Path(__file__).parent / "results"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown table, its first column text and the others numbers."""
    lines = [f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def write_record(
    topic: str,
    question: str,
    body: str,
    packages: Sequence[str] = ("torch", "numpy"),
    arguments: Sequence[str] | None = None,
) -> Path:
    """Write `results/<topic>_<hardware>_<yyyymm>.md` and return its path.

    Args:
        topic: first part of the file's name.
        question: its heading.
        body: Markdown below the header.
        packages: whose versions matter.
        arguments: of the command, default those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    hardware = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    path = RESULTS / f"{topic}_{hardware}_{datetime.date.today():%Y%m}.md"
    command = " ".join(["python -m", sys.modules["__main__"].__spec__.name, *arguments])
    header = [
        f"# {question}",
        "",
        f"- Command: `{command}`",
        f"- Commit: {commit()}",
        f"- Versions: Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}",
        f"- Hardware: {processor()}, {num_cores()} cores",
        f"- Date: {datetime.date.today()}",
    ]
    RESULTS.mkdir(exist_ok=True)
    path.write_text("\n".join(header) + f"\n\n{body}\n")
    return path
