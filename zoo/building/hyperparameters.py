"""Optimizers from JSON-able options, with hyperparameters that may differ from run to run.

A hyperparameter is a number, or a range that each run draws from by its own seed:
`{"uniform": [low, high]}`, `{"log_uniform": [low, high]}`, `{"choice": [a, b, c]}`.

Legend: N networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

import torch
from torch import Tensor

from zoo.networks.initialization import derive_seed
from zoo.settings import Json
from zoo.training.muon import Muon
from zoo.training.optimizers import Adam, CompilableOptimizer, Sgd
from zoo.training.schedules import Schedule

OPTIMIZERS: Final[dict[str, type[Sgd | Adam | Muon]]] = {"sgd": Sgd, "adam": Adam, "muon": Muon}
RANGES: Final = ("uniform", "log_uniform", "choice")
_SCHEDULE_OPTIONS: Final = {"schedule": "name", "warmup_steps": "warmup_steps", "final_factor": "final_factor"}


def _default_options(name: str) -> dict[str, Json]:
    own = {field.name: field.default for field in fields(OPTIMIZERS[name]) if field.name != "schedule"}
    return {"name": name, **own, **{key: getattr(Schedule(), field) for key, field in _SCHEDULE_OPTIONS.items()}}


OPTIMIZER_DEFAULTS: Final[dict[str, dict[str, Json]]] = {name: _default_options(name) for name in OPTIMIZERS}


def make_optimizer(config: Mapping[str, Any], seeds: Sequence[int]) -> tuple[CompilableOptimizer, dict[str, Tensor]]:
    """Optimizer of a population, and those of its hyperparameters that differ between runs, each (N,) float64.

    Args:
        config: `name`, one of OPTIMIZERS, and some of its options in OPTIMIZER_DEFAULTS: hyperparameters, which may be
            ranges, and `schedule`, `warmup_steps` and `final_factor` of its Schedule.
        seeds: N seeds, one a run.

    Raises:
        ValueError: for unknown names, or values out of range.
    """
    name = config.get("name")
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {sorted(OPTIMIZERS)}, got {name!r}")
    unknown = sorted(set(config) - set(OPTIMIZER_DEFAULTS[name]))
    if unknown:
        known = sorted(set(OPTIMIZER_DEFAULTS[name]) - {"name"})
        raise ValueError(f"optimizer {name!r} has the options {known}, got {unknown}")
    schedule = Schedule(**{_SCHEDULE_OPTIONS[key]: config[key] for key in config if key in _SCHEDULE_OPTIONS})
    own = {key: value for key, value in config.items() if key not in ("name", *_SCHEDULE_OPTIONS)}
    drawn = {key: draw(value, seeds, key) for key, value in own.items() if isinstance(value, Mapping)}
    return OPTIMIZERS[name](schedule=schedule, **(own | drawn)), drawn


def is_range(value: object) -> bool:
    """Whether an option is a range that runs draw from."""
    return isinstance(value, Mapping) and set(value) <= set(RANGES)


def draw(spec: Mapping[str, Sequence[float]] | float, seeds: Sequence[int], name: str) -> Tensor:
    """One value for each run, (N,) float64; row i depends on the range, `seeds[i]` and `name` alone.

    Where a search proposed them the values are `{"given": [...]}`, one for each seed.

    Raises:
        ValueError: if the range is none of RANGES, or its bounds are not in order.
    """
    if isinstance(spec, int | float):
        return torch.full((len(seeds),), float(spec), dtype=torch.float64)
    kind, values = next(iter(spec.items())) if isinstance(spec, Mapping) and len(spec) == 1 else (None, ())
    if kind == "given":
        return torch.tensor(values, dtype=torch.float64)
    if kind not in RANGES or not isinstance(values, Sequence) or not all(isinstance(v, int | float) for v in values):
        raise ValueError(f"{name} must be a number or one of {RANGES} with its values, got {spec!r}")
    shares = torch.tensor([derive_seed(seed, name) / 2**63 for seed in seeds], dtype=torch.float64)  # [0, 1)
    if kind == "choice":
        options = torch.tensor(values, dtype=torch.float64)
        if not len(options):
            raise ValueError(f"{name} must have something to choose from, got {dict(spec)}")
        return options[(shares * len(options)).long().clamp(max=len(options) - 1)]
    if len(values) != 2 or not values[0] <= values[1] or (kind == "log_uniform" and values[0] <= 0):
        positive = "0 < " if kind == "log_uniform" else ""
        raise ValueError(f"{name} must be {kind} with {positive}low <= high, got {values}")
    if kind == "uniform":
        return values[0] + shares * (values[1] - values[0])
    return (math.log(values[0]) + shares * math.log(values[1] / values[0])).exp()
