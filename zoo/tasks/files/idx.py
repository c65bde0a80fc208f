"""IDX files, the format of MNIST: folders with images and labels for training and test, plain or compressed.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", file format section.

Legend: n examples.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Final

import numpy as np

from zoo.tasks.files.examples import Splits, allocate, complete_splits, row_places, split_examples

_UNSIGNED_BYTES: Final = 8  # the type that files of MNIST's kind have
_PARTS: Final = ("train-images", "train-labels", "t10k-images", "t10k-labels")


def read_idx_folder(path: str | Path) -> tuple[Splits, int]:
    """Images (n, 1, height, width) in [0, 1] with their classes, and the number of classes.

    The test split is that of the files (`t10k-...`); the validation split is 15% of their training images, by hash.
    Classes are numbered in the order of the labels.

    Raises:
        FileNotFoundError: if the folder or one of its four files is missing.
        ValueError: if a file is damaged, or images and labels do not belong together.
    """
    folder = Path(path)
    found = {part: _one_file(folder, part) for part in _PARTS}
    arrays = {part: read_idx(file) for part, file in found.items()}
    for part in ("train", "t10k"):
        images, labels = arrays[f"{part}-images"], arrays[f"{part}-labels"]
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise ValueError(
                f"{folder}: expected {part} images (n, height, width) and as many labels (n,), got shapes "
                f"{images.shape} and {labels.shape}"
            )
    shapes = [arrays[f"{part}-images"].shape[1:] for part in ("train", "t10k")]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{folder}: expected images of one size, got {shapes[0]} for training and {shapes[1]} for test"
        )
    num_train = len(arrays["train-images"])
    images = allocate((num_train + len(arrays["t10k-images"]), 1, *shapes[0]), np.uint8)
    images[:num_train, 0], images[num_train:, 0] = arrays["train-images"], arrays["t10k-images"]
    labels = np.concatenate([arrays["train-labels"], arrays["t10k-labels"]])
    classes, targets = np.unique(labels, return_inverse=True)
    declared = np.where(np.arange(len(images)) < num_train, 0, 2)
    split = complete_splits(declared, row_places(images), str(folder))
    return split_examples(images, targets, split, classes.tolist(), str(folder)), len(classes)


def read_idx(file: Path) -> np.ndarray:
    """The array of one IDX file of unsigned bytes; of a plain file it is mapped, not read.

    Raises:
        ValueError: if it is no such file, or shorter than it says.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            zeros, kind, num_dims = stream.read(2), stream.read(1), stream.read(1)
            if zeros != b"\0\0" or kind != bytes([_UNSIGNED_BYTES]) or num_dims == b"\0":
                raise ValueError("it does not begin as an IDX file of unsigned bytes does")
            dims = np.frombuffer(stream.read(4 * num_dims[0]), ">u4")
            if len(dims) < num_dims[0]:
                raise ValueError("it ends within its header")
            shape = tuple(dims.tolist())
            if file.suffix != ".gz" and file.stat().st_size == stream.tell() + int(np.prod(shape, dtype=np.int64)):
                return np.memmap(file, np.uint8, "r", stream.tell(), shape)
            values = allocate(shape, np.uint8)
            if stream.readinto(values.reshape(-1).data) < values.nbytes or stream.read(1):
                raise ValueError(f"it should hold {values.nbytes:,} bytes of shape {shape}, and holds fewer or more")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    return values


def _one_file(folder: Path, part: str) -> Path:
    """The file of that part, named as MNIST's, EMNIST's and their copies are."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of IDX files at {folder}")
    compressed, plain = (sorted(folder.glob(f"*{part}?idx?-ubyte{suffix}")) for suffix in (".gz", ""))
    files = {file.name.removesuffix(".gz"): file for file in (*compressed, *plain)}
    if not files:
        raise FileNotFoundError(f"{folder} has no file {part}-idx...-ubyte or {part}-idx...-ubyte.gz")
    if len(files) > 1:
        raise ValueError(f"{folder} has several files {part}: {sorted(files)}; keep one data set in a folder")
    return next(iter(files.values()))
