"""Generate networks: from a zoo to new parameters, or to the update of a start that reaches a prompted loss."""

from typing import TYPE_CHECKING

from zoo.lazy import lazy_surface

if TYPE_CHECKING:
    from generator.alignment import Alignment, measure_alignment, prompt_grid
    from generator.evaluation.protocol import EvaluationConfig, evaluate
    from generator.evaluation.testbed import PipelineSampler, Testbed
    from generator.model.objectives import ObjectiveConfig
    from generator.model.transformer import RecurrentDiffusionTransformer
    from generator.networks import GeneratedParams
    from generator.pipeline import ParameterPipeline
    from generator.tokens.normalizer import ParamNormalizer
    from generator.training.config import GeneratorConfig, OptimizationConfig
    from generator.training.pairs import PairConfig
    from generator.training.train import train_generator
else:
    __getattr__, __dir__ = lazy_surface(__name__)

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
