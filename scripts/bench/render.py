"""Write the tables of the recorded benchmarks: `docs/results/<topic>.md` from `scripts/bench/results/<topic>.jsonl`.

    python -m scripts.bench.render             # all topics
    python -m scripts.bench.render population  # one of them

What the figures mean and what was learned from them is said in docs/findings.md, which this never touches.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..rows import table
from .record import RESULTS, read_rows

TABLES = Path(__file__).parents[2] / "docs" / "results"


def main(topics: Sequence[str]) -> None:
    known = sorted(path.stem for path in RESULTS.glob("*.jsonl"))
    if unknown := sorted(set(topics) - set(known)):
        sys.exit(f"topics must be among {known}, got {unknown}")
    TABLES.mkdir(parents=True, exist_ok=True)
    for topic in topics or known:
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
    main(sys.argv[1:])
