"""Ratios, differences and intervals of made-up results with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from learned_opt.evaluation.comparison import Result
from learned_opt.evaluation.statistics import (
    accuracy_points,
    compare,
    diverged,
    geometric_ratio,
    mean_difference,
)


def made_up(loss: list[list[float]], *, error: float = 0.1) -> Result:
    """Settings x seeds of one loss for all measures, and one error."""
    errors = [[error] * len(row) for row in loss]
    rates = [10.0**-i for i in range(len(loss))]
    curve, seconds = [[100.0]] * len(loss), [1e-3] * len(loss)
    return Result(rates, loss, loss, loss, errors, loss, errors, curve, seconds)


def three_seeds(loss: float, **options: float) -> Result:
    return made_up([[0.9 * loss, loss, 1.1 * loss]], **options)


def test_ratio_is_the_geometric_mean_and_its_interval_covers_it() -> None:
    results = {"a": made_up([[1.0, 2.0]]), "b": made_up([[4.0, 8.0]])}
    half = {"a": made_up([[0.25, 0.5]]), "b": made_up([[4.0, 8.0]])}
    ratio = compare(half, results, ["a", "b"], "mean_loss")
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


def test_a_run_that_ends_above_its_start_has_diverged() -> None:
    assert diverged({"a": three_seeds(1.0), "b": three_seeds(200.0)}, ["a", "b"]) == ["b"]
