"""What a builder says of builds that are possible and hardly what was meant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from zoo.building.plan import DEFAULT_BATCH_SIZE, BuildPlan
from zoo.building.search import Search
from zoo.remarks import warn
from zoo.storage.schema import RunStatus
from zoo.storage.zoo import Zoo


def remark_on_plan(plan: BuildPlan) -> None:
    """Of small batches, networks in float64, and parameters that are only shrunk."""
    task = plan.task
    if plan.batch_size is None and plan.minibatch_size < DEFAULT_BATCH_SIZE:
        warn(
            f"batch_size is {plan.minibatch_size}, the whole training split, which is smaller than the default of "
            f"{DEFAULT_BATCH_SIZE}"
        )
    if any(slot.dtype == "float64" for slot in task.layout):
        warn(f"networks are trained in float64 and stored as {plan.dtype}")
    if task.unused and isinstance(plan.optimizer, Mapping) and plan.optimizer.get("weight_decay"):
        warn(
            f"the loss is no function of {list(task.unused[:5])}, which optimizers of torch leave as they are; here "
            "weight decay shrinks them, too"
        )


def remark_on_search(search: Search | None, plan: BuildPlan, num_blocks: int) -> None:
    """Of a search that has but one block to learn from."""
    learns = search is not None and search.sampler != "random"
    if learns and num_blocks == 1 < plan.num_runs:
        warn(
            f"the search learns from earlier blocks, but all {plan.num_runs:,} runs are in one; give a block_size, "
            f"such as {-(-plan.num_runs // 8)}"
        )


def remark_on_divergence(zoo: Zoo, plan: BuildPlan, path: Path) -> None:
    """Of a zoo most of whose runs diverged."""
    num_diverged = int((zoo.status == RunStatus.DIVERGED).sum())
    if 2 * num_diverged > plan.num_runs:
        count = "all" if num_diverged == plan.num_runs else f"{num_diverged:,} of"
        warn(
            f"{count} {plan.num_runs:,} runs of {path} diverged: their loss exceeded max_loss = {plan.max_loss:g} "
            "or was not finite; try a smaller learning rate or init_scale"
        )
