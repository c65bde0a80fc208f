"""Families by name, from JSON-able options."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from zoo.tasks.dataset import Dataset
from zoo.tasks.datasets import get_dataset
from zoo.tasks.families.family import Family
from zoo.tasks.families.label_subsets import LabelSubsets
from zoo.tasks.families.tabular_prior import TabularPrior
from zoo.tasks.families.text_domains import TextDomains
from zoo.tasks.families.warped_images import WarpedImages
from zoo.tasks.files.python_source import BYTE_VOCABULARY, source_files, source_root
from zoo.tasks.files.text import BYTES, read_text, text_files


def label_subsets(base: str | Mapping[str, object], masks: Sequence[int] | None = None) -> LabelSubsets:
    """Is the example in this subset of the classes? See `zoo.tasks.families.label_subsets`.

    Args:
        base: a data set with classes: its name, or its name and options, such as {"name": "image_folder", "path": ...}.
        masks: of the subsets; None for all.
    """
    return LabelSubsets(_base(base), masks)


def digits_subset(masks: Sequence[int] | None = None) -> LabelSubsets:
    """The 1,022 label subsets of the digits, or those of some masks."""
    return LabelSubsets(get_dataset("digits"), masks)


def warped_images(
    base: str | Mapping[str, object] = "mnist5k",
    image_size: int | None = None,
    strength: float = 1.0,
    seed: int = 0,
    num_members: int | None = None,
    *,
    pooled: bool = False,
) -> WarpedImages:
    """Images of a data set, warped by each member in its own way; see `zoo.tasks.families.warped_images`.

    Args:
        base: a data set of images, as for `label_subsets`.
        image_size: height and width to which they are brought; None to leave them.
        strength: from 0, every member the base itself, to 1.
        seed: of the warps.
        num_members: how many there are; None for one a run.
        pooled: every member is all images, each in a warp of its own.
    """
    return WarpedImages(_base(base), image_size, strength, seed, num_members, pooled=pooled)


def text_domains(
    path: str | None = None,
    *,
    context: int = 64,
    num_windows: int | None = None,
    pooled: bool = False,
    min_bytes: int = 8192,
    split_fractions: Mapping[str, float] | None = None,
    pattern: str = "*",
) -> TextDomains:
    """The next byte of one domain's text; see `zoo.tasks.families.text_domains`.

    Args:
        path: folder whose subfolders and files are the domains; None for the modules and packages of the interpreter's
            standard library, in 128 symbols.
        context, num_windows, pooled, min_bytes, split_fractions: as for TextDomains.
        pattern: of the names of files that are read.
    """
    root = source_root() if path is None else Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder at {root}")
    files = sorted(file for _, file in source_files()) if path is None else text_files(root, pattern)
    documents: dict[str, list[bytes]] = {}
    seen: set[bytes] = set()
    for file in files:
        text = read_text(file)
        digest = hashlib.sha256(text).digest()
        if digest not in seen:  # a copy would put the same text into two domains
            seen.add(digest)
            documents.setdefault(file.relative_to(root).parts[0].removesuffix(".py"), []).append(text)
    texts = {name: b"".join(parts) for name, parts in documents.items()}
    if path is None:  # whose small modules nobody misses
        texts = {name: text for name, text in texts.items() if len(text) >= min_bytes}
    return TextDomains(
        texts,
        context=context,
        num_windows=num_windows,
        vocabulary=BYTE_VOCABULARY if path is None else BYTES,
        pooled=pooled,
        min_bytes=min_bytes,
        split_fractions=split_fractions,
        name="text_domains" if path is None else str(path),
    )


FAMILIES: Final[Mapping[str, Callable[..., Family]]] = {
    "digits_subset": digits_subset,
    "label_subsets": label_subsets,
    "warped_images": warped_images,
    "text_domains": text_domains,
    "tabular_prior": TabularPrior,
}


def _base(base: str | Mapping[str, object]) -> Dataset:
    options = {"name": base} if isinstance(base, str) else dict(base)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"base must be the name of a data set, or its name and options, got {base!r}")
    return get_dataset(name, **options)
