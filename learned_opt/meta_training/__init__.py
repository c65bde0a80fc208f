"""How update rules get their theta: tasks, truncated training, estimators, the outer loop, recipes."""

from learned_opt.meta_training.devices import Devices, FabricDevices, launched_devices
from learned_opt.meta_training.estimators import FullUnrollES
from learned_opt.meta_training.objective import LogLossObjective
from learned_opt.meta_training.recipe import (
    FullUnrollConfig,
    MetaTrainStage,
    TrainedStage,
    TruncatedConfig,
    outer_curves,
    run_recipe,
    stage_info,
)
from learned_opt.meta_training.task_distribution import TaskDistributionConfig
from learned_opt.meta_training.task_family import TaskFamily
from learned_opt.meta_training.theta_optimizer import ThetaOptimizerConfig
from learned_opt.meta_training.train import MetaTrainConfig, MetaTrainHistory, meta_train

__all__ = [
    "Devices",
    "FabricDevices",
    "FullUnrollConfig",
    "FullUnrollES",
    "LogLossObjective",
    "MetaTrainConfig",
    "MetaTrainHistory",
    "MetaTrainStage",
    "TaskDistributionConfig",
    "TaskFamily",
    "ThetaOptimizerConfig",
    "TrainedStage",
    "TruncatedConfig",
    "launched_devices",
    "meta_train",
    "outer_curves",
    "run_recipe",
    "stage_info",
]
