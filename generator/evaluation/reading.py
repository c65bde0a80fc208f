"""How well a reader reads the networks of runs that its training never saw.

Legend: B networks.
"""

from __future__ import annotations

import torch

from generator.reading.reader import WeightReader, WeightReading
from generator.training.reader import Labelled, told_of_tasks
from generator.training.tasks import task_of
from zoo.networks.metrics import r2
from zoo.storage.zoo import Zoo


def reading_report(reader: WeightReader, zoo: Zoo, split: str = "test") -> dict[str, dict[str, float]]:
    """By quantity that the zoo records: R² of what is read, and the share of intervals that hold the true value.

    "finals" is R² over the last networks of the runs alone, which are much more alike. Losses and positive
    hyperparameters count by their logarithms. Empty for a split without runs.
    """
    if not len(zoo.split(split)):
        return {}
    recorded = {*zoo.spec.metric_names, *zoo.spec.columns, *told_of_tasks(zoo, reader.quantities)}
    known = [name for name in reader.quantities if name in recorded]
    runs = Labelled.of(zoo, split, known)
    rows, snapshots = runs.everything()
    params, values = runs.at(rows, snapshots)
    task = task_of(zoo) if reader.inputs is not None else None
    reading = reader.read(params, layout=zoo.layout, task=task)
    is_last = snapshots == runs.runs.counts[rows] - 1
    return _figures(reader, reading, values, is_last)


def _figures(
    reader: WeightReader, reading: WeightReading, values: dict[str, torch.Tensor], is_last: torch.Tensor
) -> dict[str, dict[str, float]]:
    read, true = (reader.standardised(some).cpu() for some in (reading.values, values))  # (B, Q)
    report = {}
    for column, name in enumerate(reader.quantities):
        if name not in values:
            continue
        there = true[:, column].isfinite()
        held = (reading.low[name].cpu() <= values[name]) & (values[name] <= reading.high[name].cpu())
        report[name] = {
            "r2": r2(read[there, column], true[there, column]).item(),
            "finals": r2(read[there & is_last, column], true[there & is_last, column]).item(),
            "coverage": held[there].float().mean().item(),
        }
    return report
