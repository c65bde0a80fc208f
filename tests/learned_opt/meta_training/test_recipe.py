"""Recipes: stages hand theta on, every estimator of a config can be built, and the shipped experiments run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from learned_opt import NormalizedRule
from learned_opt.meta_training import recipe
from learned_opt.meta_training.devices import Devices
from learned_opt.meta_training.objective import LogLossObjective, final_loss
from learned_opt.meta_training.recipe import (
    FullUnrollConfig,
    MetaTrainStage,
    TruncatedConfig,
    initial_theta,
    make_estimator,
    run_recipe,
)
from learned_opt.meta_training.task_distribution import TaskDistributionConfig
from learned_opt.meta_training.theta_optimizer import ThetaOptimizerConfig
from learned_opt.meta_training.train import MetaTrainConfig
from learned_opt.pretrained.files import load_pretrained
from learned_opt.rules.controller import (
    NUM_OUTPUTS,
    SCALAR_NAMES,
    Horizon,
    Signals,
    Statistics,
    control,
    decode,
    gradient_weights,
    memory_start,
)
from learned_opt.rules.population import PopulationOptimizer
from learned_opt.rules.rule import TensorSpec
from scripts.cli import compose
from zoo.settings import SettingsMismatchError
from zoo.tasks.registry import get_task
from zoo.training.population import train_population


@pytest.fixture(autouse=True)
def quick_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "validation_tasks", lambda: [])
    monkeypatch.setattr(recipe.Validation, "__call__", lambda self, theta: float(theta.sum()))


def stage(name: str, *, network: bool, estimator: FullUnrollConfig | TruncatedConfig | None = None) -> MetaTrainStage:
    tasks = TaskDistributionConfig(families={"mlp": 1.0}, horizon=(5, 5), batch_sizes=(8,))
    training = MetaTrainConfig(num_outer_steps=2, optimizer=ThetaOptimizerConfig(learning_rate=0.1))
    return MetaTrainStage(
        name=name,
        rule="normalized",
        rule_options={"network": network},
        training=training,
        estimator=estimator or FullUnrollConfig(num_pairs=2, std=0.1, tasks=tasks),
    )


def test_a_stage_begins_where_the_one_before_ended(tmp_path: Path) -> None:
    seen = []
    results = run_recipe(
        [stage("one", network=False), stage("two", network=True)],
        seed=3,
        out=tmp_path,
        on_outer_step=lambda stage, done, history: seen.append((stage.name, done)),
    )
    assert seen == [("one", 1), ("one", 2), ("two", 1), ("two", 2)]
    scalars, network = (result.result.theta for result in results)
    assert len(scalars) < len(network)
    assert (scalars - network[: len(scalars)]).abs().max() < 0.05
    assert (tmp_path / "two" / "checkpoint-0.pt").exists()
    again = run_recipe([stage("one", network=False), stage("two", network=True)], seed=3, out=tmp_path)
    assert torch.equal(again[1].result.theta, network)


def test_a_stage_may_begin_from_named_scalars(tmp_path: Path) -> None:
    begun = replace(stage("one", network=False), start={"rate": 0.02})
    (result,) = run_recipe([begun], seed=0, out=tmp_path)
    scalars, _ = decode(result.result.theta[None], feedback=False)
    assert float(scalars["rate"]) == pytest.approx(0.02, rel=0.1)
    with pytest.raises(ValueError, match="only rule 'normalized' has scalars"):
        replace(begun, rule="mlp")


def test_a_stage_may_begin_from_weights_of_the_package_and_keep_a_part_of_the_way(tmp_path: Path) -> None:
    options = {"network": True, "tokens": True, "memory": True}
    begun = replace(stage("one", network=True), rule_options=options, start_from="mulo-norm")
    start = load_pretrained("mulo-norm").theta
    ends = [run_recipe([replace(begun, kept_share=x)], seed=0, out=tmp_path)[0].result.theta for x in (0.0, 0.25, 1.0)]
    assert torch.equal(ends[0][: len(start)], start)
    assert torch.equal(ends[0][len(start) :], memory_start())
    other = replace(begun, kept_share=0.0, start={"momentum_decay": 0.95})
    changed = run_recipe([other], seed=0, out=tmp_path / "other")[0].result.theta != ends[0]
    assert changed.nonzero().tolist() == [[SCALAR_NAMES.index("momentum_decay")]]
    torch.testing.assert_close(ends[1], 0.75 * ends[0] + 0.25 * ends[2])
    assert not torch.equal(ends[0], ends[2])


def test_static_inputs_stay_without_weight(tmp_path: Path) -> None:
    (result,) = run_recipe([replace(stage("one", network=True), static_inputs=True)], seed=0, out=tmp_path)
    theta = result.result.last_theta
    frozen = torch.zeros(len(theta), dtype=torch.bool)
    frozen[gradient_weights()] = True
    assert int(frozen.sum()) == 6 * NUM_OUTPUTS
    assert (theta[frozen] == 0).all()
    assert (theta[~frozen] != 0).all()
    with pytest.raises(ValueError, match="static_inputs needs rule_options network=true"):
        replace(stage("one", network=False), static_inputs=True)


def test_only_embedding_offset_trains_nothing_but_the_numbers_for_embeddings(tmp_path: Path) -> None:
    options = {"network": True, "tokens": True}
    second = replace(stage("two", network=True), rule_options=options, only_embedding_offset=True)
    first, result = run_recipe([stage("one", network=True), second], seed=0, out=tmp_path)
    before, theta = first.result.theta, result.result.last_theta
    assert torch.equal(theta[: len(before)], before)
    assert len(theta) == len(before) + NUM_OUTPUTS
    with pytest.raises(ValueError, match="needs rule_options tokens=true"):
        replace(stage("one", network=True), only_embedding_offset=True)


def test_without_these_weights_the_layer_sees_no_gradients() -> None:
    rng = torch.Generator().manual_seed(0)
    theta = 0.1 * torch.randn(1, NormalizedRule().num_theta, generator=rng)
    static = theta.clone()
    static[:, gradient_weights()] = 0
    specs = [TensorSpec("hidden", "hidden", 7, (5, 7), 2)]
    horizon = Horizon(torch.tensor([0.3]), torch.tensor([100.0]))

    def outputs(theta: torch.Tensor) -> torch.Tensor:
        """Weight of the newest gradient in the direction, under two sets of statistics and signals."""
        scalars, layer = decode(theta, feedback=True)
        answers = []
        for scale in (0.5, 0.9):
            values = torch.full((1, 1), scale)
            state = Statistics(*[values] * len(Statistics._fields))
            signals = Signals(*[values] * len(Signals._fields))
            controls = control(scalars, layer, specs=specs, statistics=state, signals=signals, horizon=horizon)[1]
            answers.append(controls.nesterov)
        return torch.cat(answers)

    seeing, blind = outputs(theta), outputs(static)
    assert blind[0] == blind[1]
    assert seeing[0] != seeing[1]


def test_a_larger_theta_cannot_start_a_smaller_rule() -> None:
    with pytest.raises(ValueError, match="the stage before left 1000"):
        initial_theta(NormalizedRule(feedback=False), 0, torch.zeros(1000))


@pytest.mark.parametrize("method", ["pes", "truncated_es", "backprop"])
def test_truncated_estimators_run_on_the_buckets(method: str) -> None:
    config = TruncatedConfig(method=method, num_pairs=2, truncation_length=2, horizon=(3, 4))
    one = replace(stage("a", network=False), rule="mlp", rule_options={"hidden": 4}, estimator=config)
    rule = one.make_rule()
    estimator = make_estimator(one, rule, Devices())
    theta = rule.init_theta(torch.Generator().manual_seed(0))
    estimate = estimator.estimate(theta, torch.Generator().manual_seed(0))
    assert estimate.grad.shape == theta.shape
    assert estimate.grad.isfinite().all()
    assert estimate.grad.abs().max() > 0


def test_all_that_decides_theta_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "validation_tasks", lambda: [])
    monkeypatch.setattr(recipe.Validation, "__call__", lambda self, theta: float(theta.sum()))
    one, two = stage("one", network=False), stage("two", network=True)
    thetas = [result.result.theta for result in run_recipe([one, two], seed=3, out=tmp_path)]
    same = replace(
        one,
        rule_options={"network": False},
        training=replace(one.training, checkpoint_every=7),  # which decides nothing
    )
    again = run_recipe([same, replace(two, rule_options={})], seed=3, out=tmp_path)  # network=True is the default
    assert all(torch.equal(result.result.theta, theta) for result, theta in zip(again, thetas, strict=True))

    estimator = one.estimator
    assert isinstance(estimator, FullUnrollConfig)
    optimizer = replace(one.training.optimizer, learning_rate=0.2)
    for changed, field in (
        (replace(one, estimator=replace(estimator, num_pairs=4)), r"estimator\.num_pairs: begun with 2, now 4"),
        (replace(one, estimator=replace(estimator, std=0.2)), r"estimator\.std"),
        (replace(one, estimator=replace(estimator, tasks=replace(estimator.tasks, horizon=(5, 6)))), r"tasks\.horizon"),
        (replace(one, objective=LogLossObjective(end_weight=0.5)), r"objective\.end_weight: begun with 0\.1, now 0\.5"),
        (replace(one, training=replace(one.training, optimizer=optimizer)), r"config\.optimizer\.learning_rate"),
        (replace(one, training=replace(one.training, num_outer_steps=3)), r"config\.num_outer_steps"),
        (replace(one, start={"rate": 0.02}), r"start\.rate: begun with nothing, now 0\.02"),
    ):
        with pytest.raises(SettingsMismatchError, match=field):
            run_recipe([changed], seed=3, out=tmp_path)
    with pytest.raises(SettingsMismatchError, match="seed: begun with 3, now 4"):
        run_recipe([one], seed=4, out=tmp_path)
    with pytest.raises(SettingsMismatchError, match=r'stages_before: begun with \["one"\], now \[\]'):
        run_recipe([two, one], seed=3, out=tmp_path)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="truncated_es"):
        TruncatedConfig(method="reinforce")


@pytest.mark.parametrize("experiment", ["mulo", "mulo_sp", "mulo_norm", "mulo_norm_static", "mulo_wide"])
def test_shipped_experiments_describe_stages(experiment: str) -> None:
    config = compose("meta_train", [f"experiment={experiment}"])
    stages = [instantiate(stage, name=name, _convert_="all") for name, stage in config.stages.items()]
    assert all(isinstance(stage, MetaTrainStage) for stage in stages)
    make_estimator(stages[-1], stages[-1].make_rule(), Devices())


def test_objective_counts_speed_end_and_validation() -> None:
    losses = torch.full((40, 1), 2.0)
    losses[-2:] = 0.5  # the last 5%
    assert final_loss(losses).item() == 0.5
    plain = LogLossObjective(end_weight=0.0)(losses, lambda: 1 / 0)
    torch.testing.assert_close(plain, losses.mean(0).log())
    measured = torch.tensor([3.0]), torch.tensor([0.19])
    full = LogLossObjective(end_weight=0.5, validation_weight=2.0, error_weight=4.0)(losses, lambda: measured)
    expected = plain + 0.5 * torch.tensor(0.501).log() + 2 * torch.tensor(3.001).log() + 4 * torch.tensor(0.2).log()
    torch.testing.assert_close(full, expected)
    lower = LogLossObjective(end_weight=1.0, floor=0.1)(losses, lambda: 1 / 0)
    torch.testing.assert_close(lower, plain + torch.tensor(0.6).log())


def test_a_learned_rule_trains_a_population() -> None:
    rule = NormalizedRule()
    optimizer = PopulationOptimizer(rule, rule.init_theta(torch.Generator().manual_seed(0)))
    task = get_task("digits", hidden=[8])
    snapshots = list(train_population(task, optimizer, [1, 2], num_steps=60, batch_size=32, snapshot_steps=[0, 60]))
    before, after = (task.evaluate(snapshot.params, "train")["loss"] for snapshot in (snapshots[0], snapshots[-1]))
    assert (after < 0.5 * before).all()
