"""Populations of trained networks: train them at once, keep every trajectory, read them fast."""

from typing import TYPE_CHECKING

from zoo.lazy import lazy_surface
from zoo.moved import find_moved_modules

if TYPE_CHECKING:
    from zoo.building.build import build_zoo
    from zoo.checkpoints.importer import import_checkpoints
    from zoo.networks.layout import GroupAxis, LayoutMismatchError, ParamLayout, ParamSlot, SymmetryGroup
    from zoo.storage.schema import RunStatus, ZooSpec
    from zoo.storage.writer import ZooWriter
    from zoo.storage.zoo import Zoo
    from zoo.tasks.registry import get_task
    from zoo.tasks.task import Batch, Task
    from zoo.training.population import train_population
else:
    __getattr__, __dir__ = lazy_surface(__name__)

find_moved_modules()

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
