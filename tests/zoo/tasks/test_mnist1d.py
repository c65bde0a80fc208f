import numpy as np
import pytest

from zoo.tasks.mnist1d import generate_mnist1d


def test_examples_are_a_function_of_the_seed():
    x, y = generate_mnist1d(200, seed=0)
    assert x.shape == (200, 40)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, generate_mnist1d(200, seed=0)[0])
    assert not np.array_equal(x, generate_mnist1d(200, seed=1)[0])
    assert np.bincount(y).tolist() == [20] * 10


def test_inputs_are_standardised():
    x, _ = generate_mnist1d(1000, seed=0)
    assert x.mean() == pytest.approx(0, abs=1e-5)
    assert x.std() == pytest.approx(1, abs=1e-5)


def test_classes_can_be_told_apart_but_not_linearly():
    """Far above chance for nearest neighbours, which see shape; a linear model gains little."""
    x, y = generate_mnist1d(3000, seed=0)
    train, test = slice(0, 2500), slice(2500, None)
    squared = (x[test] ** 2).sum(1)[:, None] - 2 * x[test] @ x[train].T + (x[train] ** 2).sum(1)
    nearest = (y[train][squared.argmin(1)] == y[test]).mean()
    features = np.c_[x, np.ones(len(x))]
    weights = np.linalg.lstsq(features[train], np.eye(10)[y[train]], rcond=None)[0]
    linear = ((features[test] @ weights).argmax(1) == y[test]).mean()
    assert nearest > 0.4
    assert linear < nearest - 0.1
