"""A classifier for tables as an estimator of scikit-learn: fitting it is one pass of a generator.

Legend: n rows, D features, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from generator.tabular.files import SHIPPED, load_tabular
from generator.tabular.network import TabularMLP, standardisation
from zoo.devices import resolve_device

_MAX_MEMBERS: Final = 4
_LEARNING_RATE: Final = 1e-3


class GeneratedClassifier(ClassifierMixin, BaseEstimator):
    """An MLP for a table, made from its rows in one pass, without training.

    Columns of words become one-hot, missing numbers the column's mean with a column that says so. Of more than
    `max_rows` rows up to four networks are made from disjoint parts, and averaged into one.

    Args:
        finetune_steps: steps of training on all rows at once after the pass.
        optimizer: makes the optimizer of a module, such as `learned_opt.MuLO`; default AdamW at 1e-3.
        categorical_features: columns of numbers that are names.
        max_rows: that one pass takes; its time and memory grow with the square of them.
        weights: file of a generator; None for that of the package.
        device: "auto", "cpu", "cuda" ...
        random_state: of which rows are in which part, if there are several.

    Attributes:
        classes_: (K,) labels.
        module_: the network, (n, encoded features) -> (n, K) logits; `encoder_` makes its inputs.
        encoder_: scikit-learn's transformer of columns.
    """

    def __init__(
        self,
        *,
        finetune_steps: int = 0,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        categorical_features: Sequence[int] = (),
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

    def fit(self, X: Any, y: Any) -> GeneratedClassifier:
        """Make the network of rows X (n, D) and their labels y (n,)."""
        X, y = validate_data(self, X, y, dtype=None, ensure_all_finite="allow-nan", ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.encoder_ = _encoder(X, self.categorical_features)
        device = resolve_device(self.device)
        inputs = torch.as_tensor(np.asarray(self.encoder_.fit_transform(X), dtype=np.float32), device=device)
        labels = torch.as_tensor(codes, device=device)
        generator = load_tabular(self.weights or SHIPPED).to(device)
        scaling = standardisation(inputs[None])
        members = [
            generator(inputs[part][None], labels[part][None], len(self.classes_), scaling)
            for part in self._parts(len(inputs), device)
        ]
        self.module_ = TabularMLP.mean_of(members)
        if self.finetune_steps:
            self._finetune(inputs, labels)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, K) of the classes, in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=None, ensure_all_finite="allow-nan")
        inputs = torch.as_tensor(np.asarray(self.encoder_.transform(X), dtype=np.float64))
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

    def _parts(self, num_rows: int, device: torch.device) -> list[Tensor]:
        """Rows of each pass."""
        if num_rows <= self.max_rows:
            return [torch.arange(num_rows, device=device)]
        order = check_random_state(self.random_state).permutation(num_rows)[: _MAX_MEMBERS * self.max_rows]
        count = -(-len(order) // self.max_rows)
        return [torch.as_tensor(part, device=device) for part in np.array_split(order, count)]

    def _finetune(self, inputs: Tensor, labels: Tensor) -> None:
        make = self.optimizer or (lambda module: torch.optim.AdamW(module.parameters(), _LEARNING_RATE))
        optimizer = make(self.module_)
        for _ in range(self.finetune_steps):
            optimizer.zero_grad()
            F.cross_entropy(self.module_(inputs), labels).backward()
            optimizer.step()


def _encoder(X: np.ndarray, categorical: Sequence[int]) -> ColumnTransformer:
    """Columns of numbers with their gaps filled, then columns of words and names as zeros and ones."""
    is_word = [i in categorical or _has_words(column) for i, column in enumerate(X.T)]
    numbers, words = np.flatnonzero(~np.array(is_word)), np.flatnonzero(is_word)
    return ColumnTransformer(
        [
            ("numbers", SimpleImputer(add_indicator=True, keep_empty_features=True), numbers),
            ("words", OneHotEncoder(handle_unknown="ignore", sparse_output=False), words),
        ]
    )


def _has_words(column: np.ndarray) -> bool:
    return column.dtype.kind in "SU" or (column.dtype == object and any(isinstance(value, str) for value in column))
