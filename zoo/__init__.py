"""Populations of trained networks: train them at once, keep every trajectory, read them fast."""

from zoo.layout import GroupAxis, LayoutMismatchError, ParamLayout, ParamSlot, SymmetryGroup
from zoo.tasks import Batch, Task, get_task

__all__ = ["Batch", "GroupAxis", "LayoutMismatchError", "ParamLayout", "ParamSlot", "SymmetryGroup", "Task", "get_task"]
