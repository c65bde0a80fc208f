"""Coordinate check: do the activations of a network change equally much at every width?

In µP the change that training makes to the activations of each layer neither vanishes nor grows with width; in standard
parametrization it grows. This is the test of a parametrization, and of the optimizer that is meant to respect it.

Source: Yang et al. 2022 (arXiv 2203.03466), appendix D.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learned_opt.optimizer.torch_optimizer import MuLO
from learned_opt.pretrained.files import Pretrained, load_pretrained
from learned_opt.rules.registry import get_rule
from zoo.networks.architectures import MLP
from zoo.networks.parametrization import parametrize

ModelOfWidth = Callable[[int], nn.Module]
OptimizerOfModel = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class CoordinateCheck:
    """Change of the activations of each layer at each width, after some updates.

    Args:
        widths: of the models.
        layers: names of the modules whose outputs were compared.
        change: (widths, layers) root mean square over units and examples of the change since initialisation.
    """

    widths: tuple[int, ...]
    layers: tuple[str, ...]
    change: np.ndarray

    @property
    def growth(self) -> dict[str, float]:
        """Exponent of width in the change of each layer: near 0 in µP, by least squares in the logs."""
        logs = np.log(np.maximum(self.change, 1e-30))
        slopes = np.polyfit(np.log(self.widths), logs, 1)[0]
        return dict(zip(self.layers, slopes.tolist(), strict=True))


def coordinate_check(
    make_model: ModelOfWidth,
    make_optimizer: OptimizerOfModel,
    inputs: Tensor,
    targets: Tensor,
    *,
    widths: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
    num_updates: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    layers: Sequence[str] | None = None,
) -> CoordinateCheck:
    """Train models of several widths for a few steps on one batch and compare their activations.

    Args:
        make_model: width -> classifier, initialised under torch's global seed.
        make_optimizer: model -> optimizer.
        inputs: (B, ...).
        targets: (B,) class indices.
        widths: to compare.
        num_updates: steps of training.
        seeds: the change is averaged over these initialisations.
        layers: names of modules, default all linear and convolutional ones.
    """
    names = tuple(layers or _default_layers(make_model(min(widths))))
    change = np.zeros((len(widths), len(names)))
    for i, width in enumerate(widths):
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = make_model(width)
                change[i] += _change(
                    model, make_optimizer(model), inputs, targets, names=names, num_updates=num_updates
                )
    return CoordinateCheck(tuple(widths), names, change / len(seeds))


def check_pretrained(
    theta: str | Path | Pretrained, widths: Sequence[int], seeds: Sequence[int] = (0, 1, 2)
) -> dict[str, CoordinateCheck]:
    """Checks of MLPs 32-W-W-10 on random data: the optimizer in µP, the same without µP, and Adam without µP.

    Args:
        theta: meta-parameters, as of `LearnedOptimizer`.
        widths: W.
        seeds: of the initialisations.
    """
    ours = theta if isinstance(theta, Pretrained) else load_pretrained(theta)
    without_mup = ours  # other rules have the width in their own step
    if ours.rule.name == "mlp":
        without_mup = replace(ours, rule=get_rule("mlp", **{**ours.rule.config, "parametrization": "sp"}))
    rng = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(64, 32, generator=rng), torch.randint(10, (64,), generator=rng)

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


def _default_layers(model: nn.Module) -> list[str]:
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def _change(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    *,
    names: Sequence[str],
    num_updates: int,
) -> np.ndarray:
    before = _activations(model, inputs, names)
    for _ in range(num_updates):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    after = _activations(model, inputs, names)
    return np.array([(b - a).square().mean().sqrt().item() for a, b in zip(before, after, strict=True)])


@torch.no_grad()
def _activations(model: nn.Module, inputs: Tensor, names: Sequence[str]) -> list[Tensor]:
    kept: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kept[name] = output.detach().clone()

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [kept[name] for name in names]
