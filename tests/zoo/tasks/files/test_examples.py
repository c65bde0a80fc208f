import numpy as np
import pytest

from zoo.tasks.files import examples
from zoo.tasks.files.examples import allocate, complete_splits, places, row_places, split_examples

X = np.random.RandomState(0).randn(400, 3)


def test_equal_examples_share_a_split_whatever_their_number_and_order():
    repeated = np.concatenate([X, X[::-1], X[:50]])
    split = complete_splits([0] * len(repeated), row_places(repeated), "data")
    assert np.array_equal(split[:400], split[400:800][::-1])
    assert np.array_equal(split[:50], split[800:])
    shares = np.bincount(split[:400]) / 400
    assert np.all(np.abs(shares - [0.7, 0.15, 0.15]) < 0.06)


def test_further_examples_move_none():
    split = complete_splits([0] * 400, row_places(X), "data")
    assert np.array_equal(complete_splits([0] * 200, row_places(X[:200]), "data"), split[:200])


def test_only_splits_that_are_not_declared_are_taken_from_train():
    declared = np.where(np.arange(400) < 100, 2, 0)
    split = complete_splits(declared, row_places(X), "data")
    assert np.array_equal(split == 2, declared == 2)
    assert (split == 1).any()
    declared[100:150] = 1
    assert np.array_equal(complete_splits(declared, row_places(X), "data"), declared)


def test_declared_leaks_are_said_and_empty_splits_refused():
    twice = np.concatenate([X[:20], X[:3], X[20:30]])
    declared = np.repeat([0, 1, 2], [20, 3, 10])
    with pytest.warns(UserWarning, match="data: 3 examples of val and test are in train"):
        complete_splits(declared, row_places(twice), "data")
    with pytest.raises(ValueError, match="got none for val of 2 different ones; bring more"):
        complete_splits([0] * 4, places([b"a", b"b", b"a", b"b"]), "data")


def test_pixels_are_scaled_and_classes_without_training_examples_named():
    pixels = np.arange(6, dtype=np.uint8).reshape(6, 1) * 51
    split = np.array([0, 1, 2, 0, 1, 2])
    parts = split_examples(pixels, np.array([0, 0, 1, 1, 0, 1]), split, ["a", "b"], "data")
    np.testing.assert_allclose([x[:, 0] for x, _ in parts], [[0, 0.6], [0.2, 0.8], [0.4, 1]], atol=1e-6)
    with pytest.raises(ValueError, match="class 'b' has no example in the train split"):
        split_examples(pixels, np.array([0, 0, 1, 0, 0, 1]), split, ["a", "b"], "data")


def test_large_arrays_are_mapped_files_with_the_same_contents(monkeypatch):
    pixels, split = np.random.RandomState(1).randint(0, 256, (30, 40), np.uint8), np.arange(30) % 3
    small = split_examples(pixels, np.zeros(30), split, None, "data")
    monkeypatch.setattr(examples, "_IN_MEMORY", 100)
    large = split_examples(pixels, np.zeros(30), split, None, "data")
    for (here, _), (there, _) in zip(small, large, strict=True):
        assert isinstance(there, np.memmap)
        assert np.array_equal(here, there)
    monkeypatch.setattr(examples.os, "posix_fallocate", _full, raising=False)
    with pytest.raises(OSError, match=r"no room for .* set TMPDIR"):
        allocate((1000, 1000), np.float32)


def _full(*args):
    raise OSError(28, "No space left on device")
