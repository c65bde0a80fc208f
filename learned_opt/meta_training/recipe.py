"""A meta-training from beginning to end: stages with their rules, estimators and tasks, which hand theta on.

Legend: M meta-parameters, Q antithetic pairs, K inner steps of a truncation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from learned_opt.meta_training.devices import Devices
from learned_opt.meta_training.estimators import PES, FullUnrollES, GradientEstimator, TruncatedBackprop, TruncatedES
from learned_opt.meta_training.objective import LogLossObjective
from learned_opt.meta_training.task_distribution import (
    TaskDistribution,
    TaskDistributionConfig,
    bucket_families,
    data_hash,
)
from learned_opt.meta_training.train import MetaTrainConfig, MetaTrainHistory, MetaTrainResult, meta_train
from learned_opt.meta_training.truncated_step import LogUniformHorizon, TruncatedStep
from learned_opt.meta_training.validation import Validation, validation_tasks
from learned_opt.pretrained.files import load_pretrained
from learned_opt.rules.controller import embedding_offset, encoded_scalars, gradient_weights
from learned_opt.rules.normalized import NormalizedRule
from learned_opt.rules.registry import get_rule
from learned_opt.rules.rule import RuleOption, UpdateRule
from zoo.networks.initialization import derive_seed
from zoo.tracking import Tracker

_TRUNCATED: Final[dict[str, type[TruncatedES | TruncatedBackprop]]] = {
    "pes": PES,
    "truncated_es": TruncatedES,
    "backprop": TruncatedBackprop,
}


@dataclass(frozen=True, kw_only=True)
class FullUnrollConfig:
    """Settings of `FullUnrollES`: Q pairs, perturbation std, distribution of tasks."""

    num_pairs: int
    std: float
    tasks: TaskDistributionConfig


@dataclass(frozen=True, kw_only=True)
class TruncatedConfig:
    """Settings of the truncated estimators.

    Args:
        method: "pes", "truncated_es" or "backprop".
        num_pairs: Q of each bucket; for "backprop" the number of networks.
        std: of the perturbation; for "backprop" only the unit of the theta optimizer.
        truncation_length: K.
        horizon: shortest and longest training.
        log_floor: nats, see `TruncatedES`; None for the loss itself.
    """

    method: str = "pes"
    num_pairs: int = 8
    std: float = 0.01
    truncation_length: int = 50
    horizon: tuple[int, int] = (100, 2000)
    log_floor: float | None = None

    def __post_init__(self) -> None:
        if self.method not in _TRUNCATED:
            raise ValueError(f"method must be one of {tuple(_TRUNCATED)}, got {self.method!r}")


@dataclass(frozen=True, kw_only=True)
class MetaTrainStage:
    """One meta-training.

    Args:
        name: folder of its checkpoints.
        rule: name of an update rule.
        rule_options: of that rule.
        estimator: how the meta-gradient is estimated, and on what.
        training: length and theta optimizer; its seed is replaced by one derived from the run's.
        objective: meta-loss of full unrolls and of validation.
        start: scalars of the normalised rule, by name, that replace those with which the stage would begin.
        start_from: name of meta-parameters in the package, or a file, from which the stage begins, default what the
            stage before left; what this rule has more of (they must be its leading part) begins as the rule does.
        static_inputs: keep the weights of the controller's inputs that depend on gradients at zero, the control that
            shows what these inputs are worth.
        kept_share: of the way from the theta that the stage began with to the one that it found. Less than 1 keeps more
            of what the start was good at (Wortsman et al. 2022, arXiv 2109.01903, who average weights so).
        only_embedding_offset: train nothing but what the rule adds in networks with embeddings.
    """

    name: str
    rule: str
    training: MetaTrainConfig
    estimator: FullUnrollConfig | TruncatedConfig
    rule_options: dict[str, RuleOption] = field(default_factory=dict)
    objective: LogLossObjective = field(default_factory=LogLossObjective)
    start: dict[str, float] = field(default_factory=dict)
    start_from: str | None = None
    static_inputs: bool = False
    kept_share: float = 1.0
    only_embedding_offset: bool = False

    def __post_init__(self) -> None:
        if self.start and self.rule != NormalizedRule.name:
            raise ValueError(f"only rule {NormalizedRule.name!r} has scalars to start from, got rule {self.rule!r}")
        full_unrolls = isinstance(self.estimator, FullUnrollConfig)
        if self.static_inputs and not (full_unrolls and self.rule_options.get("network")):
            raise ValueError(f"static_inputs needs rule_options network=true and full unrolls, got stage {self.name!r}")
        if self.only_embedding_offset and not (full_unrolls and self.rule_options.get("tokens")):
            raise ValueError(
                f"only_embedding_offset needs rule_options tokens=true and full unrolls, got stage {self.name!r}"
            )

    def make_rule(self) -> UpdateRule:
        """The rule, from a name and options as in its `config`; for "backprop" one that autograd can follow."""
        needs_reference = isinstance(self.estimator, TruncatedConfig) and self.estimator.method == "backprop"
        return get_rule(self.rule, **self.rule_options, **({"reference": True} if needs_reference else {}))


@dataclass(frozen=True)
class TrainedStage:
    """What a stage leaves: its rule, its theta, its curves."""

    stage: MetaTrainStage
    rule: UpdateRule
    result: MetaTrainResult


OnOuterStep = Callable[[MetaTrainStage, int, MetaTrainHistory], object]


def run_recipe(
    stages: Sequence[MetaTrainStage],
    *,
    seed: int,
    out: Path,
    devices: Devices | None = None,
    device: torch.device | str = "auto",
    on_outer_step: OnOuterStep | None = None,
) -> list[TrainedStage]:
    """Run stages one after the other, resuming what is found in `out`.

    A stage begins from the theta selected by the stage before. Where its rule has more meta-parameters (a layer
    beside the scalars), the rule's own initial values fill the rest.

    Args:
        stages: at least one.
        seed: meta-seed; different ones share nothing but the tasks for selection.
        out: folder, one sub-folder a stage.
        devices: processes among which particles are split.
        device: where networks are trained, see `Devices.place`.
        on_outer_step: called with the stage, the outer steps done and the curves.
    """
    devices = devices or Devices()
    place = devices.place(device)
    tasks = [(family.to(place), num_steps) for family, num_steps in validation_tasks()]
    theta: Tensor | None = None
    results: list[TrainedStage] = []
    for stage in stages:
        rule = stage.make_rule()
        previous = load_pretrained(stage.start_from).theta if stage.start_from else theta
        theta = initial_theta(rule, derive_seed(seed, stage.name, "theta"), previous)
        for index, value in encoded_scalars(stage.start).items():
            theta[index] = value
        if stage.static_inputs:
            theta[gradient_weights()] = 0.0
        training = replace(stage.training, seed=derive_seed(seed, stage.name))
        result = meta_train(
            make_estimator(stage, rule, devices),
            theta,
            training,
            unit=perturbation_std(stage, rule),
            validate=Validation(rule, tasks, stage.objective),
            out=out / stage.name,
            settings={
                "stage": replace(stage, rule_options=dict(rule.config)),
                "stages_before": [one.stage.name for one in results],
                "seed": seed,
                "data_hash": data_hash(),
                "dtype": torch.get_default_dtype(),
            },
            on_outer_step=partial(on_outer_step, stage) if on_outer_step else None,
            devices=devices,
            device=place,
        )
        theta = theta.lerp(result.theta, stage.kept_share)
        results.append(TrainedStage(stage, rule, replace(result, theta=theta)))
    return results


def outer_curves(tracker: Tracker) -> OnOuterStep:
    """What `run_recipe` takes as `on_outer_step`: meta-loss, gradient norm and validation of each stage."""

    def log(stage: MetaTrainStage, done: int, history: MetaTrainHistory) -> None:
        shown = {"meta_loss": history.meta_loss[-1], "grad_norm": history.grad_norm[-1]}
        if history.validation and history.validation[-1][0] == done:
            shown["validation"] = history.validation[-1][1]
        tracker.log_metrics({f"{stage.name}/{name}": value for name, value in shown.items()}, step=done)

    return log


def initial_theta(rule: UpdateRule, seed: int, previous: Tensor | None) -> Tensor:
    """(M,) the rule's initial meta-parameters, their leading part replaced by those of the stage before."""
    theta = rule.init_theta(torch.Generator().manual_seed(seed))
    if previous is not None:
        if len(previous) > len(theta):
            raise ValueError(
                f"rule {rule.name!r} has {len(theta)} meta-parameters, the stage before left {len(previous)}"
            )
        theta[: len(previous)] = previous
    return theta


