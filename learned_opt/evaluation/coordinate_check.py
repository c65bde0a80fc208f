"""Coordinate check: do the activations of a network change equally much at every width, or at every depth?

In µP the change that training makes to the activations of each layer neither vanishes nor grows with width; in standard
parametrization it grows. This is the test of a parametrization, and of the optimizer that is meant to respect it.
CompleteP asks the same of depth.

Source: Yang et al. 2022 (arXiv 2203.03466), appendix D.1; Dey et al. 2025 (arXiv 2505.01618) for depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ModelOfSize = Callable[[int], nn.Module]
OptimizerOfModel = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class CoordinateCheck:
    """Change of the activations of each layer at each size, after some updates.

    Args:
        sizes: widths or depths of the models.
        layers: names of the modules whose outputs were compared.
        change: (sizes, layers) root mean square over units and examples of the change since initialisation.
    """

    sizes: tuple[int, ...]
    layers: tuple[str, ...]
    change: np.ndarray

    @property
    def growth(self) -> dict[str, float]:
        """Exponent of the size in the change of each layer, by least squares in the logs: near 0 for widths in µP."""
        logs = np.log(np.maximum(self.change, 1e-30))
        slopes = np.polyfit(np.log(self.sizes), logs, 1)[0]
        return dict(zip(self.layers, slopes.tolist(), strict=True))


def coordinate_check(
    make_model: ModelOfSize,
    make_optimizer: OptimizerOfModel,
    inputs: Tensor,
    targets: Tensor,
    *,
    sizes: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
    num_updates: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    layers: Sequence[str] | None = None,
) -> CoordinateCheck:
    """Train models of several sizes for a few steps on one batch and compare their activations.

    Args:
        make_model: size -> classifier, initialised under torch's global seed.
        make_optimizer: model -> optimizer.
        inputs: (B, ...), on the device where models are trained.
        targets: (B,) class indices.
        sizes: to compare.
        num_updates: steps of training.
        seeds: the change is averaged over these initialisations.
        layers: names of modules that all models have, default all linear and convolutional ones of the smallest.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    modules = make_model(min(sizes)).named_modules()
    names = tuple(layers or (name for name, module in modules if isinstance(module, kinds)))
    change = np.zeros((len(sizes), len(names)))
    for i, size in enumerate(sizes):
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = make_model(size).to(inputs.device)
                change[i] += _change(
                    model, make_optimizer(model), inputs, targets, names=names, num_updates=num_updates
                )
    return CoordinateCheck(tuple(sizes), names, change / len(seeds))


def _change(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    *,
    names: Sequence[str],
    num_updates: int,
) -> np.ndarray:
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}  # of each forward pass
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, kept=kept: kept.append(output.detach().clone())
        )
        for name, kept in outputs.items()
    ]
    try:
        for _ in range(num_updates):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return np.array([(kept[-1] - kept[0]).square().mean().sqrt().item() for kept in outputs.values()])
