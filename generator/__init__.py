"""Generate networks: from a zoo to new parameters, or to the update of a start that reaches a prompted loss."""

from generator.dataset import PairConfig
from generator.evaluation import EvaluationConfig, PipelineSampler, Testbed, evaluate
from generator.lightning_module import OptimizationConfig
from generator.model import RecurrentDiffusionTransformer
from generator.normalizer import ParamNormalizer
from generator.objectives import ObjectiveConfig
from generator.pipeline import GeneratedParams, ParameterPipeline
from generator.prompt_alignment import Alignment, measure_alignment, prompt_grid
from generator.train import GeneratorConfig, train_generator

__all__ = [
    "Alignment",
    "EvaluationConfig",
    "GeneratedParams",
    "GeneratorConfig",
    "ObjectiveConfig",
    "OptimizationConfig",
    "PairConfig",
    "ParamNormalizer",
    "ParameterPipeline",
    "PipelineSampler",
    "RecurrentDiffusionTransformer",
    "Testbed",
    "evaluate",
    "measure_alignment",
    "prompt_grid",
    "train_generator",
]
