"""GeneratedClassifier is an estimator of scikit-learn, and its network an ordinary module."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from generator import GeneratedClassifier
from tests.ambient import AMBIENTS


@parametrize_with_checks([GeneratedClassifier(device="cpu")])
def test_it_is_an_estimator(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def table():
    """Numbers with gaps, and words; the class needs both."""
    rng = np.random.default_rng(0)
    number, words = rng.normal(size=400), rng.choice(["red", "green", "blue"], 400)
    labels = np.where((number > 0) ^ (words == "red"), "yes", "no")
    frame = pd.DataFrame({"number": np.where(rng.random(400) < 0.05, np.nan, number), "word": words})
    return frame, labels


def test_words_and_gaps(table):
    frame, labels = table
    model = GeneratedClassifier(device="cpu").fit(frame[:200], labels[:200])
    assert model.score(frame[200:], labels[200:]) > 0.8  # half would be chance
    never_seen = frame[:2].assign(word=["purple", "red"])
    assert np.isfinite(model.predict_proba(never_seen)).all()


def test_numbers_that_are_names(table):
    frame, labels = table
    code = np.searchsorted(["blue", "green", "red"], frame["word"])
    X = np.stack([frame["number"].fillna(0), 7.0 * ((code + 1) % 3)], 1)  # red lies between the others
    model = GeneratedClassifier(categorical_features=[1], device="cpu").fit(X[:200], labels[:200])
    assert model.n_features_in_ == 2
    assert model.module_.mean.shape == (4,)
    assert model.score(X[200:], labels[200:]) > 0.9


@pytest.mark.parametrize("named", [[-1], ["code"], [False, True], "category"])
def test_names_are_said_by_position_name_mask_or_category(table, named):
    frame = pd.DataFrame({"number": table[0]["number"], "code": np.arange(400) % 3})
    if named == "category":
        frame, named = frame.astype({"code": "category"}), ()
    model = GeneratedClassifier(categorical_features=named, device="cpu").fit(frame, table[1])
    assert [columns.tolist() for *_, columns in model.encoder_.transformers_] == [[0], [1]]


def test_frames_with_missing_values_of_pandas(table):
    frame, labels = table
    gaps = frame.assign(count=np.where(np.arange(400) % 5, np.arange(400.0) % 7, np.nan)).astype({"word": object})
    gaps.loc[::6, "word"] = np.nan
    model = GeneratedClassifier(device="cpu").fit(gaps, labels)
    nullable = gaps.astype({"count": "Int64", "word": "string"})
    again = GeneratedClassifier(device="cpu").fit(nullable, labels)
    np.testing.assert_array_equal(again.predict_proba(nullable), model.predict_proba(gaps))


def test_numbers_in_an_array_of_text_stay_numbers(table):
    frame, labels = table
    expected = GeneratedClassifier(device="cpu").fit(frame, labels).predict_proba(frame)
    text = np.array(frame.to_numpy().tolist())
    assert text.dtype.kind == "U"
    np.testing.assert_allclose(GeneratedClassifier(device="cpu").fit(text, labels).predict_proba(text), expected)


def test_rows_whose_words_are_all_missing_are_asked_for(table):
    frame, labels = table
    model = GeneratedClassifier(device="cpu").fit(frame, labels)
    gap = frame[:2].assign(word=[np.nan, "red"])
    alone = model.predict_proba(frame[:1].assign(word=np.nan))  # a frame of numbers alone
    np.testing.assert_allclose(alone, model.predict_proba(gap)[:1])


@pytest.mark.parametrize(("scale", "offset"), [(1e-30, 0), (1e-6, 0), (1e30, 0), (1e60, 0), (1, 1e7), (86400, 1.6e9)])
def test_the_scale_and_origin_of_numbers_do_not_matter(scale, offset):
    X, y = load_iris(return_X_y=True)
    expected = GeneratedClassifier(device="cpu").fit(X, y).predict_proba(X)
    Z = X * scale + offset
    np.testing.assert_allclose(GeneratedClassifier(device="cpu").fit(Z, y).predict_proba(Z), expected, atol=1e-3)


def test_a_class_of_few_rows_is_known_to_every_part():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [300, 298, 2])
    X = 8 * np.eye(3)[y] + 0.3 * rng.normal(size=(600, 3))
    model = GeneratedClassifier(max_rows=150, device="cpu").fit(X, y)
    assert (model.predict_proba(X[-2:]).argmax(1) == 2).all()


def test_a_pipeline_and_cross_validation():
    X, y = load_iris(return_X_y=True)
    scores = cross_val_score(make_pipeline(StandardScaler(), GeneratedClassifier(device="cpu")), X, y, cv=3)
    assert scores.mean() > 0.9


def test_the_module_is_the_classifier_and_can_be_exported():
    X, y = load_iris(return_X_y=True)
    model = GeneratedClassifier(device="cpu").fit(X, np.array(["a", "b", "c"])[y])
    inputs = torch.tensor(model.encoder_.transform(X), dtype=torch.float32)
    with torch.no_grad():
        shares = model.module_(inputs).softmax(-1).numpy()
    np.testing.assert_allclose(shares, model.predict_proba(X), atol=1e-6)
    exported = torch.export.export(model.module_, (inputs,)).module()
    torch.testing.assert_close(exported(inputs), model.module_(inputs))


def test_more_rows_are_parts_whose_networks_are_averaged():
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, random_state=0, stratify=y)
    parts = GeneratedClassifier(max_rows=256, device="cpu").fit(X, y)
    assert (
        parts.module_.hidden.out_features == 4 * GeneratedClassifier(device="cpu").fit(X, y).module_.hidden.out_features
    )
    one = GeneratedClassifier(device="cpu").fit(X[:256], y[:256])
    assert parts.score(X_test, y_test) > one.score(X_test, y_test)
    again = GeneratedClassifier(max_rows=256, device="cpu").fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X_test), parts.predict_proba(X_test))


def test_training_goes_on_with_any_optimizer():
    X, y = load_digits(return_X_y=True)
    made = []

    def optimizer(module):
        made.append(torch.optim.SGD(module.parameters(), 0.01))
        return made[0]

    before = GeneratedClassifier(device="cpu").fit(X[:300], y[:300])
    after = GeneratedClassifier(finetune_steps=5, optimizer=optimizer, device="cpu").fit(X[:300], y[:300])
    assert made[0].param_groups[0]["params"][0] is next(after.module_.parameters())

    def loss(model):
        return -np.log(model.predict_proba(X[:300])[np.arange(300), y[:300]]).mean()

    assert loss(after) < loss(before)


def test_more_classes_than_it_was_trained_for():
    rng = np.random.default_rng(0)
    y = rng.integers(15, size=600)
    X = rng.normal(size=(15, 6))[y] + 0.2 * rng.normal(size=(600, 6))
    model = GeneratedClassifier(device="cpu").fit(X[:300], y[:300])
    assert model.score(X[300:], y[300:]) > 0.95 > DummyClassifier().fit(X[:300], y[:300]).score(X[300:], y[300:])


def test_bad_input_is_refused_in_words():
    with pytest.raises(ValueError, match="Unknown label type"):
        GeneratedClassifier(device="cpu").fit(np.ones((4, 1)), np.array([0.1, 0.2, 0.5, 1.3]))
    with pytest.raises(ValueError, match="infinity"):
        GeneratedClassifier(device="cpu").fit(np.array([[1.0], [np.inf]]), [0, 1])
    for labels, said in (
        (np.array(["a", "b", None, "a"], dtype=object), "contains None"),
        (pd.Series(["a", "b", pd.NA, "a"], dtype="string"), "contains <NA>"),
        (["a", "b", 1, "a"], "got both: 'a' and 1"),
    ):
        with pytest.raises(ValueError, match=said):
            GeneratedClassifier(device="cpu").fit(np.eye(4), labels)
    with pytest.raises(TypeError, match="neither numbers nor words"):
        GeneratedClassifier(device="cpu").fit(pd.DataFrame({"day": pd.to_datetime(["2020", "2021"])}), [0, 1])
    with pytest.raises(ValueError, match="positions or names of the 4 columns"):
        GeneratedClassifier(categorical_features=[4], device="cpu").fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="max_rows must be at least 2"):
        GeneratedClassifier(max_rows=0, device="cpu").fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="is no safetensors file"):
        GeneratedClassifier(weights=__file__, device="cpu").fit(np.eye(4), [0, 1, 0, 1])


@pytest.mark.parametrize("name", AMBIENTS)
def test_answers_are_the_same_whatever_a_program_has_set_for_torch(name):
    X, y = load_iris(return_X_y=True)
    model = GeneratedClassifier(device="cpu", finetune_steps=1)
    expected = model.fit(X[::3], y[::3]).predict_proba(X)
    with AMBIENTS[name]():
        assert np.array_equal(model.fit(X[::3], y[::3]).predict_proba(X), expected)


def test_numbers_as_text_are_numbers():
    X, y = load_iris(return_X_y=True)
    answers = [GeneratedClassifier(device="cpu").fit(x, y).predict_proba(x) for x in (X, pd.DataFrame(X).astype(str))]
    np.testing.assert_allclose(*answers, atol=1e-6)


def test_numbers_that_hide_the_others_are_said():
    X, y = load_iris(return_X_y=True)
    with pytest.warns(UserWarning, match=r"numbers of columns \[2\] are so far from the others"):
        GeneratedClassifier(device="cpu").fit(np.vstack((X, [5, 3, 1e6, 1])), [*y, 0])
    with pytest.raises(ValueError, match="beyond what can be standardised"), np.errstate(all="ignore"):
        GeneratedClassifier(device="cpu").fit(X * 1e200, y)
    with pytest.raises(ValueError, match=r"finetune_steps an integer from 0 up, got 1024, 2\.5"):
        GeneratedClassifier(finetune_steps=2.5).fit(X, y)
