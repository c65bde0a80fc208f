"""Write the tables of the recorded benchmarks: `docs/results/<topic>.md` from `scripts/bench/results/<topic>.jsonl`.

    python -m scripts.bench.render             # all topics
    python -m scripts.bench.render population  # one of them
    python -m scripts.bench.render --add PATH  # all, after the rows of `scripts.bench.all` in that folder were added

What the figures mean and what was learned from them is said in docs/findings.md, which this never touches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..rows import table
from .record import RESULTS, put, read_rows

TABLES = Path(__file__).parents[2] / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", nargs="*", help="default all")
    parser.add_argument("--add", type=Path, help="folder with rows to add first: `out` of scripts.bench.all")
    options = parser.parse_args()
    for path in sorted(options.add.glob("*.jsonl")) if options.add else ():
        put(path.stem, read_rows(path.stem, options.add))
    known = sorted(path.stem for path in RESULTS.glob("*.jsonl"))
    if unknown := sorted(set(options.topics) - set(known)):
        sys.exit(f"topics must be among {known}, got {unknown}")
    TABLES.mkdir(parents=True, exist_ok=True)
    for topic in options.topics or known:
        path = TABLES / f"{topic}.md"
        path.write_text(page(topic, read_rows(topic)))
        print(f"wrote {path}")


def page(topic: str, rows: Sequence[Mapping]) -> str:
    """Markdown: the tables of a topic, one for each question, with where their rows come from."""
    parts = [
        f"# {topic.replace('_', ' ').capitalize()}",
        f"Rendered from `scripts/bench/results/{topic}.jsonl`, not to be edited: see [README.md](README.md).",
    ]
    for question in dict.fromkeys(row["question"] for row in rows):
        some = [row for row in rows if row["question"] == question]
        parts += [
            f"## {question}",
            table(some),
            *dict.fromkeys(row["note"] for row in some if row["note"]),
            *_origins(some),
        ]
    return "\n\n".join(parts) + "\n"


def _origins(rows: Sequence[Mapping]) -> list[str]:
    """Where rows come from: commit, date, hardware and versions, and below these the commands."""
    commands: dict[str, dict[str, None]] = {}
    for row in rows:
        versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        origin = f"Commit {row['commit']}, {row['date']}; {row['hardware']}; {versions}:"
        commands.setdefault(origin, {})[row["command"]] = None
    return [part for origin, some in commands.items() for part in (origin, "\n".join(f"    {one}" for one in some))]


if __name__ == "__main__":
    main()
