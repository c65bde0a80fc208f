"""What a build is made of: its plan, the optimizers of its runs, and where its blocks are computed."""

from zoo.building.executors import Executor, InProcess, LocalProcesses, RayExecutor, default_executor
from zoo.building.plan import BuildPlan

__all__ = [
    "BuildPlan",
    "Executor",
    "InProcess",
    "LocalProcesses",
    "RayExecutor",
    "default_executor",
]
