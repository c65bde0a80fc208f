"""Tasks that a pipeline keeps: recorded by its training, made again to run networks, compared with one that is given.

A task is kept as what `get_task` makes it from. The frozen base of adapters is kept apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from zoo.networks.adapters import scale_of
from zoo.networks.base import hash_of
from zoo.networks.layout import LayoutMismatchError, ParamLayout
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task

TaskRecord = dict[str, Any] | None


def records_of(layouts: Sequence[ParamLayout], tasks: Sequence[Task | None]) -> list[TaskRecord]:
    """What `get_task` makes the first task of each layout from, without the base; None where it cannot."""
    found = {task.layout: task.config for task in reversed([task for task in tasks if task is not None])}
    return [json.loads(json.dumps(found.get(layout) or None)) for layout in layouts]


def made_again(record: TaskRecord, base: Mapping[str, Tensor]) -> Task | None:
    """The task of a record, of adapters on a base; None where there is none."""
    if record is not None and "adapter" in record:
        record = {**record, "adapter": {**record["adapter"], "base": base}}
    return None if record is None else get_task(**record)


def check_task(
    task: Task, layout: ParamLayout, *, base: Mapping[str, Tensor], records: Sequence[TaskRecord] | None
) -> None:
    """Refuse a task that is not of the networks to generate.

    Args:
        task: that was given.
        layout: of the networks.
        base: frozen numbers that the pipeline makes adapters of; empty if it makes none.
        records: of the tasks that it learned from; None if it has none.

    Raises:
        LayoutMismatchError: for another architecture, base, or scale of the adapters.
    """
    if [(slot.name, slot.shape) for slot in task.layout] != [(slot.name, slot.shape) for slot in layout]:
        raise LayoutMismatchError(f"task {task.name!r} is of another architecture than the networks to generate")
    if base and task.base_hash != hash_of(base):
        raise LayoutMismatchError(
            f"task {task.name!r} has the base {task.base_hash[:19] or 'none'}, the generator's adapters are of "
            f"{hash_of(base)[:19]}; make the task on that: adapter={{'base': pipe.base, ...}}"
        )
    if "adapter" not in task.config:
        return
    own, *known = (_scale(one["adapter"]) for one in (task.config, *(records or ())) if one and "adapter" in one)
    if known and own not in known:
        raise LayoutMismatchError(
            f"the adapters of task {task.name!r} are scaled by {own:g}, those that the generator learned from by "
            f"{known[0]:g}; give the task their alpha"
        )


def _scale(adapter: Any) -> float:
    return scale_of(**{name: adapter[name] for name in ("rank", "alpha", "scaling") if name in adapter})
