"""Rows, goals and cards of made-up results with known answers, and the coordinate check of an optimizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learned_opt import MlpRule, NormalizedRule, Pretrained
from learned_opt.evaluation.tasks import EvaluationTask
from learned_opt.meta_training import synthetic_data
from learned_opt.meta_training.task_distribution import mlp_task
from learned_opt.meta_training.task_family import TaskFamily
from learned_opt.pretrained.files import DIRECTORY, available
from learned_opt.rules.controller import encode_scalars
from scripts.rows import tables
from scripts.studies.optimizers.cards import TABLES_BEGIN, TABLES_END, with_tables, write_cards
from scripts.studies.optimizers.comparison import TUNED_MUON, Comparison, with_one_constant, with_tuned_muon
from scripts.studies.optimizers.coordinate_check import check_depths, check_pretrained, plot
from scripts.studies.optimizers.goals import Goal, goal_rows, judge
from scripts.studies.optimizers.plots import plot_all
from scripts.studies.optimizers.report import card_rows, comparison_rows, single_task_row
from tests.learned_opt.evaluation.test_statistics import made_up, three_seeds


@pytest.fixture(scope="module")
def tasks() -> list[EvaluationTask]:
    family = TaskFamily([mlp_task(synthetic_data.teacher_student(2000, 12, 6, 0.1, 400), [8])])
    groups = (("a", "main"), ("b", "main"), ("c", "conv"))
    return [EvaluationTask(name, group, family, 20) for name, group in groups]


@pytest.fixture
def comparison(tasks: list[EvaluationTask]) -> Comparison:
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
    return Comparison(results, tasks, learned, {"mulo-norm": "mulo-norm, meta-seed 2"})


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


def test_a_rate_at_the_edge_of_its_grid_is_marked() -> None:
    grid, alone = made_up([[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]]), made_up([[1.0, 1.1]])
    chosen = [single_task_row("m", result, "a").figures["chosen among"] for result in (grid, alone)]
    assert chosen == ["3, at the edge", "no choice"]


def test_intervals_of_a_single_task_are_students() -> None:
    row = single_task_row("m", three_seeds(1.0), "a")
    low, high = row.spread["mean loss"]
    assert row.figures["mean loss"] == pytest.approx(1.0)
    assert high - low == pytest.approx(2 * 4.303 * 0.1 / 3**0.5, rel=1e-3)


def test_rows_have_every_group_and_the_single_constants(comparison: Comparison) -> None:
    rows = comparison_rows(comparison)
    assert {row.setting["tasks"] for row in rows if "tasks" in row.setting} == {
        "main, 2 tasks",
        "main, data never drawn, 2 tasks",
    }
    assert {row.setting["task"] for row in rows if "task" in row.setting} == {"c"}
    constant = next(row for row in rows if row.setting.get("method") == "untrained frame, one constant")
    assert constant.figures["mean loss, ratio"] == pytest.approx(0.7)
    by_task = [row for row in rows if row.question.startswith("Mean training loss, main")]
    assert by_task[0].figures == pytest.approx({"a": 1.0, "b": 1.0})
    text = tables(rows)
    assert "0.6 (0.6 to 0.6)" in text


def test_the_median_meta_seed_is_judged(comparison: Comparison) -> None:
    def verdict(reach: float, aim: float) -> dict:
        return judge(Goal("mulo-norm", "", reach, aim, "mean_loss"), comparison, "two", ["a", "b"]).figures

    figures = verdict(1, 0.5)
    assert figures["figure"] == pytest.approx(0.6)
    assert [figures[f"meta-seed {seed}"] for seed in range(3)] == pytest.approx([0.5, 0.7, 0.6])
    verdicts = [verdict(*goal)["verdict"] for goal in ((0.59, 0.5), (0.65, 0.5), (0.65, 0.61))]
    assert verdicts == ["not reached", "reached", "aim reached"]


def test_each_meta_seed_meets_its_own_twin(comparison: Comparison) -> None:
    rows = [row for row in goal_rows(comparison) if row.setting["claim"].endswith("to mulo-norm-scalars")]
    assert [row.setting["tasks"] for row in rows] == ["main, 2 tasks"]
    figures = rows[0].figures
    assert (figures["meta-seed 0"], figures["meta-seed 1"]) == pytest.approx((0.5, 1.0))
    assert figures["figure"] == pytest.approx(1.0)  # of two the worse one
    assert figures["verdict"] == "not reached"


def test_goals_that_were_not_measured_have_no_row(comparison: Comparison) -> None:
    claims = {row.setting["claim"] for row in goal_rows(comparison)}
    assert "mulo-norm: mean loss to tuned AdamW + cosine" in claims
    assert not any("worst far task" in claim or "static" in claim for claim in claims)


def test_plots_are_written(comparison: Comparison, tmp_path) -> None:
    plot_all(comparison, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"ratios-main.png", "curves-main.png", "curves-conv.png"}


def test_a_card_gets_the_tables_of_its_own_meta_seed(comparison: Comparison, tmp_path) -> None:
    rows = card_rows(comparison, "mulo-norm, meta-seed 1")
    twin = next(row for row in rows if row.setting.get("against") == "mulo-norm-scalars, meta-seed 1")
    assert twin.figures["mean loss, ratio"] == pytest.approx(1.0)
    card = tmp_path / "mulo-norm.md"
    card.write_text(f"before\n{TABLES_BEGIN}\nold\n{TABLES_END}\nafter")
    assert write_cards(comparison, tmp_path) == [card]
    of_shipped = tables(card_rows(comparison, "mulo-norm, meta-seed 2"))
    assert card.read_text() == f"before\n{TABLES_BEGIN}\n\n{of_shipped}\n\n{TABLES_END}\nafter"
    with pytest.raises(ValueError, match="a card must have the lines"):
        with_tables("no marks", of_shipped)


def test_what_was_not_run_leaves_cards_alone(comparison: Comparison, tmp_path) -> None:
    empty = replace(comparison, results={}, shipped={"mulo": "mulo"})
    assert write_cards(empty, tmp_path) == []


@pytest.mark.parametrize("name", available())
def test_shipped_cards_take_tables(name: str) -> None:
    assert "new" in with_tables((DIRECTORY / f"{name}.md").read_text(), "new")


def test_a_rule_is_checked_against_standard_parametrization(tmp_path) -> None:
    rule = MlpRule(8)
    untrained = Pretrained(rule, rule.init_theta(torch.Generator().manual_seed(0)))
    checks = check_pretrained(untrained, widths=(64, 256), seeds=(0,))
    in_mup, standard, adam = (check.growth["layers.1"] for check in checks.values())
    assert abs(in_mup) < 0.15
    assert standard > 0.6
    assert adam > 0.4
    plot(checks, tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 1000


def test_branches_over_depth_ask_for_steps_that_do_not_fall_with_it() -> None:
    """In CompleteP Adam changes activations equally at every depth; a rule whose steps fall as L^-1/2 by L^-1/2."""
    theta = encode_scalars({"rate": 0.001, "depth_power": -0.5, "agreement_rate": 1e-9})
    checks = check_depths(Pretrained(NormalizedRule(feedback=False), theta, "rule"), depths=(2, 8, 32), seeds=(0,))
    as_is, root, whole, adam = (check.growth["norm"] for check in checks.values())
    assert adam == pytest.approx(0, abs=0.1)
    assert whole == pytest.approx(-0.5, abs=0.1)
    assert as_is > root + 0.2 > whole + 0.3
