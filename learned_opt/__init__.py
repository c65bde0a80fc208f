"""Learned optimizers: rules that are meta-trained on small tasks and used like any torch optimizer."""

from learned_opt.mlp_rule import MlpRule
from learned_opt.normalized_rule import NormalizedRule
from learned_opt.pretrained import Pretrained, available, load_pretrained, save_theta
from learned_opt.tensor_specs import tensor_specs
from learned_opt.torch_optimizer import LearnedOptimizer, MuLO
from learned_opt.update_rule import TensorSpec, UpdateRule, get_rule

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
