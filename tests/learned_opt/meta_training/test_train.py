"""Meta-training that is interrupted, split over processes, or given bad input."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from learned_opt import NormalizedRule
from learned_opt.meta_training import synthetic_data
from learned_opt.meta_training.devices import Devices, FabricDevices
from learned_opt.meta_training.estimators import PES, FullUnrollES, GradientEstimator
from learned_opt.meta_training.objective import LogLossObjective
from learned_opt.meta_training.task_distribution import mlp_task
from learned_opt.meta_training.task_family import TaskFamily
from learned_opt.meta_training.theta_optimizer import ThetaOptimizer, ThetaOptimizerConfig
from learned_opt.meta_training.train import MetaTrainConfig, MetaTrainHistory, MetaTrainResult, meta_train
from learned_opt.meta_training.truncated_step import LogUniformHorizon, TruncatedStep
from zoo.settings import SettingsMismatchError

RULE = NormalizedRule(feedback=False)
STD = 0.1


@cache
def small_problem() -> TaskFamily:
    return TaskFamily([mlp_task(synthetic_data.teacher_student(1, 12, 6, 0.1, 400), [8])], batch_size=16)


def make_estimator(kind: str, devices: Devices | None = None, num_pairs: int = 4) -> GradientEstimator:
    devices = devices or Devices()
    if kind == "full":
        objective = LogLossObjective(validation_weight=0.1)
        return FullUnrollES(
            RULE, lambda rng: (small_problem(), 12), objective, num_pairs=num_pairs, std=STD, devices=devices
        )
    held = devices.share(num_pairs)
    step = TruncatedStep(
        RULE, small_problem(), LogUniformHorizon(8, 20), num_groups=num_pairs, group_range=range(held.start, held.stop)
    )
    return PES([step], truncation_length=5, std=STD, devices=devices)


def config(
    num_outer_steps: int = 6,
    *,
    seed: int = 0,
    validate_every: int = 50,
    optimizer: ThetaOptimizerConfig = ThetaOptimizerConfig(learning_rate=0.3, num_warmup_steps=2),  # noqa: B008
) -> MetaTrainConfig:
    return MetaTrainConfig(
        num_outer_steps=num_outer_steps,
        optimizer=optimizer,
        seed=seed,
        validate_every=validate_every,
        checkpoint_every=2,
    )


def run(
    kind: str, out: Path | None = None, *, stop_after: int | None = None, seed: int = 0, settings: object = "mine"
) -> MetaTrainResult:
    def stop(done: int, history: MetaTrainHistory) -> None:
        if done == stop_after:
            raise KeyboardInterrupt

    start = RULE.init_theta(torch.Generator())
    return meta_train(
        make_estimator(kind), start, config(seed=seed), unit=STD, out=out, settings=settings, on_outer_step=stop
    )


@pytest.mark.parametrize("kind", ["full", "pes"])
def test_resumed_equals_uninterrupted(kind: str, tmp_path: Path) -> None:
    straight = run(kind)
    with pytest.raises(KeyboardInterrupt):
        run(kind, tmp_path, stop_after=5)  # the last checkpoint is of step 4
    resumed = run(kind, tmp_path)
    assert torch.equal(straight.theta, resumed.theta)
    assert straight.history == resumed.history


def test_a_step_size_that_is_far_too_small_grows() -> None:
    start = RULE.init_theta(torch.Generator())
    start[0] = -3  # log of the rate, relative to a sane one
    optimizer = ThetaOptimizerConfig(learning_rate=1.0, betas=(0.9, 0.98))
    result = meta_train(make_estimator("full", num_pairs=16), start, config(12, optimizer=optimizer), unit=STD)
    assert result.theta[0] > start[0] + 0.3
    assert sum(result.history.meta_loss[-3:]) < sum(result.history.meta_loss[:3])


def test_theta_of_the_best_validation_is_kept() -> None:
    values = iter([3.0, 1.0, 2.0])
    seen: list[Tensor] = []

    def validate(theta: Tensor) -> float:
        seen.append(theta)
        return next(values)

    start = RULE.init_theta(torch.Generator())
    result = meta_train(make_estimator("full"), start, config(validate_every=2), unit=STD, validate=validate)
    assert torch.equal(result.theta, seen[1])
    assert not torch.equal(result.last_theta, seen[1])
    assert result.history.validation == [(2, 3.0), (4, 1.0), (6, 2.0)]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run("full", tmp_path)
    with pytest.raises(SettingsMismatchError, match=r"config\.seed: begun with 0, now 1"):
        run("full", tmp_path, seed=1)
    with pytest.raises(SettingsMismatchError, match=r'settings: begun with "mine", now "other"'):
        run("full", tmp_path, settings="other")
    with pytest.raises(ValueError, match="needs settings"):
        run("full", tmp_path, settings=None)


def meta_train_as_rank(rank: int, port: int, path: str) -> None:
    import os

    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", plugins=[LightningEnvironment()])
    fabric.launch()
    devices = FabricDevices(fabric)
    start = RULE.init_theta(torch.Generator())
    for kind in ("full", "pes"):
        result = meta_train(make_estimator(kind, devices), start, config(), unit=STD, devices=devices)
        torch.save({"theta": result.theta, "meta_loss": result.history.meta_loss}, f"{path}/{kind}-{rank}.pt")
    devices.close()


def test_two_gloo_processes_equal_one(two_ranks: Callable[..., object], tmp_path: Path) -> None:
    port = 29500 + int(torch.randint(2000, ()))
    two_ranks(meta_train_as_rank, port, str(tmp_path))
    for kind in ("full", "pes"):
        alone = run(kind)
        for rank in range(2):
            result = torch.load(tmp_path / f"{kind}-{rank}.pt")
            torch.testing.assert_close(result["theta"], alone.theta, rtol=1e-3, atol=1e-4)
            assert result["meta_loss"] == pytest.approx(alone.history.meta_loss, rel=1e-3)


def test_pairs_must_divide_among_processes() -> None:
    devices = Devices()
    devices.num_processes = 3
    with pytest.raises(ValueError, match="4 particles cannot be divided by 3"):
        devices.share(4)


def test_theta_moves_in_units_and_a_zero_unit_stays() -> None:
    settings = ThetaOptimizerConfig(learning_rate=1.0, clip=None)
    optimizer = ThetaOptimizer(torch.zeros(3), settings, unit=torch.tensor([0.1, 10.0, 0.0]), num_outer_steps=10)
    optimizer.step(torch.ones(3), 0)
    torch.testing.assert_close(optimizer.theta, torch.tensor([-0.1, -10.0, 0.0]), rtol=1e-4, atol=1e-6)


def test_clipping_comes_before_adam() -> None:
    """After a huge gradient Adam's second moment must not stay huge."""
    moved = []
    for clip in (1.0, None):
        settings = ThetaOptimizerConfig(learning_rate=1.0, clip=clip)
        optimizer = ThetaOptimizer(torch.zeros(1), settings, unit=1.0, num_outer_steps=10)
        optimizer.step(torch.tensor([1e6]), 0)
        before = optimizer.theta
        optimizer.step(torch.tensor([-1.0]), 1)
        moved.append(float(optimizer.theta - before))
    assert abs(moved[0]) < 0.2  # the two clipped gradients cancel
    assert moved[1] < -0.5  # the outlier still drives


def test_gradients_that_are_not_finite_are_passed_over() -> None:
    optimizer = ThetaOptimizer(torch.zeros(2), ThetaOptimizerConfig(learning_rate=1.0), unit=1.0, num_outer_steps=10)
    optimizer.step(torch.tensor([float("nan"), 1.0]), 0)
    assert torch.equal(optimizer.theta, torch.zeros(2))


def test_the_learning_rate_follows_the_schedule() -> None:
    settings = ThetaOptimizerConfig(learning_rate=1.0, num_warmup_steps=1, final_share=0.1, betas=(0.0, 0.0))
    optimizer = ThetaOptimizer(torch.zeros(1), settings, unit=1.0, num_outer_steps=4)
    moved = []
    for outer_step in range(4):  # without memory Adam moves by the learning rate
        before = optimizer.theta
        optimizer.step(torch.ones(1), outer_step)
        moved.append(float(before - optimizer.theta))
    assert moved == pytest.approx([0.5, 1.0, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25], rel=1e-4)
