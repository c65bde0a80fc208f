"""Learned optimizers: rules that are meta-trained on small tasks and used like any torch optimizer."""

from typing import TYPE_CHECKING

from zoo.lazy import lazy_surface

if TYPE_CHECKING:
    from learned_opt.optimizer.torch_optimizer import LearnedOptimizer, MuLO
    from learned_opt.pretrained.files import Pretrained, available, load_pretrained, save_theta
    from learned_opt.rules.mlp import MlpRule
    from learned_opt.rules.normalized import NormalizedRule
    from learned_opt.rules.registry import get_rule
    from learned_opt.rules.rule import TensorSpec, UpdateRule
    from learned_opt.rules.tensor_specs import tensor_specs
else:
    __getattr__, __dir__ = lazy_surface(__name__)

__all__ = [
    "LearnedOptimizer",
    "MlpRule",
    "MuLO",
    "NormalizedRule",
    "Pretrained",
    "TensorSpec",
    "UpdateRule",
    "available",
    "get_rule",
    "load_pretrained",
    "save_theta",
    "tensor_specs",
]
