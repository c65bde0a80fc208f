"""Tables: columns of numbers and words become standardised features and targets.

Legend: n rows, F features, K targets, C classes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from zoo.tasks.files.columns import Columns
from zoo.tasks.files.examples import FOLDER_NAMES, SPLIT_NAMES, Splits, complete_splits, row_places, split_examples

_MAX_CATEGORIES: Final = 100
_MAX_CLASSES: Final = 1000
_FEW_ROWS: Final = 20  # up to here as many words as rows mean nothing
_FAR: Final = 10.0  # deviation of a column over the range of its middle half
_FEW_NUMBERS: Final = 10  # up to here words of digits may be categories
_PLAIN_NUMBER: Final = re.compile(r"[-+]?\d*\.?\d*(e[-+]?\d+)?", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[-+]?[$€£]?\s?\d[\d.,' ]*\s?%?")  # as people write it


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """What the columns of a table are.

    Args:
        target: the column to predict; several, all numbers, for regression on a vector.
        features: columns to predict from; None for all others.
        categorical: numbers among the features that are names, to be one-hot; words always are.
        split: column that says train, val or test; None for a split by a hash of the features.
        regression: whether the target is a number to come close to, or names a class; None for a number where the
            column holds other than whole numbers.
    """

    target: str | Sequence[str]
    features: Sequence[str] | None = None
    categorical: Sequence[str] = ()
    split: str | None = None
    regression: bool | None = None


def encode_table(
    columns: Columns, kinds: TableColumns, what: str, declared: Sequence[int] | None = None
) -> tuple[Splits, int]:
    """Features (n, F) and targets by split, and the number of classes, 0 for regression.

    Numbers are standardised by the rows of the train split, regression targets too. Missing numbers become the mean of
    those rows, missing words a category of their own; a warning counts them.

    Args:
        columns: (n,) each, by name.
        kinds: what they are.
        what: the table, for messages.
        declared: split of each row where no column says it, see `complete_splits`.

    Raises:
        ValueError: for columns that there are not, missing targets, and columns that cannot be encoded.
    """
    target_names = [kinds.target] if isinstance(kinds.target, str) else list(kinds.target)
    others = [name for name in columns if name not in target_names and name != kinds.split]
    names = list(others if kinds.features is None else kinds.features)
    wanted = [*target_names, *names, *kinds.categorical, *([kinds.split] if kinds.split else [])]
    unknown = [name for name in wanted if name not in columns]
    if unknown or not names or not target_names:
        raise ValueError(f"{what}: expected a target and features among the columns {list(columns)}, got {unknown}")
    if leaked := sorted({*target_names, *([kinds.split] if kinds.split else [])} & {*names}):
        raise ValueError(
            f"{what}: column {leaked[0]!r} is both a feature and target or split; leave it out of features"
        )
    targets, classes = encode_targets(columns, target_names, kinds.regression, what)
    codes = [_codes(columns[name], name, name in kinds.categorical, what) for name in names]
    _say_what_counts_rows({name: columns[name] for name in names}, what)
    _say_missing({name: columns[name] for name in names}, what)
    _say_what_is_far({name: code for name, code in zip(names, codes, strict=True) if code.ndim == 1}, what)
    raw = np.concatenate([code if code.ndim == 2 else code[:, None] for code in codes], 1)  # (n, F)
    sides = np.zeros(len(raw), np.int64) if declared is None else np.array(declared)
    if kinds.split is not None:
        sides = _declared(columns[kinds.split], kinds.split, what)
    split = complete_splits(sides, row_places(raw), what)
    is_number = np.concatenate([np.full(1 if code.ndim == 1 else code.shape[1], code.ndim == 1) for code in codes])
    features = np.where(is_number, standardised(raw, split == 0), raw.astype(np.float32))
    if classes is None:
        targets = standardised(targets, split == 0)
    return split_examples(features, targets, split, classes, what), len(classes or ())


def encode_targets(
    columns: Columns, names: Sequence[str], regression: bool | None, what: str
) -> tuple[np.ndarray, list[object] | None]:
    """Classes (n,) and their names, in order, or numbers (n, K) and None.

    Args:
        columns: of the table.
        names: of the targets.
        regression: see TableColumns.
        what: the table, for messages.

    Raises:
        ValueError: for missing targets, and columns that are neither classes nor numbers.
    """
    values = [columns[name] for name in names]
    for name, column in zip(names, values, strict=True):
        if num_missing := int(_is_missing(column).sum()):
            raise ValueError(f"{what}: {num_missing:,} rows have no target {name!r}; leave them out")
    are_numbers = all(column.dtype != object for column in values)
    if regression is None:
        regression = len(names) > 1 or (are_numbers and bool((values[0] % 1 != 0).any()))
    if regression:
        if not are_numbers:
            raise ValueError(f"{what}: targets {list(names)} of a regression must be numbers")
        return np.stack(values, 1), None
    if len(names) > 1:
        raise ValueError(f"{what}: classes are one column, got {list(names)}")
    classes, targets = np.unique(values[0].astype(str) if not are_numbers else values[0], return_inverse=True)
    if not 2 <= len(classes) <= _MAX_CLASSES:
        raise ValueError(
            f"{what}: target {names[0]!r} has {len(classes):,} values, expected 2 to {_MAX_CLASSES:,} classes; "
            "give regression=True for numbers"
        )
    return targets, classes.tolist()


def standardised(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Columns (n, K) less the mean of the chosen rows, divided by their deviation, as float32.

    What is missing is the mean; constant columns are zero.
    """
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # a column without any value
        mean, std = np.nanmean(values[chosen], 0), np.nanstd(values[chosen], 0)
    return np.nan_to_num((values - mean) / np.where(std > 0, std, 1)).astype(np.float32)


