"""Folders of images, a subfolder a class.

Legend: n images, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.lazy import needs
from zoo.tasks.files.examples import (
    Splits,
    allocate,
    complete_splits,
    row_places,
    split_examples,
    split_folders,
    subfolders,
)

if TYPE_CHECKING:
    from PIL.Image import Image


def read_image_folder(path: str | Path, size: int | None, grayscale: bool) -> tuple[Splits, int]:
    """Images (n, C, height, width) in [0, 1] with their classes, and the number of classes.

    Laid out as PATH/CLASS/*.png, split by a hash of the pixels, or as PATH/train/CLASS/*.png with val and test beside
    train. Classes are numbered in the order of their names.

    Args:
        path: the folder.
        size: height and width, to which images are scaled and cropped around their middle; None if all are of one size.
        grayscale: one channel in place of red, green and blue.

    Raises:
        FileNotFoundError: if there is no such folder.
        ImportError: without pillow.
        ValueError: for a class without images, an image that cannot be read, and sizes that differ.
    """
    folder = Path(path)
    files, labels, declared, classes = _listed(folder)
    pixels = decode(files, size, grayscale, [str(file) for file in files])
    split = complete_splits(declared, row_places(pixels), str(folder))
    return split_examples(pixels, np.array(labels), split, classes, str(folder)), len(classes)


def decode(images: Sequence[Path | Image], size: int | None, grayscale: bool, names: Sequence[str]) -> np.ndarray:
    """Pixels (n, C, height, width) of bytes, of image files or pillow's images.

    Raises:
        ImportError: without pillow.
        ValueError: for what cannot be read, and sizes that differ.
    """
    with needs("images are read by pillow", "pillow"):
        from PIL import Image as pillow
        from PIL import ImageOps
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"image_size must be a number of pixels, got {size!r}")
    mode, channels = ("L", 1) if grayscale else ("RGB", 3)

    def pixels(image: Path | Image) -> np.ndarray | Exception:
        """(height, width, C), or what went wrong."""
        try:
            with nullcontext(image) if isinstance(image, pillow.Image) else pillow.open(image) as opened:
                if opened.mode.startswith(("I", "F")):
                    return ValueError(f"its pixels are of mode {opened.mode}, not of one byte; scale them to 0 ... 255")
                upright = ImageOps.exif_transpose(opened).convert(mode)
                fitted = upright if size is None else ImageOps.fit(upright, (size, size), pillow.Resampling.BILINEAR)
                return np.asarray(fitted).reshape(fitted.height, fitted.width, channels)
        except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:  # as pillow's readers raise
            return error

    bad, values = [], None
    with ThreadPoolExecutor() as pool:
        for i, array in enumerate(pool.map(pixels, images)):
            if isinstance(array, Exception):
                bad.append(f"{names[i]} ({str(array).partition(chr(10))[0]})")
                continue
            if values is None:
                values = allocate((len(images), channels, *array.shape[:2]), np.uint8)
            if array.shape[:2] != values.shape[2:]:
                raise ValueError(
                    f"images must be of one size, got {values.shape[2:]} and, for {names[i]}, {array.shape[:2]}; give "
                    "image_size, to which all are scaled"
                )
            values[i] = array.transpose(2, 0, 1)
    if bad or values is None:
        raise ValueError(
            f"{len(bad):,} of {len(images):,} images cannot be read, first {bad[:1]}; repair or remove them"
        )
    return values


def _listed(folder: Path) -> tuple[list[Path], list[int], list[int], list[str]]:
    """Image files, the class and the declared split of each, and names of the classes."""
    found = [(split, entry) for split, part in split_folders(folder) for entry in subfolders(part)]
    classes = sorted({entry.name for _, entry in found})
    if len(classes) < 2:
        raise ValueError(f"{folder}: expected a subfolder for each of two classes or more, got {classes}")
    with needs("images are read by pillow", "pillow"):
        from PIL import Image as pillow
    suffixes = pillow.registered_extensions()
    files, labels, declared, ignored = [], [], [], []
    for split, entry in found:
        inside = sorted(file for file in entry.rglob("*") if file.is_file() and not file.name.startswith("."))
        images = [file for file in inside if file.suffix.lower() in suffixes]
        ignored += sorted(set(inside) - set(images))
        if not images:
            raise ValueError(f"class folder {entry} has no images; fill or remove it")
        files += images
        labels += [classes.index(entry.name)] * len(images)
        declared += [split] * len(images)
    if ignored:
        warnings.warn(
            f"{folder}: {len(ignored):,} files are no images and are left out, first {ignored[0]}", stacklevel=2
        )
    return files, labels, declared, classes