def perturbation_std(stage: MetaTrainStage, rule: UpdateRule) -> float | Tensor:
    """Of every meta-parameter, or (M,) with zeros where they are frozen."""
    if not (stage.static_inputs or stage.only_embedding_offset):
        return stage.estimator.std
    std = torch.full((rule.num_theta,), stage.estimator.std)
    if stage.static_inputs:
        std[gradient_weights()] = 0.0
    if stage.only_embedding_offset:
        trained = embedding_offset()
        std[: trained.start] = std[trained.stop :] = 0.0
    return std


def make_estimator(stage: MetaTrainStage, rule: UpdateRule, devices: Devices) -> GradientEstimator:
    """The estimator that a stage describes."""
    config = stage.estimator
    if isinstance(config, FullUnrollConfig):
        return FullUnrollES(
            rule,
            TaskDistribution(config.tasks),
            stage.objective,
            num_pairs=config.num_pairs,
            std=perturbation_std(stage, rule),
            devices=devices,
        )
    kind, held = _TRUNCATED[config.method], devices.share(config.num_pairs)
    steps = [
        TruncatedStep(
            rule,
            family,
            LogUniformHorizon(*config.horizon),
            num_groups=config.num_pairs,
            num_copies=kind.num_copies,
            group_range=range(held.start, held.stop),
        )
        for family in bucket_families()
    ]
    options: dict[str, Any] = {"truncation_length": config.truncation_length, "log_floor": config.log_floor}
    if kind is not TruncatedBackprop:
        options["std"] = config.std
    return kind(steps, **options, devices=devices)


def stage_info(result: TrainedStage, *, seed: int, command: str) -> dict[str, object]:
    """JSON-able record of how a theta was made, for the metadata of its file."""
    history = result.result.history
    return {
        "command": command,
        "seed": seed,
        "stage": asdict(result.stage),
        "data_hash": data_hash(),
        "meta_loss": [round(value, 4) for value in history.meta_loss],
        "validation": [[step, round(value, 4)] for step, value in history.validation],
        "num_inner_steps": history.num_inner_steps,
    }
