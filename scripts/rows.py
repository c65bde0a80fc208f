"""Rows of figures, and the Markdown tables that they make."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Figure = float | int | str | bool | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Args:
        question: what it answers; rows of one question make one table.
        setting: what was measured, by the names of the table's first columns, such as {"network": "64-16-10"}.
        figures: what came out, by name and unit, such as {"model-steps/s": 2384.0}; a word where that is the answer.
        spread: (low, high) of those figures that have one.
        seeds: of the repetitions, if seeds are what differs between them.
        note: what figures and spread are ("median and range of 7 repeats"), and what else a reader must know.
    """

    question: str
    setting: Mapping[str, str | int | float | bool]
    figures: Mapping[str, Figure]
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.spread) - set(self.figures)):
            raise ValueError(f"a spread needs its figure, got spreads of {unknown} beside {sorted(self.figures)}")


def over_seeds(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Figures and spread of a Row from the figures of each seed: means, and ranges if there are several seeds."""
    values = {name: [one[name] for one in found] for name in found[0]}
    spread = {name: (min(some), max(some)) for name, some in values.items()} if len(found) > 1 else {}
    return {"figures": {name: statistics.fmean(some) for name, some in values.items()}, "spread": spread}


def tables(rows: Sequence[Row]) -> str:
    """Markdown tables of rows that were just measured, one for each question."""
    parts = []
    for question in dict.fromkeys(row.question for row in rows):
        parts += [question, table([asdict(row) for row in rows if row.question == question])]
    return "\n\n".join(parts)


def table(rows: Sequence[Mapping]) -> str:
    """Markdown table of rows of one question: settings as text, figures as numbers with their spread in brackets.

    Hardware and seeds are columns where rows differ in them.
    """
    settings, figures = (
        list(dict.fromkeys(key for row in rows for key in row[part])) for part in ("setting", "figures")
    )
    columns = {name: [_text(row["setting"].get(name)) for row in rows] for name in settings}
    for name, values in (
        ("hardware", [row.get("hardware", "") for row in rows]),
        ("seeds", [", ".join(map(str, row["seeds"])) for row in rows]),
    ):
        if len(set(values)) > 1:
            columns[name] = values
    alignments = ["---"] * len(columns) + ["---:"] * len(figures)
    columns |= {name: [_cell(row["figures"].get(name), row["spread"].get(name)) for row in rows] for name in figures}
    lines = [list(columns), alignments, *zip(*columns.values(), strict=True)]
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
