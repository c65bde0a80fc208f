"""The comparison of optimizers: rivals against the libraries', ratios against known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from learned_opt import synthetic_data
from learned_opt.evaluate import Result, evaluate, geometric_ratio, log_values, mean_difference, train
from learned_opt.evaluation_report import TUNED_MUON, compare, report, with_one_constant, with_tuned_muon
from learned_opt.evaluation_tasks import EvaluationTask
from learned_opt.meta_tasks import mlp_task
from learned_opt.rivals import MatchedMuon, Method, TorchPopulation, rivals, untrained_frame
from learned_opt.task_problem import TaskProblem
from zoo.architectures import MLP
from zoo.layout import ParamLayout
from zoo.optimizers import Adam
from zoo.schedules import Schedule

NUM_STEPS = 20


def small_task(name: str = "small") -> EvaluationTask:
    dataset = synthetic_data.teacher_student(2000, 12, 6, 0.1, 400)
    return EvaluationTask(name, "main", TaskProblem([mlp_task(dataset, [8, 8])], batch_size=16), NUM_STEPS)


def method(name: str, rates: tuple[float, ...] = (1e-3, 1e-2)) -> Method:
    return next(m for m in rivals(rates) if m.name == name)


def made_up(mean_loss: list[list[float]]) -> Result:
    return Result([1.0] * len(mean_loss), mean_loss, mean_loss, mean_loss, mean_loss, [[1.0]] * len(mean_loss), 1.0)


def test_batched_muon_is_torchs() -> None:
    model = MLP(6, (5, 7), 3)
    layout = ParamLayout.of(model)
    params = layout.flatten(model).repeat(2, 1)
    rates = torch.tensor([1e-2, 1e-2], dtype=torch.float64)
    ours = MatchedMuon(rates, momentum=0.8)
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


def test_results_come_from_the_cache(tmp_path: Path) -> None:
    methods = [method("AdamW cosine")]
    first = evaluate(methods, [small_task()], num_seeds=2, cache=tmp_path)

    def never(lr: torch.Tensor) -> Adam:
        raise AssertionError("trained again")

    again = evaluate(
        [Method("AdamW cosine", methods[0].learning_rates, never)], [small_task()], num_seeds=2, cache=tmp_path
    )
    assert first == again
    with pytest.raises(AssertionError, match="trained again"):
        evaluate([Method("AdamW cosine", (0.5,), never)], [small_task()], num_seeds=2, cache=tmp_path)


def test_each_measure_has_its_own_best_setting() -> None:
    result = Result([1.0, 2.0], [[1.0], [2.0]], [[5.0], [4.0]], [[1.0], [1.0]], [[0.1], [0.2]], [[1.0]] * 2, 1.0)
    assert result.tuned("mean_loss").tolist() == [1.0]
    assert result.tuned("final_loss").tolist() == [4.0]


def test_ratio_is_the_geometric_mean_and_its_interval_covers_it() -> None:
    results = {"a": made_up([[1.0, 2.0]]), "b": made_up([[4.0, 8.0]])}
    half = {"a": made_up([[0.25, 0.5]]), "b": made_up([[4.0, 8.0]])}
    ratio = geometric_ratio(log_values(half, ["a", "b"], "mean_loss"), log_values(results, ["a", "b"], "mean_loss"))
    assert ratio.value == pytest.approx(0.5, rel=1e-6)
    assert ratio.low == pytest.approx(0.25, rel=1e-4)
    assert ratio.high == pytest.approx(1.0, rel=1e-4)


def test_equal_methods_have_ratio_one_without_uncertainty() -> None:
    values = np.random.RandomState(0).randn(4, 3)
    ratio = geometric_ratio(values, values)
    assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)
    assert mean_difference(values, values).value == 0


def test_tuned_muon_takes_the_better_momentum_on_each_task() -> None:
    results = with_tuned_muon(
        {
            "Muon .95 cosine": {"a": made_up([[1.0]]), "b": made_up([[5.0]])},
            "Muon .8 cosine": {"a": made_up([[2.0]]), "b": made_up([[3.0]])},
        }
    )
    assert [results[TUNED_MUON][task].tuned("mean_loss").item() for task in ("a", "b")] == [1.0, 3.0]


def test_one_constant_is_chosen_over_all_tasks() -> None:
    results = with_one_constant({"m": {"a": made_up([[1.0], [3.0]]), "b": made_up([[9.0], [1.0]])}}, "m", ["a", "b"])
    chosen = results["m, one constant"]
    assert [chosen[task].tuned("mean_loss").item() for task in ("a", "b")] == [3.0, 1.0]


def test_untrained_frame_and_report() -> None:
    tasks = [small_task("one"), small_task("two")]
    results = evaluate([method("AdamW cosine"), untrained_frame()], tasks, num_seeds=2)
    assert compare(results["untrained frame"], results["AdamW cosine"], ["one", "two"], "mean_loss").value < 3
    text = report(results, tasks, "AdamW cosine")
    assert "untrained frame, one constant" in text
    assert "| two |" in text
