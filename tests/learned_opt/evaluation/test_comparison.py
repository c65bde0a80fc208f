"""The comparison of optimizers: rivals against the libraries', and how settings are chosen and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from learned_opt.evaluation import comparison
from learned_opt.evaluation.comparison import Result, evaluate, joined, train
from learned_opt.evaluation.learned_methods import celo2, learned_methods, shipped, untrained_frame
from learned_opt.evaluation.rivals import Method, TorchPopulation, muon, rivals
from learned_opt.evaluation.statistics import compare
from learned_opt.evaluation.tasks import EvaluationTask
from learned_opt.meta_training import synthetic_data
from learned_opt.meta_training.task_distribution import mlp_task
from learned_opt.meta_training.task_family import TaskFamily
from learned_opt.pretrained.files import Pretrained, available, load_pretrained, save_theta
from learned_opt.rules.celo2 import STEP_SIZE, Celo2Rule
from learned_opt.rules.population import PopulationOptimizer
from zoo.networks.architectures import MLP
from zoo.networks.layout import ParamLayout
from zoo.training.optimizers import Adam
from zoo.training.schedules import Schedule

NUM_STEPS = 20


def small_task(name: str = "small") -> EvaluationTask:
    dataset = synthetic_data.teacher_student(2000, 12, 6, 0.1, 400)
    return EvaluationTask(name, "main", TaskFamily([mlp_task(dataset, [8, 8])], batch_size=16), NUM_STEPS)


def method(name: str, rates: tuple[float, ...] = (1e-3, 1e-2)) -> Method:
    return next(m for m in rivals(rates) if m.name == name)


def test_autocast_around_it_changes_no_comparison() -> None:
    expected = train(small_task(), method("AdamW cosine"), num_seeds=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert train(small_task(), method("AdamW cosine"), num_seeds=1).mean_loss == expected.mean_loss


def test_batched_muon_is_torchs() -> None:
    model = MLP(6, (5, 7), 3)
    layout = ParamLayout.of(model)
    params = layout.flatten(model).repeat(2, 1)
    rates = torch.tensor([1e-2, 1e-2], dtype=torch.float64)
    ours = muon(rates, momentum=0.8)
    state = ours.init_state(layout, params)
    named = dict(model.named_parameters())
    matrices = [named["layers.0.weight"], named["layers.1.weight"]]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    theirs = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, momentum=0.8, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-2, weight_decay=0.01),
    ]
    rng = torch.Generator().manual_seed(0)
    schedule = Schedule("cosine")
    for inner_step in range(4):
        grads = torch.randn(layout.num_params, generator=rng)
        ours.update(layout, params, grads.repeat(2, 1), state, inner_step=inner_step, num_steps=8)
        for name, grad in layout.views(grads).items():
            named[name].grad = grad.clone()
        for optimizer in theirs:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * schedule.factor(inner_step, 8)
            optimizer.step()
    # torch orthogonalises in bfloat16: its directions are good to about 1%
    torch.testing.assert_close(params[0], layout.flatten(model), rtol=0.02, atol=5e-4)
    torch.testing.assert_close(params[0], params[1])


def test_torch_optimizers_step_as_the_batched_one() -> None:
    task = small_task()
    batched = Method("a", (1e-3, 1e-2), lambda lr: Adam(lr=lr, weight_decay=0.01, schedule=Schedule("cosine")))
    single = Method(
        "b",
        (1e-3, 1e-2),
        lambda lr: TorchPopulation(
            lr, lambda p, rate: torch.optim.AdamW(p, lr=rate, weight_decay=0.01), Schedule("cosine")
        ),
    )
    one, other = train(task, batched, num_seeds=2), train(task, single, num_seeds=2)
    np.testing.assert_allclose(one.mean_loss, other.mean_loss, rtol=1e-4)
    np.testing.assert_allclose(one.val_error, other.val_error, atol=0.02)


def test_seeds_see_the_same_start_under_every_method() -> None:
    task = small_task()
    slow = [train(task, method(name, (1e-9,)), num_seeds=2).mean_loss for name in ("AdamW cosine", "Muon .8 cosine")]
    np.testing.assert_allclose(slow[0], slow[1], rtol=1e-4)
    assert slow[0][0][0] != slow[0][0][1]


def test_only_missing_settings_are_trained(tmp_path: Path) -> None:
    trained: list[list[float]] = []
    known = method("AdamW cosine", (1e-3, 1e-2))

    def counting(lr: torch.Tensor) -> Adam:
        trained.append(lr.unique().tolist())
        return known.make(lr)

    def run(rates: tuple[float, ...]) -> Result:
        counted = Method("AdamW cosine", rates, counting)
        return evaluate([counted], [small_task()], num_seeds=2, cache=tmp_path)["AdamW cosine"]["small"]

    first, again = run((1e-3, 1e-2)), run((1e-3, 1e-2))
    assert first == again
    extended = run((1e-3, 1e-2, 1e-1))
    assert trained == [[1e-3, 1e-2], [1e-1]]
    assert joined([extended.setting(0), extended.setting(1)]) == first
    wider = method("AdamW cosine", (1e-2, 1.0))
    assert evaluate([wider], [small_task()], num_seeds=2, cache=tmp_path, train_missing=False) == {wider.name: {}}
    alone = train(small_task(), method("AdamW cosine", (1e-1,)), num_seeds=2)
    np.testing.assert_allclose(extended.setting(2).mean_loss, alone.mean_loss, rtol=1e-4)


def test_results_of_other_code_of_the_rules_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, rival = untrained_frame().at((1.0,)), method("AdamW 1e-3 untuned")

    def kept() -> list[bool]:
        found = evaluate([frame, rival], [small_task()], num_seeds=2, cache=tmp_path, train_missing=False)
        return [bool(found[one.name]) for one in (frame, rival)]

    evaluate([frame, rival], [small_task()], num_seeds=2, cache=tmp_path)
    assert kept() == [True, True]
    monkeypatch.setattr(comparison, "rules_digest", lambda: "of other code")
    assert kept() == [False, True]


def test_settings_are_chosen_on_other_examples_than_they_are_reported_on() -> None:
    result = Result(
        learning_rates=[1.0, 2.0, 3.0],
        mean_loss=[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]],
        final_loss=[[5.0, 5.0], [4.0, 4.0], [6.0, 6.0]],
        val_loss=[[0.5, 0.5], [0.4, 0.4], [0.6, 0.6]],
        val_error=[[0.3, 0.3], [0.2, 0.2], [0.1, 0.15]],
        test_loss=[[0.7, 0.7], [0.8, 0.8], [0.9, 0.9]],
        test_error=[[0.1, 0.1], [0.2, 0.2], [0.3, 0.4]],
        curve=[[1.0]] * 3,
        seconds=[1.0] * 3,
    )
    assert result.tuned("mean_loss").tolist() == [1.0, 1.0]  # each training loss has its own best setting
    assert result.tuned("final_loss").tolist() == [4.0, 4.0]
    assert result.tuned("test_error").tolist() == [0.3, 0.4]  # of the lowest validation error
    assert result.tuned("test_loss").tolist() == [0.8, 0.8]  # of the lowest validation loss
    assert result.oracle("test_error").tolist() == [0.1, 0.1]


def test_untrained_frame_trains() -> None:
    tasks = [small_task("one"), small_task("two")]
    results = evaluate([method("AdamW cosine"), untrained_frame()], tasks, num_seeds=2)
    assert compare(results["untrained frame"], results["AdamW cosine"], ["one", "two"], "mean_loss").value < 3


def test_celo2_runs_each_learning_rate_by_itself(tmp_path: Path) -> None:
    rule = Celo2Rule()
    theta = rule.init_theta(torch.Generator().manual_seed(0))
    save_theta(tmp_path / "celo2.safetensors", theta, rule)
    rival = celo2(tmp_path / "celo2.safetensors", (1e-3, 1e-2))
    together = train(small_task(), rival, num_seeds=2)
    alone = train(small_task(), rival.at((1e-2,)), num_seeds=2)
    np.testing.assert_allclose(together.setting(1).mean_loss, alone.mean_loss, rtol=1e-4)
    assert together.mean_loss[0] != together.mean_loss[1]


def test_celo2_takes_the_step_of_its_rule_times_the_cosine() -> None:
    rule = Celo2Rule()
    pretrained = Pretrained(rule, rule.init_theta(torch.Generator().manual_seed(0)))
    layout = ParamLayout.of(MLP(6, (5,), 3))
    rng = torch.Generator().manual_seed(1)
    params, grads = torch.randn(2, layout.num_params, generator=rng), torch.randn(2, layout.num_params, generator=rng)
    scheduled, plain = params.clone(), params.clone()
    rates = torch.full((2,), 3e-2 / STEP_SIZE, dtype=torch.float64)
    population = PopulationOptimizer(rule, pretrained.theta, lr=rates, schedule=Schedule("cosine"))
    state = population.init_state(layout, scheduled)
    population.update(layout, scheduled, grads, state, inner_step=3, num_steps=6)
    factor = Schedule("cosine").factor(3, 6)
    reference = PopulationOptimizer(rule, pretrained.theta, lr=factor * 3e-2 / STEP_SIZE)
    state = reference.init_state(layout, plain)
    reference.update(layout, plain, grads, state, inner_step=3, num_steps=6)
    torch.testing.assert_close(scheduled, plain)


def test_a_rule_that_knows_no_horizon_can_decay_in_the_last_fifth() -> None:
    (plain,), (decayed,) = learned_methods({"mulo": ["mulo"], "mulo-wsd": ["mulo"]}).values()
    assert decayed.identity != plain.identity
    early, late = (train(small_task(), method, num_seeds=2) for method in (plain, decayed))
    assert early.curve[0][0] == late.curve[0][0]
    assert early.final_loss != late.final_loss


def test_a_file_of_another_rule_is_no_celo2() -> None:
    with pytest.raises(ValueError, match="must hold a CELO2MLP, got a theta of rule 'mlp'"):
        celo2("mulo")


def test_meta_seeds_are_named_and_the_shipped_one_is_found(tmp_path: Path) -> None:
    name = available()[0]
    loaded = load_pretrained(name)
    for seed, shift in ((4, 0.0), (5, 0.1)):
        save_theta(tmp_path / f"{seed}.safetensors", loaded.theta + shift, loaded.rule, {"seed": seed})
    learned = learned_methods({"ours": [tmp_path / "4.safetensors", tmp_path / "5.safetensors"], "other": []})
    assert [method.name for method in learned["ours"]] == ["ours, meta-seed 4", "ours, meta-seed 5"]
    assert shipped(learned["ours"]) == {name: "ours, meta-seed 4"}
    assert learned["other"] == []
    with pytest.raises(ValueError, match="must differ in their meta-seed"):
        learned_methods({"ours": [tmp_path / "4.safetensors"] * 2})
