"""The coordinate check of a pretrained optimizer beside what it must beat, and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from learned_opt.evaluation.coordinate_check import CoordinateCheck, OptimizerOfModel, coordinate_check
from learned_opt.optimizer.torch_optimizer import MuLO
from learned_opt.pretrained.files import Pretrained, load_pretrained
from learned_opt.rules.registry import get_rule
from zoo.devices import resolve_device
from zoo.networks.architectures import MLP
from zoo.networks.parametrization import parametrize


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
    rng = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(64, 32, generator=rng), torch.randint(10, (64,), generator=rng)
    device = resolve_device(device)
    inputs, targets = inputs.to(device), targets.to(device)

    def check(parametrization: str, make_optimizer: OptimizerOfModel) -> CoordinateCheck:
        def make_model(width: int) -> nn.Module:
            return parametrize(MLP(32, (width, width), 10), parametrization)

        return coordinate_check(make_model, make_optimizer, inputs, targets, widths=widths, seeds=seeds)

    def learned(pretrained: Pretrained) -> OptimizerOfModel:
        return lambda model: MuLO(model, pretrained, num_training_steps=100)

    return {
        f"{ours.name} in µP": check("mup", learned(ours)),
        f"{ours.name}, standard": check("sp", learned(without_mup)),
        "Adam, standard": check("sp", lambda model: torch.optim.Adam(model.parameters(), 1e-3)),
    }


def plot(checks: dict[str, CoordinateCheck], path: str | Path) -> None:
    """Picture of the change against width, one panel for each named check."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(checks), 3.4), layout="constrained")
    panels = figure.subplots(1, len(checks), sharey=True, squeeze=False)[0]
    for panel, (title, check) in zip(panels, checks.items(), strict=True):
        for layer, values in zip(check.layers, check.change.T, strict=True):
            panel.loglog(check.widths, values, marker="o", label=layer, base=2)
        panel.set(title=title, xlabel="width")
        panel.legend(fontsize="small")
    panels[0].set_ylabel("change of activations (RMS)")
    figure.savefig(path)
