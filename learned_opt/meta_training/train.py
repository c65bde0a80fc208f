"""Meta-training: descend on theta along estimated gradients, with checkpoints from which it resumes bit for bit.

Every random number of outer step k comes from a generator seeded by (seed, k), so a run that was interrupted resumes
exactly as if it had not been, and a run split over processes draws what a single process would.

Legend: M meta-parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from learned_opt.meta_training.devices import Devices
from learned_opt.meta_training.estimators import GradientEstimator
from learned_opt.meta_training.theta_optimizer import ThetaOptimizer, ThetaOptimizerConfig
from zoo.ambient import torch_defaults
from zoo.networks.initialization import derive_seed
from zoo.settings import Json, as_json, installed_software, require_same, warn_of_other_software
from zoo.storage.durable import write_state

_CHECKPOINT_VERSION: Final = 2
# What decides no step of theta; and the recipe's training, which is the config but for its seed.
_FREE: Final = ("config.checkpoint_every", "settings.stage.training", "settings.stage.kept_share")


@dataclass(frozen=True, kw_only=True)
class MetaTrainConfig:
    """How long, how often to look, and the theta optimizer.

    Args:
        num_outer_steps: updates of theta.
        optimizer: of theta.
        seed: of perturbations, tasks and data.
        validate_every: outer steps between validations; the last step is always validated.
        checkpoint_every: outer steps between checkpoints.
    """

    num_outer_steps: int
    optimizer: ThetaOptimizerConfig
    seed: int = 0
    validate_every: int = 50
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        if min(self.num_outer_steps, self.validate_every, self.checkpoint_every) < 1:
            raise ValueError(f"numbers of outer steps must be positive, got {self}")


@dataclass
class MetaTrainHistory:
    """Curves of a meta-training."""

    meta_loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    num_inner_steps: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)  # (outer steps done, validation meta-loss)


@dataclass(frozen=True)
class MetaTrainResult:
    """`theta` (M,) of the best validation, `last_theta` of the last outer step, and the curves."""

    theta: Tensor
    last_theta: Tensor
    history: MetaTrainHistory


Progress = Callable[[int, MetaTrainHistory], object]


@torch_defaults()
def meta_train(
    estimator: GradientEstimator,
    theta: Tensor,
    config: MetaTrainConfig,
    *,
    unit: float | Tensor,
    validate: Callable[[Tensor], float] | None = None,
    out: Path | None = None,
    settings: object = None,
    on_outer_step: Progress | None = None,
    devices: Devices | None = None,
    device: torch.device | str = "auto",
) -> MetaTrainResult:
    """Meta-parameters with the lowest validation meta-loss.

    Theta itself stays on the CPU; an outer step ends by reading its gradient. A checkpoint is resumed on any device.

    Args:
        estimator: of the meta-gradient.
        theta: (M,) start.
        unit: scale of each meta-parameter, normally the perturbation's standard deviation.
        validate: meta-loss of a theta on tasks kept for selection; without it the last theta is the result.
        out: folder of checkpoints; a run of the same settings found there is resumed.
        settings: what the estimator was made from, and whatever else decides theta; needed with `out`.
        on_outer_step: called with the number of outer steps done and the history.
        devices: processes among which particles are split; all must call this function with the same arguments.
        device: where networks are trained, see `Devices.place`.

    Raises:
        SettingsMismatchError: if the checkpoint in `out` is of other settings.
        ValueError: if it is of another release, or there are no settings to tell.
    """
    devices = devices or Devices()
    if out is not None and settings is None:
        raise ValueError("a folder of checkpoints needs settings, which say what the estimator was made from")
    estimator.to(devices.place(device))
    optimizer = ThetaOptimizer(theta, config.optimizer, unit=unit, num_outer_steps=config.num_outer_steps)
    run = _Run(optimizer, estimator, MetaTrainHistory(), theta, float("inf"), 0)
    path = out and out / f"checkpoint-{devices.rank}.pt"
    decisive = {
        "config": config,
        "settings": settings,
        "start": theta,
        "unit": unit,
        "num_processes": devices.num_processes,
    }
    record = as_json(decisive)
    if path and path.exists():
        run.load(path, decisive)
    while run.outer_steps < config.num_outer_steps:
        run.advance(config.seed)
        is_last = run.outer_steps == config.num_outer_steps
        if validate and (is_last or run.outer_steps % config.validate_every == 0):
            run.validated(validate(run.optimizer.theta))
        if path and (is_last or run.outer_steps % config.checkpoint_every == 0):
            run.save(path, record)
        if on_outer_step:
            on_outer_step(run.outer_steps, run.history)
    best = run.best_theta if validate else run.optimizer.theta
    return MetaTrainResult(best, run.optimizer.theta, run.history)


@dataclass
class _Run:
    optimizer: ThetaOptimizer
    estimator: GradientEstimator
    history: MetaTrainHistory
    best_theta: Tensor
    best_validation: float
    outer_steps: int

    def advance(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(derive_seed(seed, "outer", self.outer_steps))
        estimate = self.estimator.estimate(self.optimizer.theta, rng)
        norm = self.optimizer.step(estimate.grad, self.outer_steps)
        self.outer_steps += 1
        self.history.meta_loss.append(estimate.meta_loss)
        self.history.grad_norm.append(norm)
        self.history.num_inner_steps += estimate.num_inner_steps

    def validated(self, validation: float) -> None:
        self.history.validation.append((self.outer_steps, validation))
        if validation < self.best_validation:
            self.best_theta, self.best_validation = self.optimizer.theta, validation

    def save(self, path: Path, settings: Json) -> None:
        state = {
            "version": _CHECKPOINT_VERSION,
            "settings": settings,
            "software": installed_software(),
            "optimizer": self.optimizer.state_dict(),
            "estimator": self.estimator.state_dict(),
            "history": asdict(self.history),
            "best_theta": self.best_theta,
            "best_validation": self.best_validation,
            "outer_steps": self.outer_steps,
        }
        write_state(path, state)

    def load(self, path: Path, settings: object) -> None:
        state = torch.load(path, weights_only=True)
        if state["version"] != _CHECKPOINT_VERSION:
            raise ValueError(f"{path} is of another release, which this one cannot resume; choose another folder")
        require_same(state["settings"], settings, f"the meta-training in {path.parent}", free=_FREE)
        warn_of_other_software(state["software"], installed_software(), f"the meta-training in {path.parent}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.estimator.load_state_dict(state["estimator"])
        history = state["history"]
        history["validation"] = [tuple(entry) for entry in history["validation"]]
        self.history = MetaTrainHistory(**history)
        self.best_theta, self.best_validation = state["best_theta"], state["best_validation"]
        self.outer_steps = state["outer_steps"]
