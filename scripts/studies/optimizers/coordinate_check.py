"""The coordinate checks of a pretrained optimizer over width and depth, beside what it must beat, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import nn

from learned_opt.evaluation.coordinate_check import CoordinateCheck, OptimizerOfModel, coordinate_check
from learned_opt.optimizer.torch_optimizer import MuLO
from learned_opt.pretrained.files import Pretrained, load_pretrained
from learned_opt.rules.registry import get_rule
from zoo.devices import resolve_device
from zoo.networks.architectures import MLP
from zoo.networks.parametrization import parametrize

from .outside.models import ResidualMLP

DEPTH_CHECK_WIDTH: Final = 64
SMALL_STEP: Final = 0.03  # learning rate at which the normalised stream of residual networks does not turn around
BRANCH_POWERS: Final = (0.0, 0.5, 1.0)  # of the number of blocks, by which each branch is divided; 1 in CompleteP


def check_pretrained(
    theta: str | Path | Pretrained,
    widths: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
    device: torch.device | str = "auto",
) -> dict[str, CoordinateCheck]:
    """Checks of MLPs 32-W-W-10 on random data: the optimizer in µP, the same without µP, and Adam without µP.

    Args:
        theta: meta-parameters, as of `LearnedOptimizer`.
        widths: W.
        seeds: of the initialisations.
        device: where networks are trained, see `zoo.devices.resolve_device`.
    """
    ours = theta if isinstance(theta, Pretrained) else load_pretrained(theta)
    without_mup = ours  # other rules have the width in their own step
    if ours.rule.name == "mlp":
        without_mup = replace(ours, rule=get_rule("mlp", **{**ours.rule.config, "parametrization": "sp"}))
    inputs, targets = _batch(device)

    def check(parametrization: str, make_optimizer: OptimizerOfModel) -> CoordinateCheck:
        def make_model(width: int) -> nn.Module:
            return parametrize(MLP(32, (width, width), 10), parametrization)

        return coordinate_check(make_model, make_optimizer, inputs, targets, sizes=widths, seeds=seeds)

    return {
        f"{ours.name} in µP": check("mup", _learned(ours)),
        f"{ours.name}, standard": check("sp", _learned(without_mup)),
        "Adam, standard": check("sp", _adam),
    }


def check_depths(
    theta: str | Path | Pretrained,
    depths: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
    device: torch.device | str = "auto",
) -> dict[str, CoordinateCheck]:
    """Checks of residual networks 32-64-(blocks)-10 by their number of blocks, as they are and with scaled branches.

    "blocks" is the residual stream at its end, "norm" that stream normalised.

    Args:
        theta: meta-parameters, as of `LearnedOptimizer`.
        depths: numbers of blocks.
        seeds: of the initialisations.
        device: where networks are trained, see `zoo.devices.resolve_device`.
    """
    ours = theta if isinstance(theta, Pretrained) else load_pretrained(theta)
    inputs, targets = _batch(device)

    def check(power: float, make_optimizer: OptimizerOfModel) -> CoordinateCheck:
        def make_model(depth: int) -> nn.Module:
            return ResidualMLP(32, DEPTH_CHECK_WIDTH, depth, 10, power)

        layers = ("input", "blocks", "norm", "output")
        return coordinate_check(make_model, make_optimizer, inputs, targets, sizes=depths, seeds=seeds, layers=layers)

    checks = {
        f"{ours.name}, branches / L^{power:g}": check(power, _learned(ours, SMALL_STEP)) for power in BRANCH_POWERS
    }
    return {**checks, "Adam, branches / L^1": check(1.0, _adam)}


def _batch(device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    rng, place = torch.Generator().manual_seed(0), resolve_device(device)
    inputs, targets = torch.randn(64, 32, generator=rng), torch.randint(10, (64,), generator=rng)
    return inputs.to(place), targets.to(place)


def _learned(pretrained: Pretrained, lr: float = 1.0) -> OptimizerOfModel:
    return lambda model: MuLO(model, pretrained, num_training_steps=100, lr=lr)


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 1e-3)


def plot(checks: dict[str, CoordinateCheck], path: str | Path, size: str = "width") -> None:
    """Picture of the change against width or depth, one panel for each named check."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(checks), 3.4), layout="constrained")
    panels = figure.subplots(1, len(checks), sharey=True, squeeze=False)[0]
    for panel, (title, check) in zip(panels, checks.items(), strict=True):
        for layer, values in zip(check.layers, check.change.T, strict=True):
            panel.loglog(check.sizes, values, marker="o", label=layer, base=2)
        panel.set(title=title, xlabel=size)
        panel.legend(fontsize="small")
    panels[0].set_ylabel("change of activations (RMS)")
    figure.savefig(path)
