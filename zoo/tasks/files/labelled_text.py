"""Windows of text with the class that they come from, a subfolder a class: as bytes, or as tokens of a tokenizer.

Legend: n windows, L symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.tasks.files.examples import SPLIT_NAMES, Splits, complete_splits, places, subfolders
from zoo.tasks.files.text import read_text, text_files


def read_labelled_text(
    folder: Path,
    classes: Sequence[str] | None = None,
    *,
    context: int,
    pattern: str,
    max_windows: int,
    tokenizer: Path | None = None,
) -> tuple[Splits, int]:
    """Windows (n, L) with their classes (n,), and the number of classes.

    Every file is a document, of one split by a hash of its content.

    Args:
        folder: whose subfolders are the classes.
        classes: names of those that are taken; None for all.
        context: L; the special tokens of a tokenizer, as at both ends of a window of BERT's, are among them.
        pattern: of the names of files that are read.
        max_windows: of each class for training, evenly spaced in its text; a quarter of that for val and for test.
        tokenizer: a tokenizer.json, or a GGUF file that holds one; None for bytes.

    Raises:
        FileNotFoundError: if there is no such folder.
        ImportError: without `tokenizers` where one is asked for.
        ValueError: for fewer than two classes, and a class whose text is shorter than a window in some split.
    """
    names = list(classes) if classes is not None else [entry.name for entry in subfolders(folder)]
    if isinstance(classes, str) or len(set(names)) < len(names):
        raise ValueError(f"{folder}: classes must be names of different subfolders, got {classes!r}")
    if len(names) < 2:
        raise ValueError(f"{folder}: expected two classes or more, each a subfolder, got {names}")
    if missing := [name for name in names if not (folder / name).is_dir()]:
        raise FileNotFoundError(f"{folder} has no folder {missing[0]!r}; it has {[e.name for e in subfolders(folder)]}")
    found = [(label, file) for label, name in enumerate(names) for file in text_files(folder / name, pattern)]
    documents = [read_text(file) for _, file in found]
    sides = complete_splits(np.zeros(len(found), np.int64), places(documents), str(folder))
    windows = _windows(documents, context, tokenizer)
    splits: Splits = []
    for side, split in enumerate(SPLIT_NAMES):
        inputs, labels = [], []
        for label, name in enumerate(names):
            chosen = [windows[i] for i, (of, _) in enumerate(found) if of == label and sides[i] == side]
            every = np.concatenate(chosen) if chosen else np.zeros((0, context), np.int64)
            if not len(every):
                raise ValueError(
                    f"{folder / name}: no window of {context} symbols for {split}; bring more documents, "
                    "lower context, or leave the class out"
                )
            count = min(len(every), max_windows if side == 0 else max(1, max_windows // 4))
            inputs.append(every[np.linspace(0, len(every) - 1, count).astype(np.int64)])
            labels.append(np.full(count, label))
        splits.append((np.concatenate(inputs), np.concatenate(labels)))
    return splits, len(names)


def _windows(documents: Sequence[bytes], context: int, tokenizer: Path | None) -> list[np.ndarray]:
    """Windows (n, L) of each document, one after another; what is left at its end belongs to none."""
    if tokenizer is None:
        whole = [np.frombuffer(text, np.uint8).astype(np.int64) for text in documents]
        return [symbols[: len(symbols) // context * context].reshape(-1, context) for symbols in whole]
    codec = _codec(tokenizer)
    codec.no_padding()
    codec.enable_truncation(context)
    encodings = codec.encode_batch([text.decode("utf-8", "replace") for text in documents])
    windows = [[one.ids for one in (first, *first.overflowing) if len(one.ids) == context] for first in encodings]
    return [np.array(ids, np.int64).reshape(-1, context) for ids in windows]


def _codec(file: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file."""
    try:
        if file.suffix == ".gguf":
            from transformers import AutoTokenizer

            whole: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
            return whole.backend_tokenizer
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(f"tokens need the extra `adapters` (and gguf for GGUF files): {error}") from error
    return Tokenizer.from_file(str(file))
