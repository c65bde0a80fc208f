"""Learned optimizers: rules that are meta-trained on small tasks and used like any torch optimizer."""

from learned_opt.mlp_rule import MlpRule
from learned_opt.normalized_rule import NormalizedRule
from learned_opt.update_rule import TensorSpec, UpdateRule, get_rule

__all__ = ["MlpRule", "NormalizedRule", "TensorSpec", "UpdateRule", "get_rule"]
