"""Prompt alignment of trained generators, seeds averaged, as rows of a Markdown table.

    python -m scripts.bench.generator_table NAME=FOLDER,FOLDER,... [NAME=FOLDER,...]

Each folder is the output of one `scripts.train_generator`; the folders of a row differ in the seed alone. Prints mean
and half the range over the seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

COLUMNS = ("spearman", "r2_log", "test_r2_log", "lowest_prompt", "lowest_achieved", "accuracy", "finals")


def main(arguments: list[str]) -> None:
    print("| setting | zoo | mode | seeds | " + " | ".join(COLUMNS) + " | training s |")
    print("|" + "---|" * (len(COLUMNS) + 5))
    for argument in arguments:
        name, _, folders = argument.partition("=")
        summaries = [json.loads((Path(folder) / "summary.json").read_text()) for folder in folders.split(",")]
        seconds = spread([summary["training_seconds"] for summary in summaries], digits=0)
        for zoo, modes in summaries[0]["alignment"].items():
            for mode, figures in modes.items():
                rows = [summary["alignment"][zoo][mode] for summary in summaries]
                shown = COLUMNS if "r2_log" in figures else tuple(figures)
                cells = [spread([row[column] for row in rows]) for column in shown]
                print(f"| {name} | {Path(zoo).name} | {mode} | {len(rows)} | " + " | ".join(cells) + f" | {seconds} |")


def spread(values: list[float], digits: int = 3) -> str:
    """Mean, and half the range if there are several values."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.{digits}f}"


if __name__ == "__main__":
    main(sys.argv[1:])
