"""A classifier for tables as an estimator of scikit-learn: fitting it is one pass of a generator.

Legend: n rows, D features, K classes.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence, Set
from numbers import Integral
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from generator.tabular.files import SHIPPED, load_tabular
from generator.tabular.network import TabularMLP, standardisation
from zoo.ambient import torch_defaults
from zoo.devices import resolve_device
from zoo.tasks.files.tables import hides_most

_MAX_MEMBERS: Final = 4
_LEARNING_RATE: Final = 1e-3


class GeneratedClassifier(ClassifierMixin, BaseEstimator):
    """An MLP for a table, made from its rows in one pass, without training.

    Columns of words, and of pandas' categories, become one-hot, missing numbers the column's mean with a column that
    says so. Of more than `max_rows` rows up to four networks are made from parts with the classes' shares, and averaged
    into one.

    Args:
        finetune_steps: steps of training on all rows at once after the pass.
        optimizer: makes the optimizer of a module, such as `learned_opt.MuLO`; default AdamW at 1e-3.
        categorical_features: columns of numbers that are names, by position, by name or as a mask.
        max_rows: that one pass takes, and perhaps one more of each class; its time and memory grow with their square.
        weights: file of a generator; None for that of the package.
        device: "auto", "cpu", "cuda" ...
        random_state: of which rows are in which part, if there are several.

    Attributes:
        classes_: (K,) labels.
        module_: the network, (n, encoded features) -> (n, K) logits; `encoder_` makes its inputs.
        encoder_: scikit-learn's transformer of columns.
    """

    classes_: np.ndarray
    module_: TabularMLP
    encoder_: ColumnTransformer
    _is_mixed: bool

    def __init__(
        self,
        *,
        finetune_steps: int = 0,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        categorical_features: Sequence[int] | Sequence[str] | Sequence[bool] = (),
        max_rows: int = 1024,
        weights: str | Path | None = None,
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.finetune_steps = finetune_steps
        self.optimizer = optimizer
        self.categorical_features = categorical_features
        self.max_rows = max_rows
        self.weights = weights
        self.device = device
        self.random_state = random_state

    @torch_defaults()
    def fit(self, X: Any, y: Any) -> GeneratedClassifier:
        """Make the network of rows X (n, D) and their labels y (n,)."""
        if self.max_rows < 2 or self.finetune_steps < 0 or not isinstance(self.finetune_steps, Integral):
            raise ValueError(
                f"max_rows must be at least 2 and finetune_steps an integer from 0 up, got {self.max_rows}, "
                f"{self.finetune_steps}"
            )
        categories = [i for i, dtype in enumerate(getattr(X, "dtypes", ())) if str(dtype) == "category"]
        if y is not None:
            _check_labels(np.asarray(y, dtype=object).ravel())
        X, y = validate_data(
            self, _with_plain_gaps(X), y, dtype=None, ensure_all_finite="allow-nan", ensure_min_samples=2
        )
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.encoder_ = _encoder(X, {*categories, *self._categorical_columns()})
        device = resolve_device(self.device)
        self._is_mixed = X.dtype.kind in "OU"
        encoded = self.encoder_.fit_transform(self._as_fitted(X))
        inputs = torch.as_tensor(np.asarray(encoded, dtype=np.float32), device=device)
        if not inputs.isfinite().all():
            raise ValueError("columns hold numbers beyond what can be standardised, about 1e150; scale them")
        labels = torch.as_tensor(codes, device=device)
        generator = load_tabular(self.weights or SHIPPED).to(device)
        scaling = standardisation(inputs[None])
        members = [
            generator(inputs[part][None], labels[part][None], len(self.classes_), scaling)
            for part in self._parts(codes, device)
        ]
        self.module_ = TabularMLP.mean_of(members)
        if self.finetune_steps:
            self._finetune(inputs, labels)
        return self

    @torch_defaults()
    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, K) of the classes, in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, _with_plain_gaps(X), reset=False, dtype=None, ensure_all_finite="allow-nan")
        inputs = torch.as_tensor(np.asarray(self.encoder_.transform(self._as_fitted(X)), dtype=np.float64))
        exact = copy.deepcopy(self.module_).to("cpu", torch.float64)  # no row's answer depends on those asked with it
        with torch.inference_mode():
            return exact(inputs).softmax(-1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class (n,) of each row."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        return tags

    def _as_fitted(self, X: np.ndarray) -> np.ndarray:
        """Rows with words as objects, also where those asked for happen to be numbers or gaps alone."""
        return X.astype(object) if self._is_mixed else X

    def _categorical_columns(self) -> list[int]:
        """Positions of `categorical_features`."""
        given, names = list(self.categorical_features), list(getattr(self, "feature_names_in_", ()))
        try:
            columns = [names.index(one) if isinstance(one, str) else one for one in given]
            return np.arange(self.n_features_in_)[np.array(columns, dtype=None if columns else int)].tolist()
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"categorical_features must be positions or names of the {self.n_features_in_} columns, or a mask of "
                f"them, got {given}"
            ) from error

    def _parts(self, codes: np.ndarray, device: torch.device) -> list[Tensor]:
        """Rows of each pass: of each class as many as in the others, and at least one."""
        num_rows = len(codes)
        if num_rows <= self.max_rows:
            return [torch.arange(num_rows, device=device)]
        order = check_random_state(self.random_state).permutation(num_rows)
        order = order[codes[order].argsort(kind="stable")]
        one_of_each = order[np.unique(codes[order], return_index=True)[1]]
        count = -(-num_rows // self.max_rows)
        parts = [np.union1d(order[i::count], one_of_each) for i in range(min(count, _MAX_MEMBERS))]
        return [torch.as_tensor(part, device=device) for part in parts]

    def _finetune(self, inputs: Tensor, labels: Tensor) -> None:
        make = self.optimizer or (lambda module: torch.optim.AdamW(module.parameters(), _LEARNING_RATE))
        optimizer = make(self.module_)
        for _ in range(self.finetune_steps):
            optimizer.zero_grad()
            with torch.enable_grad():
                F.cross_entropy(self.module_(inputs), labels).backward()
            optimizer.step()


def _check_labels(labels: np.ndarray) -> None:
    """Refuse labels that are missing, or of two kinds, which NumPy would make one of in silence."""
    for label in labels:
        if label is None or type(label).__name__ == "NAType":  # of pandas, which need not be there
            raise ValueError(f"Input y contains {label}; leave out rows without a label")
    of_kind = {
        isinstance(label, str): label for label in labels if not (isinstance(label, float) and math.isnan(label))
    }
    if len(of_kind) == 2:
        raise ValueError(f"labels must be words or numbers, got both: {of_kind[True]!r} and {of_kind[False]!r}")


def _encoder(X: np.ndarray, categorical: Set[int]) -> ColumnTransformer:
    """Columns of numbers, filled and standardised in float64, then columns of words and names as zeros and ones."""
    is_word = [i in categorical or _has_words(column) for i, column in enumerate(X.T)]
    numbers, words = np.flatnonzero(~np.array(is_word)), np.flatnonzero(is_word)
    for i in numbers:
        try:
            X[:, i].astype(np.float64)
        except (TypeError, ValueError) as error:
            kind = type(error)
            raise kind(f"column {i} holds neither numbers nor words; make numbers of dates: {error}") from None
    if far := numbers[hides_most(X[:, numbers].astype(np.float64))].tolist():
        warnings.warn(
            f"a few numbers of columns {far} are so far from the others that these are nearly equal once standardised; "
            "take logarithms, or put scikit-learn's QuantileTransformer before",
            stacklevel=3,
        )
    filled = SimpleImputer(add_indicator=True, keep_empty_features=True)
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(filled, StandardScaler()), numbers),
            ("words", OneHotEncoder(handle_unknown="ignore", sparse_output=False), words),
        ]
    )


def _with_plain_gaps(X: Any) -> Any:
    """A frame that holds more than numbers with NaN where pandas has a missing value of another kind."""
    kinds = {getattr(dtype, "kind", "O") for dtype in getattr(X, "dtypes", ())} if hasattr(X, "notna") else set()
    return X.astype(object).where(X.notna(), np.nan) if kinds - set("biuf") else X


def _has_words(column: np.ndarray) -> bool:
    """Whether a column holds text that is no number; words in one column of an array make text of all its numbers."""
    texts = [value for value in column if isinstance(value, str | bytes)]
    try:
        np.array(texts).astype(np.float64)
    except ValueError:
        return True
    return False
