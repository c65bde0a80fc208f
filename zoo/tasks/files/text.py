"""Text as bytes: documents, each in one split, cut into windows.

Legend: n windows, L symbols of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from zoo.tasks.files.examples import SPLIT_NAMES, Splits, allocate, complete_splits, places, split_folders

BYTES: Final = 256


def read_text_folder(path: str | Path, context: int, pattern: str) -> Splits:
    """Windows (n, L) of bytes, and the same shifted by one.

    Every file below the folder is a document, of one split by a hash of its content, or by the folder train, val or
    test in which it lies.

    Raises:
        FileNotFoundError: if there is no such folder, or no such file in it.
        ValueError: for files that are not text, and splits shorter than one window.
    """
    folder = Path(path)
    found = [(split, file) for split, part in split_folders(folder) for file in text_files(part, pattern)]
    if not found:
        raise FileNotFoundError(f"{folder} has no files that match {pattern!r}")
    documents = [read_text(file) for _, file in found]
    return document_windows(documents, [split for split, _ in found], context, str(folder))


def text_files(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder that match a pattern, without hidden ones, by name."""
    found = (file for file in folder.rglob(pattern) if file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def read_text(file: Path) -> bytes:
    """A file's bytes; ValueError if they are not text."""
    document = file.read_bytes()
    if b"\0" in document:
        raise ValueError(f"{file} is not text, it holds zeros; give a pattern such as '*.txt' that leaves it out")
    return document


def document_windows(documents: Sequence[bytes], declared: Sequence[int], context: int, what: str) -> Splits:
    """Windows (n, L) of documents, and the same shifted by one; each document is of one split.

    Args:
        documents: bytes of each.
        declared: split of each as the data say it, see `complete_splits`.
        context: L.
        what: the data, for messages.

    Raises:
        ValueError: if the text of a split is shorter than one window.
    """
    if not isinstance(context, int) or context < 1:
        raise ValueError(f"context must be a number of bytes, got {context!r}")
    split = complete_splits(declared, places(documents), what)
    by_digest = sorted(range(len(documents)), key=lambda i: hashlib.sha256(documents[i]).digest())
    windows = []
    for side, name in enumerate(SPLIT_NAMES):
        text = b"".join(documents[i] for i in by_digest if split[i] == side)
        if len(text) < context + 1:
            raise ValueError(
                f"{what}: the {name} split has {len(text):,} bytes in {int((split == side).sum()):,} documents, fewer "
                f"than one window of {context} + 1; bring more text, or lower context"
            )
        windows.append(byte_windows(text, context, BYTES))
    return windows


def byte_windows(text: bytes, context: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows (n, L) of symbols one after another, and the same shifted by one; two views of one array.

    Args:
        text: at least L + 1 bytes.
        context: L.
        vocabulary: number of symbols; bytes from there on become the last.
    """
    symbols = allocate((len(text),), np.int64)
    np.minimum(np.frombuffer(text, np.uint8), vocabulary - 1, out=symbols, casting="unsafe")
    length = (len(symbols) - 1) // context * context
    return symbols[:length].reshape(-1, context), symbols[1 : length + 1].reshape(-1, context)
