import numpy as np
import torch

from scripts.studies.tabular.rivals import HORIZONS, LEARNING_RATES, adamw_curves, split_held_out, tuned
from scripts.studies.tabular.tables import CHOSEN_ON, REPORTED, Table, _columns, parts, scikit_learn


def test_no_table_is_reported_that_choices_were_made_on():
    assert not set(CHOSEN_ON) & set(REPORTED)
    assert len(REPORTED) >= 12


def test_columns_are_numbers_or_words_and_may_have_gaps():
    cells = np.array([["1", "red", "NA"], ["2.5", "?", "3"]], dtype=object)
    columns = _columns(cells)
    assert columns[:, 0].tolist() == [1.0, 2.5]
    assert columns[:, 1].tolist() == ["red", "missing"]
    assert np.isnan(columns[0, 2])
    assert columns[1, 2] == 3
    assert _columns(cells[:, [0, 2]]).dtype == float


def test_rows_to_learn_from_and_to_test_on_share_none():
    table = Table("numbers", np.arange(100.0)[:, None], np.arange(100) % 2)
    X, y, X_test, y_test = parts(table, 0, max_rows=30)
    assert (len(X), len(y), len(X_test), len(y_test)) == (30, 30, 50, 50)
    assert not set(X[:, 0]) & set(X_test[:, 0])


def test_trained_networks_learn_and_are_tuned_on_rows_held_out():
    table = scikit_learn("iris")
    X, y, X_test, y_test = (torch.tensor(part)[None] for part in parts(table, 0, 75))
    curves = adamw_curves(X.float(), y, X_test.float(), y_test, num_units=16, num_classes=3, seed=0)
    assert curves.shape == (1, len(LEARNING_RATES), len(HORIZONS))
    assert curves[0, :, -1].max() > 0.9
    held_out = torch.zeros_like(curves)
    held_out[0, 1, 2] = 1
    assert tuned(held_out, curves) == curves[0, 1, 2]
    train, held = split_held_out(75, 0)
    assert sorted([*train, *held]) == list(range(75))
