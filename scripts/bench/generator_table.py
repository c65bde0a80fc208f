"""Do generated networks have the loss that was asked for? Prompt alignment of trained generators, seeds averaged.

    python -m scripts.bench.generator_table NAME=FOLDER,FOLDER,... [NAME=FOLDER,...] [--record]

Each folder is the output of one `scripts.train_generator`; the folders of a row differ in the seed alone. Prints mean
and range over the seeds and, with --record, puts the rows into scripts/bench/results.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..rows import Row, over_seeds
from .command import bench

QUESTION = "Do generated networks have the loss that was asked for?"
NAMES = {
    "spearman": "Spearman",
    "r2_log": "R²",
    "test_r2_log": "R² on test",
    "lowest_prompt": "lowest prompt",
    "lowest_achieved": "achieved",
}
PERCENTAGES = {"accuracy": "accuracy, %", "finals": "finals, %"}
PACKAGES = ("torch", "diffusers", "lightning")


def rows(*generators: str) -> Iterator[Row]:
    """Rows of each generator.

    Args:
        generators: NAME=FOLDER,FOLDER,...
    """
    for argument in generators:
        yield from rows_of(*argument.split("=", maxsplit=1))


def rows_of(name: str, folders: str) -> Iterator[Row]:
    """A row for each zoo and mode."""
    summaries = [json.loads((Path(folder) / "summary.json").read_text()) for folder in folders.split(",")]
    for zoo, modes in summaries[0]["alignment"].items():
        for mode in modes:
            seeds = [
                named(summary["alignment"][zoo][mode]) | {"seconds": summary["training_seconds"]}
                for summary in summaries
            ]
            yield Row(
                question=QUESTION,
                setting={"network": name, "zoo": Path(zoo).name, "mode": mode},
                **over_seeds(seeds),
                note="Unseen starts; R² is of log loss or returns against the prompt, accuracy on test data "
                f"at the lowest prompt. Mean and range over {len(seeds)} generator seed(s).",
            )


def named(report: Mapping[str, float]) -> dict[str, float]:
    """Figures of prompt alignment as tables name them; those of other reports (unseen tasks, returns) as they are."""
    known = {label: report[name] for name, label in NAMES.items() if name in report}
    shares = {label: 100 * report[name] for name, label in PERCENTAGES.items() if name in report}
    return {**known, **shares} if known else dict(report)


if __name__ == "__main__":
    bench("generator", rows, packages=PACKAGES)
