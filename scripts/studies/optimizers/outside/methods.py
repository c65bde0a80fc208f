"""The optimizers that are tried on the panel, each as the library that users have.

Muon and NorMuon orthogonalise every tensor of two and more dimensions that is no embedding, kernels and outputs too,
which makes them the stronger rivals; the rest is left to their AdamW, at the same learning rate.

Legend: T steps of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.optim import Optimizer

from learned_opt import MuLO, Pretrained, load_pretrained
from learned_opt.optimizer.torch_optimizer import AVERAGE_POWER
from learned_opt.rules.normalized import OPEN_FRACTION

RATE_STEP: Final = 10**0.5  # between neighbouring learning rates
WEIGHT_DECAY: Final = 0.01
SCHEDULE_FREE_WARMUP: Final = 16
SOAP_LARGEST_SIDE: Final = 512  # of matrices that SOAP preconditions


@dataclass(frozen=True)
class OutsideMethod:
    """An optimizer with the learning rates that a sweep begins with.

    Args:
        name: for tables.
        make: optimizer of a model at a learning rate for T steps.
        rates: neighbours by a factor of RATE_STEP; a single one is not swept.
        has_cosine: whether the rate decays to zero along a cosine, so that a run of T steps is of no use for fewer.
        is_anytime: whether what `optimizer.eval()` shows is worth keeping at every step.
        identity: what results are kept under, default the name.
    """

    name: str
    make: Callable[[nn.Module, float, int], Optimizer]
    rates: tuple[float, ...] = (1.0,)
    has_cosine: bool = False
    is_anytime: bool = False
    identity: str = ""

    def factor(self, step: int, num_steps: int) -> float:
        """Of the learning rate of a step."""
        return 0.5 * (1 + math.cos(math.pi * step / num_steps)) if self.has_cosine else 1.0


def outside_rivals() -> list[OutsideMethod]:
    """Those that were made by hand."""
    adam, matrix = (1e-3, 1e-3 * RATE_STEP, 1e-2), (1e-2, 1e-2 * RATE_STEP, 1e-1)
    return [
        OutsideMethod("AdamW", _adamw, adam, has_cosine=True),
        OutsideMethod("Muon .95", partial(_muon, momentum=0.95), matrix, has_cosine=True),
        OutsideMethod("Muon .8", partial(_muon, momentum=0.8), matrix, has_cosine=True),
        OutsideMethod("NorMuon", _normuon, matrix, has_cosine=True),
        OutsideMethod("SOAP", _soap, adam, has_cosine=True),
        OutsideMethod("Prodigy", _prodigy, (RATE_STEP**-1, 1.0, RATE_STEP), has_cosine=True),
        OutsideMethod("Schedule-Free", _schedule_free, (1e-2 / RATE_STEP, 1e-2, 1e-2 * RATE_STEP), is_anytime=True),
    ]


def learned(theta: str | Pretrained) -> list[OutsideMethod]:
    """Meta-parameters as a rule that is told T, if it asks for it, and as one that is not and averages its weights."""
    pretrained = theta if isinstance(theta, Pretrained) else load_pretrained(theta)

    def told(model: nn.Module, rate: float, num_steps: int) -> Optimizer:
        return MuLO(model, pretrained, num_training_steps=num_steps, lr=rate)

    def not_told(model: nn.Module, rate: float, num_steps: int) -> Optimizer:
        return MuLO(model, pretrained, lr=rate)

    name, identity = f"{pretrained.name}, T known", f"told {pretrained.hash}"
    methods = [OutsideMethod(name, told, identity=identity)] if pretrained.rule.uses_horizon else []
    identity = f"{OPEN_FRACTION:g} {AVERAGE_POWER:g} {pretrained.hash}"
    return [*methods, OutsideMethod(pretrained.name, not_told, is_anytime=True, identity=identity)]


def _adamw(model: nn.Module, rate: float, num_steps: int) -> Optimizer:
    return torch.optim.AdamW(_trained(model), rate, weight_decay=WEIGHT_DECAY)


def _soap(model: nn.Module, rate: float, num_steps: int) -> Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(_trained(model), rate, weight_decay=WEIGHT_DECAY, max_precondition_dim=SOAP_LARGEST_SIDE)


def _prodigy(model: nn.Module, rate: float, num_steps: int) -> Optimizer:
    from prodigyopt import Prodigy

    return Prodigy(_trained(model), rate, weight_decay=WEIGHT_DECAY)


def _schedule_free(model: nn.Module, rate: float, num_steps: int) -> Optimizer:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(_trained(model), rate, warmup_steps=SCHEDULE_FREE_WARMUP, weight_decay=WEIGHT_DECAY)


def _muon(model: nn.Module, rate: float, num_steps: int, *, momentum: float) -> Optimizer:
    from pytorch_optimizer import Muon

    groups = _matrices_and_others(model, rate, momentum=momentum, use_adjusted_lr=True)
    return Muon(groups)


def _normuon(model: nn.Module, rate: float, num_steps: int) -> Optimizer:
    from pytorch_optimizer import NorMuon

    return NorMuon(_matrices_and_others(model, rate, update_scale="match_rms"))


def _matrices_and_others(model: nn.Module, rate: float, **options: Any) -> list[dict[str, Any]]:
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for p in _trained(model) if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in _trained(model) if p.ndim < 2 or id(p) in embeddings]
    shared = {"lr": rate, "weight_decay": WEIGHT_DECAY}
    groups = [
        {"params": matrices, "use_muon": True, **shared, **options},
        {"params": others, "use_muon": False, "betas": (0.9, 0.999), "eps": 1e-8, **shared},
    ]
    return [group for group in groups if group["params"]]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]
