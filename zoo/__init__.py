"""Populations of trained networks: train them at once, keep every trajectory, read them fast."""

from zoo.build import build_zoo
from zoo.interop import import_checkpoints
from zoo.layout import GroupAxis, LayoutMismatchError, ParamLayout, ParamSlot, SymmetryGroup
from zoo.population import train_population
from zoo.storage import RunStatus, ZooSpec, ZooWriter
from zoo.store import Zoo
from zoo.tasks import Batch, Task, get_task

__all__ = [
    "Batch",
    "GroupAxis",
    "LayoutMismatchError",
    "ParamLayout",
    "ParamSlot",
    "RunStatus",
    "SymmetryGroup",
    "Task",
    "Zoo",
    "ZooSpec",
    "ZooWriter",
    "build_zoo",
    "get_task",
    "import_checkpoints",
    "train_population",
]
