"""Records of benchmarks: rows of JSON in `results/<topic>.jsonl`, one for each measurement.

A row says what was asked and in which setting, the figures with their spread, and what they came from: command, commit,
versions, hardware, date. `python -m scripts.bench.render` makes the tables in `docs/results` of them.
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from zoo.storage.durable import write_file

from ..json_values import json_value
from ..machine import card_versions, commit, hardware, versions
from ..rows import Row

RESULTS = Path(__file__).parent / "results"


def record(
    topic: str,
    rows: Iterable[Row],
    *,
    packages: Sequence[str] = ("torch", "numpy"),
    command: str | None = None,
    device: str | torch.device = "cpu",
    folder: Path = RESULTS,
) -> Path:
    """Path of `<folder>/<topic>.jsonl`, after the rows were put there.

    A row takes the place of one with the same question, setting and hardware; all others stay as they are, so that a
    second machine adds rows and erases none.

    Args:
        topic: name of the file.
        rows: what was measured.
        packages: whose versions matter, those of a GPU's software apart.
        command: that measured it; default that of this process.
        device: that the figures are of; a GPU is named in the hardware.
        folder: for the file.
    """
    origin = {
        "command": command or this_command(),
        "commit": commit(),
        "versions": versions(packages) | (card_versions() if torch.device(device).type == "cuda" else {}),
        "hardware": hardware(str(device)),
        "date": f"{datetime.date.today()}",
    }
    new = []
    for row in rows:
        values = asdict(row)
        values |= {"figures": json_value(row.figures), "spread": json_value(row.spread)}
        new.append({"topic": topic, **values, **origin})
    return put(topic, new, folder)


def put(topic: str, rows: Iterable[Mapping], folder: Path = RESULTS) -> Path:
    """Path of `<folder>/<topic>.jsonl`, after rows that have been recorded were put there, as `record` does."""
    kept = {_identity(row): row for row in (*read_rows(topic, folder), *rows)}
    path = folder / f"{topic}.jsonl"
    write_file(path, [f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in kept.values()])
    return path


def read_rows(topic: str, folder: Path = RESULTS) -> list[dict]:
    """Rows of a topic in the order of the file; none if it has no file yet."""
    path = folder / f"{topic}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _identity(row: Mapping) -> str:
    return json.dumps([row["question"], row["setting"], row["hardware"]], sort_keys=True)


def this_command() -> str:
    """The command line of this process as typed in a clone, and the number of threads if the environment sets it."""
    spec = sys.modules["__main__"].__spec__
    start = ["python", "-m", spec.name] if spec else ["python", sys.argv[0]]
    threads = [f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"] if "OMP_NUM_THREADS" in os.environ else []
    return shlex.join([*threads, *start, *sys.argv[1:]])
