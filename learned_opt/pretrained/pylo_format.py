"""Reads the two networks of PyLO: MetaMLP (small_fc_lopt, µLO) and CELO2MLP.

MetaMLP: `network.input`, `network.linear_<i>`, `network.output`, each with `weight` (out, in) and `bias`. Its features
and their order are those of `MlpRule`; decays are fixed, so their offsets are zero.
CELO2MLP: first layer split by groups of features `w0.<i>` (in, H) with `b0`, then `dense_w.<i>` (in, out) and
`dense_b.<i>`. Its first release: `first_layer_weights.<i>` (H, in), `first_layer_bias`, then `hidden` and `output` as
torch's linear layers.

Source: Janson et al. 2025 (arXiv 2506.10315).

Legend: M meta-parameters, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from learned_opt.rules.celo2 import Celo2Rule
from learned_opt.rules.mlp import MlpRule
from learned_opt.rules.rule import UpdateRule

_META_LAYERS = ("network.input", "network.linear_0", "network.output")


def is_pylo(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of one of the networks."""
    return any(name in tensors for name in ("network.input.weight", "w0.0", "first_layer_weights.0"))


def rule_and_theta(tensors: Mapping[str, Tensor]) -> tuple[UpdateRule, Tensor]:
    """Rule and meta-parameters (M,) of a network's state dict.

    Raises:
        ValueError: if its layers do not fit the rule.
    """
    if "w0.0" in tensors:
        return _celo2(tensors)
    if "first_layer_weights.0" in tensors:
        return _celo2(_renamed(tensors))
    expected = {f"{layer}.{part}" for layer in _META_LAYERS for part in ("weight", "bias")}
    if set(tensors) != expected:
        raise ValueError(f"a MetaMLP must have the tensors {sorted(expected)}, got {sorted(tensors)}")
    rule = MlpRule(hidden=tensors["network.input.weight"].shape[0])
    layers = [tensors[f"{layer}.{part}"].flatten() for layer in _META_LAYERS for part in ("weight", "bias")]
    offsets = torch.zeros(rule.num_theta - sum(layer.numel() for layer in layers))
    return rule, torch.cat([*layers, offsets]).to(torch.float32)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the first release under the names and in the orientation of the later one."""
    prefix = "first_layer_weights."
    renamed = {name.replace(prefix, "w0."): tensor.T for name, tensor in tensors.items() if name.startswith(prefix)}
    renamed["b0"] = tensors["first_layer_bias"]
    for i, layer in enumerate(("hidden", "output")):
        renamed[f"dense_w.{i}"], renamed[f"dense_b.{i}"] = tensors[f"{layer}.weight"].T, tensors[f"{layer}.bias"]
    return renamed


def _celo2(tensors: Mapping[str, Tensor]) -> tuple[UpdateRule, Tensor]:
    num_groups = sum(name.startswith("w0.") for name in tensors)
    first = torch.cat([tensors[f"w0.{i}"] for i in range(num_groups)])  # (30, H)
    parts = [first, tensors["b0"]]
    for i in range(sum(name.startswith("dense_w.") for name in tensors)):
        parts += [tensors[f"dense_w.{i}"], tensors[f"dense_b.{i}"]]
    rule = Celo2Rule(hidden=first.shape[1])
    theta = torch.cat([part.T.flatten() if part.ndim == 2 else part for part in parts]).to(torch.float32)
    if theta.numel() != rule.num_theta:
        raise ValueError(f"a CELO2MLP of width {rule.hidden} has {rule.num_theta} numbers, got {theta.numel()}")
    return rule, theta
