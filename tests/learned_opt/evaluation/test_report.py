"""Tables, claims and cards of made-up results with known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from learned_opt.evaluation.claims import Claim, claims_table, judge
from learned_opt.evaluation.plots import plot_all
from learned_opt.evaluation.record import TABLES_BEGIN, TABLES_END, card_tables, record_body, with_tables, write_cards
from learned_opt.evaluation.report import (
    TUNED_MUON,
    Evaluation,
    report,
    single_task_table,
    with_one_constant,
    with_tuned_muon,
)
from learned_opt.meta_training.task_problem import TaskProblem
from learned_opt.meta_training.tasks import mlp_task

from learned_opt.evaluation.comparison import Result
from learned_opt.evaluation.statistics import (
    accuracy_points,
    compare,
    diverged,
    geometric_ratio,
    log_values,
    mean_difference,
)
from learned_opt.evaluation.tasks import EvaluationTask
from learned_opt.meta_training import synthetic_data
from learned_opt.pretrained.files import DIRECTORY, available


def made_up(loss: list[list[float]], *, error: float = 0.1) -> Result:
    """Settings x seeds of one loss for all measures, and one error."""
    errors = [[error] * len(row) for row in loss]
    rates = [10.0**-i for i in range(len(loss))]
    curve, seconds = [[100.0]] * len(loss), [1e-3] * len(loss)
    return Result(rates, loss, loss, loss, errors, loss, errors, curve, seconds)


def three_seeds(loss: float, **options: float) -> Result:
    return made_up([[0.9 * loss, loss, 1.1 * loss]], **options)


@pytest.fixture(scope="module")
def tasks() -> list[EvaluationTask]:
    problem = TaskProblem([mlp_task(synthetic_data.teacher_student(2000, 12, 6, 0.1, 400), [8])])
    groups = (("a", "main"), ("b", "main"), ("c", "conv"))
    return [EvaluationTask(name, group, problem, 20) for name, group in groups]


@pytest.fixture
def evaluation(tasks: list[EvaluationTask]) -> Evaluation:
    losses = {
        "AdamW cosine": 1.0,
        "Muon .95 cosine": 0.9,
        "Muon .8 cosine": 0.8,
        "untrained frame": 0.7,
        "mulo-norm, meta-seed 0": 0.5,
        "mulo-norm, meta-seed 1": 0.7,
        "mulo-norm, meta-seed 2": 0.6,
        "mulo-norm-scalars, meta-seed 0": 1.0,
        "mulo-norm-scalars, meta-seed 1": 0.7,
    }
    results = {method: {task.name: three_seeds(loss) for task in tasks} for method, loss in losses.items()}
    learned = {
        "mulo-norm": [f"mulo-norm, meta-seed {seed}" for seed in range(3)],
        "mulo-norm-scalars": [f"mulo-norm-scalars, meta-seed {seed}" for seed in range(2)],
    }
    return Evaluation(results, tasks, learned, {"mulo-norm": "mulo-norm, meta-seed 2"})


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


def test_accuracy_is_gained_where_the_error_is_lower() -> None:
    better, worse = ({"a": three_seeds(1.0, error=error)} for error in (0.1, 0.3))
    assert accuracy_points(better, worse, ["a"]).value == pytest.approx(20)


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


def test_a_run_that_ends_above_its_start_has_diverged() -> None:
    assert diverged({"a": three_seeds(1.0), "b": three_seeds(200.0)}, ["a", "b"]) == ["b"]


def test_a_rate_at_the_edge_of_its_grid_is_marked() -> None:
    results = {"m": {"a": made_up([[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]])}, "n": {"a": made_up([[1.0, 1.1]])}}
    table = single_task_table(results, "a")
    assert "1 of 3, at the edge" in table
    assert "1, no choice" in table


def test_report_has_every_group_and_the_single_constants(evaluation: Evaluation) -> None:
    text = report(evaluation)
    assert "### main: 2 tasks" in text
    assert "### conv: 1 task\n" in text
    assert "| untrained frame, one constant |" in text
    assert "0.600 [0.600, 0.600]" in text
    assert "| b | 1.0000 |" in text


def test_the_median_meta_seed_is_judged(evaluation: Evaluation) -> None:
    def against_adamw(results, method, twin, names):
        return compare(results[method], results["AdamW cosine"], names, "mean_loss")

    def verdict(reach: float, aim: float) -> str:
        return judge(Claim("mulo-norm", "", reach, aim, against_adamw), evaluation, ["a", "b"])[1]

    text, _ = judge(Claim("mulo-norm", "", 1, 0.5, against_adamw), evaluation, ["a", "b"])
    assert text == "0.600 [0.600, 0.600]; seeds 0.500, 0.700, 0.600"
    assert [verdict(0.59, 0.5), verdict(0.65, 0.5), verdict(0.65, 0.61)] == [
        "**not reached**",
        "reached",
        "aim reached",
    ]


def test_each_meta_seed_meets_its_own_twin(evaluation: Evaluation) -> None:
    lines = [line for line in claims_table(evaluation).splitlines() if "to mulo-norm-scalars" in line]
    assert len(lines) == 1
    assert "1.000 [1.000, 1.000]; seeds 0.500, 1.000 | **not reached**" in lines[0]  # of two the worse one


def test_claims_that_were_not_run_say_so(evaluation: Evaluation) -> None:
    lines = claims_table(evaluation).splitlines()
    assert any("worst far task" in line and "not run" in line for line in lines)
    assert any("static" in line and "not run" in line for line in lines)
    assert len({line.count("|") for line in lines}) == 1


def test_record_and_plots_are_written(evaluation: Evaluation, tmp_path) -> None:
    text = record_body(evaluation)
    assert "## mulo-norm as shipped (mulo-norm, meta-seed 2)" in text
    plot_all(evaluation, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"ratios-main.png", "curves-main.png", "curves-conv.png"}


def test_a_card_gets_the_tables_of_its_own_meta_seed(evaluation: Evaluation) -> None:
    tables = card_tables(evaluation, "mulo-norm, meta-seed 1")
    assert "| mulo-norm, meta-seed 1 against |" in tables
    assert "| mulo-norm-scalars, meta-seed 1 | 1.000" in tables
    card = f"before\n{TABLES_BEGIN}\nold\n{TABLES_END}\nafter"
    again = with_tables(with_tables(card, "first"), tables)
    assert again == f"before\n{TABLES_BEGIN}\n\n{tables}\n\n{TABLES_END}\nafter"
    with pytest.raises(ValueError, match="a card must have the lines"):
        with_tables("no marks", tables)


def test_what_was_not_run_leaves_cards_alone(evaluation: Evaluation) -> None:
    empty = replace(evaluation, results={}, shipped={"mulo": "mulo"})
    assert write_cards(empty) == []
    assert "as shipped" not in record_body(empty)


@pytest.mark.parametrize("name", available())
def test_shipped_cards_take_tables(name: str) -> None:
    assert "new" in with_tables((DIRECTORY / f"{name}.md").read_text(), "new")
