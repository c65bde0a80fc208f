"""Whether the runs of a block train together, or one after another by the plain module: measured where it is not clear.

Small networks train together, large ones (`ParamLayout.is_large`) one after another, in memory of a few copies of one.
Between the two a few steps of both are timed, and with images also such with their channels last. What was chosen is
recorded: a zoo is continued as it was begun.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from itertools import pairwise
from typing import Final

from zoo.building.plan import AUTO, LOOP, LOOP_CHANNELS_LAST, TOGETHER, BuildPlan

_SMALL: Final = 2**14  # numbers of a network up to which training together was faster wherever it was measured
_NUMBERS_TRIED: Final = 2**22  # of all networks of a trial
_WARM_UP: Final = 4  # steps; as of then a GPU launches them as a graph
_NUM_STEPS: Final = 8
_CLEARLY: Final = 0.8  # of the rule's time is the most that another may need: clocks are noisy, and bits differ
_WORDS: Final = {
    TOGETHER: "together",
    LOOP: "one after another by the plain module",
    LOOP_CHANNELS_LAST: "one after another by the plain module, channels last",
}


def with_execution(plan: BuildPlan) -> BuildPlan:
    """The plan with its execution chosen; a warning says in a line what was measured, if that is not the rule."""
    if plan.execution != AUTO:
        return plan
    if plan.search is not None:
        return replace(plan, execution=TOGETHER)
    rule, *others = _candidates(plan)
    if not others:
        return replace(plan, execution=rule)
    count = max(1, min(plan.runs_per_block, _NUMBERS_TRIED // plan.task.layout.num_params))
    seconds = {name: _seconds_of_step(replace(plan, execution=name), count) for name in (rule, *others)}
    best = min(others, key=lambda name: seconds[name])
    if seconds[best] >= _CLEARLY * seconds[rule]:
        return replace(plan, execution=rule)
    warnings.warn(
        f"task {plan.task.name!r}: runs train {_WORDS[best]}: {1e3 * seconds[best]:.3g} ms a step of each, "
        f"{_WORDS[rule]} {1e3 * seconds[rule]:.3g}",
        stacklevel=4,
    )
    return replace(plan, execution=best)


def _candidates(plan: BuildPlan) -> list[str]:
    """What may be fastest; the first is the rule."""
    task = plan.task
    inputs = task.dataset.train.inputs
    has_channels = inputs.ndim == 4 and inputs.shape[1] > 1 and task.has_module
    loops = [LOOP, LOOP_CHANNELS_LAST] if has_channels else [LOOP]
    if task.layout.is_large:
        return loops
    is_clear = task.layout.num_params < _SMALL or task.plays_episodes or plan.compiles(range(plan.runs_per_block))
    return [TOGETHER] if is_clear else [TOGETHER, *loops]


def _seconds_of_step(plan: BuildPlan, count: int) -> float:
    """Time of a training step of one network, among that many if they train together: the least of a few steps.

    On a CPU it is that of this process, whatever else runs there.
    """
    runs = range(count if plan.execution == TOGETHER else 1)
    steps = tuple(range(_WARM_UP, _NUM_STEPS + 1))
    snapshots = plan.population(runs, num_steps=_NUM_STEPS, snapshot_steps=steps, compile=False)
    clock = time.process_time if plan.task.device.type == "cpu" else time.perf_counter
    times = []
    for snapshot in snapshots:
        snapshot.params[0, 0].item()  # waits for the device
        times.append(clock())
    return min(later - earlier for earlier, later in pairwise(times)) / len(runs)