def hides_most(values: np.ndarray) -> np.ndarray:
    """(K,) bool: which columns (n, K) have a few numbers so far off that standardised all others are nearly equal."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning), np.errstate(all="ignore"):
        low, high = np.nanquantile(values, (0.25, 0.75), axis=0)
        return (high > low) & (np.nanstd(values, axis=0) > _FAR * (high - low))


def fit_table(
    splits: Splits, num_classes: int, num_features: int | None, wanted_classes: int | None
) -> tuple[Splits, int]:
    """A table of classes brought to a number of features and classes, so that networks of one shape can read it.

    Fewer features are filled up with zeros; of more, the first principal components of the train split are taken and
    standardised. Further classes have no examples.

    Raises:
        ValueError: for regression, and more classes than wanted.
    """
    if wanted_classes is not None:
        if not 0 < num_classes <= wanted_classes:
            raise ValueError(f"expected a table of at most {wanted_classes} classes, got {num_classes or 'regression'}")
        num_classes = wanted_classes
    size = splits[0][0].shape[1]
    if num_features is None or num_features == size:
        return splits, num_classes
    if num_features > size:
        return [(np.pad(x, ((0, 0), (0, num_features - size))), y) for x, y in splits], num_classes
    train = splits[0][0].astype(np.float64)
    _, scales, axes = np.linalg.svd(train - train.mean(0), full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])  # those of LAPACK differ between machines
    axes = (axes * signs[:, None])[:num_features]
    deviations = np.maximum(scales[:num_features] / len(train) ** 0.5, 1e-6)
    fitted = [(((x - train.mean(0)) @ axes.T / deviations).astype(np.float32), y) for x, y in splits]
    return fitted, num_classes


def _codes(column: np.ndarray, name: str, categorical: bool, what: str) -> np.ndarray:
    """(n,) numbers with NaN, or (n, C) zeros and ones."""
    if column.dtype != object and not categorical:
        if np.isinf(column).any():
            raise ValueError(f"{what}: column {name!r} holds infinite numbers")
        return column
    words = np.where(_is_missing(column), "", column.astype(str))
    categories = np.unique(words)
    numbers = [word for word in categories if _NUMBER.fullmatch(word)]
    if not categorical and len(numbers) > _FEW_NUMBERS and 2 * len(numbers) >= len(categories):
        odd = next((str(word) for word in categories if not _PLAIN_NUMBER.fullmatch(word)), numbers[0])
        raise ValueError(
            f"{what}: column {name!r} is of numbers, but {odd!r} is none: write 1234.5, leave cells without a number "
            f"empty, or say categorical=[{name!r}] if numbers are names"
        )
    if len(categories) > _MAX_CATEGORIES:
        raise ValueError(
            f"{what}: column {name!r} has {len(categories):,} different words, more than {_MAX_CATEGORIES}; leave it "
            "out with features=[...]"
        )
    if 2 * len(categories) > len(words) > _FEW_ROWS:
        warnings.warn(
            f"{what}: column {name!r} has {len(categories)} different words in {len(words)} rows, as names and dates "
            "do: each is a feature now; leave the column out with features=[...]",
            stacklevel=2,
        )
    return (words[:, None] == categories).astype(np.float64)


def _declared(column: np.ndarray, name: str, what: str) -> np.ndarray:
    bad = sorted({str(value) for value in column} - FOLDER_NAMES.keys())
    if bad:
        raise ValueError(f"{what}: column {name!r} must say {', '.join(SPLIT_NAMES)}, got {bad[:4]}")
    return np.array([FOLDER_NAMES[value] for value in column])


def _say_what_counts_rows(columns: Columns, what: str) -> None:
    for name, column in columns.items():
        if column.dtype != object and len(column) > _FEW_ROWS and (np.diff(column) == 1).all():
            warnings.warn(
                f"{what}: column {name!r} counts the rows, which tells how they were sorted and nothing of new ones; "
                "leave it out with features=[...]",
                stacklevel=2,
            )


def _say_what_is_far(columns: Columns, what: str) -> None:
    names = [name for name, column in columns.items() if hides_most(column[:, None])[0]]
    if names:
        warnings.warn(
            f"{what}: a few numbers of {names} are so far from the others that these are nearly equal once the column "
            "is standardised; take logarithms, or correct what is wrong",
            stacklevel=2,
        )


def _say_missing(columns: Columns, what: str) -> None:
    counts = {name: int(_is_missing(column).sum()) for name, column in columns.items()}
    missing = [f"{count:,} of {name!r}" for name, count in counts.items() if count]
    if missing:
        warnings.warn(
            f"{what}: {', '.join(missing)} are missing: numbers become the mean, words a category of their own",
            stacklevel=2,
        )


def _is_missing(column: np.ndarray) -> np.ndarray:
    return np.array([value is None for value in column]) if column.dtype == object else np.isnan(column)
