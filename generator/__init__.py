"""Generate networks: from a zoo to new parameters, or to the update of a start that reaches a prompted loss.

    training   zoo -> trajectories -> training.pairs -> training.losses -> training.module
    the model  parameters -> tokens -> model.transformer -> parameters, for the layout and task of a model.context
    sampling   prompts.prompt and a start (networks) -> pipeline -> sampler -> model -> GeneratedParams
    reading    zoo -> training.reader -> reading.reader: weights -> loss, error and hyperparameters, with intervals
    judging    any sampler -> evaluation, on runs that training never saw (evaluation.testbed)
    tables     rows of a table never seen -> tabular -> a network for it, in one pass

`training.train.train_generator` and `pipeline.ParameterPipeline` are where to begin to read.
"""

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
    from generator.reading.reader import WeightReader
    from generator.tabular.classifier import GeneratedClassifier
    from generator.tokens.normalizer import ParamNormalizer
    from generator.training.config import GeneratorConfig, OptimizationConfig
    from generator.training.pairs import PairConfig
    from generator.training.reader import ReaderConfig, train_reader
    from generator.training.train import train_generator
else:
    __getattr__, __dir__ = lazy_surface(__name__)

__all__ = [
    "Alignment",
    "EvaluationConfig",
    "GeneratedClassifier",
    "GeneratedParams",
    "GeneratorConfig",
    "ObjectiveConfig",
    "OptimizationConfig",
    "PairConfig",
    "ParamNormalizer",
    "ParameterPipeline",
    "PipelineSampler",
    "ReaderConfig",
    "RecurrentDiffusionTransformer",
    "Testbed",
    "WeightReader",
    "evaluate",
    "measure_alignment",
    "prompt_grid",
    "train_generator",
    "train_reader",
]
