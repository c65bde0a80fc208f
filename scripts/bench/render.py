"""Write the tables of the recorded benchmarks: `docs/results/<topic>.md` from `scripts/bench/results/<topic>.jsonl`.

    python -m scripts.bench.render             # all topics
    python -m scripts.bench.render population  # one of them

What the figures mean and what was learned from them is said in docs/findings.md, which this never touches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.bench.record import RESULTS, Figure, Row, read_rows

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
    title = topic.replace("_", " ").capitalize()
    parts = [
        f"# {title}",
        f"Rendered from `scripts/bench/results/{topic}.jsonl`; do not edit. [What they mean](README.md)",
    ]
    for question in dict.fromkeys(row["question"] for row in rows):
        some = [row for row in rows if row["question"] == question]
        parts += [f"## {question}", table(some)]
        if notes := dict.fromkeys(row["note"] for row in some if row["note"]):
            parts.append("\n".join(notes))
        parts.append("\n".join(dict.fromkeys(_origin(row) for row in some)))
    return "\n\n".join(parts) + "\n"


def tables(rows: Sequence[Row]) -> str:
    """Markdown tables of rows that were just measured, one for each question."""
    parts = []
    for question in dict.fromkeys(row.question for row in rows):
        parts += [question, table([asdict(row) for row in rows if row.question == question])]
    return "\n\n".join(parts)


def table(rows: Sequence[Mapping]) -> str:
    """Markdown table of rows of one question: settings as text, figures as numbers with their spread in brackets.

    The hardware is a column where rows are of several machines.
    """
    settings, figures = (
        list(dict.fromkeys(key for row in rows for key in row[part])) for part in ("setting", "figures")
    )
    machines = ["hardware"] if len({row.get("hardware") for row in rows}) > 1 else []
    lines = [[*settings, *machines, *figures], ["---"] * len(settings + machines) + ["---:"] * len(figures)]
    for row in rows:
        cells = [_text(row["setting"].get(name)) for name in settings] + [row[name] for name in machines]
        lines.append(cells + [_cell(row["figures"].get(name), row["spread"].get(name)) for name in figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(figure: Figure, spread: Iterable[float] | None) -> str:
    return _text(figure) if spread is None else f"{_text(figure)} ({' to '.join(map(_text, spread))})"


def _text(value: Figure) -> str:
    """A value as a table shows it: thousands separated, four digits of what is no whole number."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _origin(row: Mapping) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
    seeds = f" Seeds {', '.join(map(str, row['seeds']))}." if row["seeds"] else ""
    return f"- `{row['command']}`, commit {row['commit']}, {row['date']}; {row['hardware']}; {versions}.{seeds}"


if __name__ == "__main__":
    main(sys.argv[1:])
