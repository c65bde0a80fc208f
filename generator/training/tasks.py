"""The tasks of zoos: those that they record, and those of a family that a generator never sees.

Unseen tasks are of the zoo's own test split, or as many as the training holds out. Both follow from the hash of a run's
task, so whoever knows the rule finds the same tasks again, and a training that holds out more tasks holds out those of
one that holds out fewer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zoo.storage.splits import SplitRule, uniform_hash
from zoo.storage.zoo import Zoo
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task


def task_of(zoo: Zoo) -> Task:
    """Task on which a zoo was trained, from the settings that it records.

    Raises:
        ValueError: if it records none that `get_task` can make.
    """
    options: dict[str, Any] = dict(zoo.task_config)
    if not options:
        raise ValueError("the zoo records no task; was it imported?")
    if "adapter" in options:
        options["adapter"] = {**options["adapter"], "base": zoo.base}
    return get_task(**options)


def holding_out(zoos: Sequence[Zoo], num_held_out: int) -> SplitRule:
    """Splits of which "test" has exactly `num_held_out` values of the zoos' split column, and "train" all others.

    Args:
        zoos: of one family of tasks.
        num_held_out: values that no training run has; with `digits_subset` pairs of a mask and its complement.

    Raises:
        ValueError: if nothing would be left on one side.
    """
    key = zoos[0].spec.splits.key
    places = np.sort(uniform_hash(np.unique(np.concatenate([zoo.runs[key][zoo.usable_runs()] for zoo in zoos]))))
    if not 0 < num_held_out < len(places):
        raise ValueError(
            f"num_held_out must be from 1 to {len(places) - 1}, below the number of tasks in column {key!r}"
        )
    share = float(places[num_held_out - 1 : num_held_out + 1].mean())  # "test" comes first in the order of the names
    return SplitRule({"test": share, "train": 1 - share}, key)


def with_splits(zoo: Zoo, rule: SplitRule | None) -> Zoo:
    """The same zoo with other splits; as it is without a rule."""
    if rule is None:
        return zoo
    view = copy.copy(zoo)  # of a selection a selection
    view.spec = replace(zoo.spec, splits=rule)
    return view
