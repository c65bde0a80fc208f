"""How many runs to train together where nobody says: what the device and the host hold, and what fills the device.

Legend: N runs of a block, P numbers of one network, S snapshots, B examples of a minibatch.
"""

from __future__ import annotations

import os
from typing import Final

import torch

from zoo.building.plan import TRAINING_COPIES, BuildPlan

FILLING: Final = 2**25  # numbers N * P from which on larger populations are hardly faster on any card
LEAST_FILLING: Final = 256
_SHARE: Final = 0.7  # of the free memory, because populations are not all of it
_COPIES_ON_HOST: Final = 2  # of all snapshots of a block
_NUM_TRIED: Final = (32, 64)
_NUM_STEPS: Final = 4  # the last of which are launched as a graph, with memory of its own


def fitting_block_size(plan: BuildPlan) -> int:
    """Runs of a block, equally many in all blocks if possible: as many as fit, up to what fills the device."""
    num_params = plan.task.layout.num_params
    on_host = 4 * num_params * len(plan.steps) * _COPIES_ON_HOST
    if plan.task.device.type == "cuda":
        free = torch.cuda.mem_get_info(plan.task.device)[0]
        fits = min(free / _bytes_on_device(plan), _free_on_host() / on_host)
    else:
        fits = _free_on_host() / (on_host + _estimated_bytes(plan))
    fills = max(LEAST_FILLING, FILLING // num_params)
    num_blocks = -(-plan.num_runs // max(1, min(int(_SHARE * fits), fills)))
    return -(-plan.num_runs // num_blocks)


def _bytes_on_device(plan: BuildPlan) -> float:
    """What one more run takes while it is trained: measured on two small populations."""
    device, peaks = plan.task.device, []
    for num_runs in _NUM_TRIED:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        list(plan.population(range(num_runs), num_steps=_NUM_STEPS, snapshot_steps=(_NUM_STEPS,), compile=False))
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
    return max(1.0, (peaks[1] - peaks[0]) / (_NUM_TRIED[1] - _NUM_TRIED[0]))


def _estimated_bytes(plan: BuildPlan) -> int:
    """The same where memory is not counted: copies of the parameters, and activities twice for the backward pass."""
    microbatch = plan.minibatch_size // plan.accumulate
    return plan.task.layout.num_params * 4 * TRAINING_COPIES + 2 * microbatch * plan.task.bytes_per_example


def _free_on_host() -> float:
    """Bytes, infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")
