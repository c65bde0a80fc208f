"""What populations are trained on: data sets, objectives, and the tasks that join them to a module."""

from typing import TYPE_CHECKING

from zoo.lazy import lazy_surface

if TYPE_CHECKING:
    from zoo.tasks.registry import get_task
    from zoo.tasks.task import Batch, Task
else:
    __getattr__, __dir__ = lazy_surface(__name__)

__all__ = ["Batch", "Task", "get_task"]
