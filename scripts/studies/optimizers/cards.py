"""Tables in the cards that stand beside shipped weights."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ...rows import tables
from .comparison import Comparison
from .report import card_rows

TABLES_BEGIN: Final = "<!-- tables of scripts.evaluate_optimizer: begin -->"
TABLES_END: Final = "<!-- tables of scripts.evaluate_optimizer: end -->"


def write_cards(comparison: Comparison, folder: Path) -> list[Path]:
    """Put new tables into the cards NAME.md of the weights that were compared; returns their paths."""
    paths = []
    for name, method in comparison.shipped.items():
        if rows := card_rows(comparison, method):
            path = folder / f"{name}.md"
            path.write_text(with_tables(path.read_text(), tables(rows)))
            paths.append(path)
    return paths


def with_tables(card: str, tables: str) -> str:
    """The card with new tables between its two marks.

    Raises:
        ValueError: if the card lacks them.
    """
    before, begin, rest = card.partition(TABLES_BEGIN)
    _, end, after = rest.partition(TABLES_END)
    if not (begin and end):
        raise ValueError(f"a card must have the lines {TABLES_BEGIN!r} and {TABLES_END!r} around its tables")
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"
