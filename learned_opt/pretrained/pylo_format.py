"""Reads the networks of PyLO: MetaMLP (small_fc_lopt, ELO, µLO), CELO2MLP (Celo2, ELO-Celo2) and VeLO.

MetaMLP: `network.input`, `network.linear_<i>`, `network.output`, each with `weight` (out, in) and `bias`. Its features
and their order are those of `MlpRule`; decays are fixed, so their offsets are zero.
CELO2MLP: first layer split by groups of features `w0.<i>` (in, H) with `b0`, then `dense_w.<i>` (in, out) and
`dense_b.<i>`. Its first release: `first_layer_weights.<i>` (H, in), `first_layer_bias`, then `hidden` and `output` as
torch's linear layers.
VeLO is two files. VeLORNN: `mix_layer2`, `final_mix_layer`, `lstm.linear`, `rnn_to_controls` and `step_size` as torch's
linear layers, `lstm_init_state.<i>` (1, S); `mix_layer1` has no effect. VeLOMLP, the bank: `input_weights_` (K, H, 30),
`hidden_weights_.0` (K, H, H), `output_weights_` (K, 3, H) and the biases; names without `_` are what was mixed last.

Source: Janson et al. 2025 (arXiv 2506.10315).

Legend: M meta-parameters, H hidden units, K networks in VeLO's bank, S units of its LSTM.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from learned_opt.rules.celo2 import Celo2Rule
from learned_opt.rules.mlp import MlpRule
from learned_opt.rules.rule import UpdateRule
from learned_opt.rules.velo import VeloRule

_META_LAYERS = ("network.input", "network.linear_0", "network.output")
_VELO_LSTM = ("mix_layer2", "final_mix_layer", "lstm.linear", "rnn_to_controls", "step_size")
_VELO_FIRST = ("lstm.linear.weight", "input_weights_")
_VELO_BANK = tuple(
    f"{name}_{part}_{i}"
    for name, i in (("input", ""), ("hidden", ".0"), ("output", ""))
    for part in ("weights", "bias")
)


def is_pylo(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of one of the networks."""
    return any(name in tensors for name in ("network.input.weight", "w0.0", "first_layer_weights.0", *_VELO_FIRST))


def are_velo(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a VeLORNN and a VeLOMLP, in any order, and no tensor is in both."""
    halves = [[name in part for name in _VELO_FIRST] for part in (one, other)]
    return sorted(halves) == [[False, True], [True, False]] and not one.keys() & other.keys()


def rule_and_theta(tensors: Mapping[str, Tensor]) -> tuple[UpdateRule, Tensor]:
    """Rule and meta-parameters (M,) of a network's state dict.

    Raises:
        ValueError: if its layers do not fit the rule.
    """
    if any(name in tensors for name in _VELO_FIRST):
        return _velo(tensors)
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


def _velo(tensors: Mapping[str, Tensor]) -> tuple[UpdateRule, Tensor]:
    if missing := [name for name in _VELO_FIRST if name not in tensors]:
        raise ValueError(
            f"VeLO is two files, VeLORNN and VeLOMLP, got one without {missing[0]!r}; give both: (RNN_FILE, MLP_FILE)"
        )
    layers = [f"{layer}.{part}" for layer in _VELO_LSTM for part in ("weight", "bias")]
    names = [*layers, "lstm_init_state.0", "lstm_init_state.1", *_VELO_BANK]
    if absent := [name for name in names if name not in tensors]:
        raise ValueError(f"VeLORNN and VeLOMLP must have the tensors {names}, these are missing: {absent}")
    if (weights := tensors["input_weights_"]).ndim != 3:
        raise ValueError(f"input_weights_ of a VeLOMLP must have the shape (K, H, 30), got {tuple(weights.shape)}")
    bank, hidden, _ = weights.shape
    rule = VeloRule(hidden, tensors["lstm_init_state.0"].numel(), bank)
    networks = torch.cat([tensors[name].flatten(1) for name in _VELO_BANK], dim=1)  # (K, numbers of one)
    parts = [tensors[name].flatten() for name in names if name not in _VELO_BANK]
    theta = torch.cat([*parts, networks.flatten()]).to(torch.float32)
    if theta.numel() != rule.num_theta:
        raise ValueError(f"a VeLO with {rule.config} has {rule.num_theta:,} numbers, got {theta.numel():,}")
    return rule, theta
