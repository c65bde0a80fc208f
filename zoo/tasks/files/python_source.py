"""The standard library's source as text, split by file."""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from pathlib import Path
from typing import Final

from zoo.tasks.files.examples import SPLIT_NAMES, Splits
from zoo.tasks.files.text import byte_windows

BYTE_VOCABULARY: Final = 128
_SKIPPED_FOLDERS: Final = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}


def read_python_source(size: int, context: int) -> Splits:
    """Windows (n, L) of `size` bytes in all, 80% of them train; see `zoo.tasks.datasets.python_source`."""
    if context < 1 or size < 100 * (context + 1):
        raise ValueError(f"size must be at least 100 windows of context + 1 bytes, got {size=} and {context=}")
    budgets = {"train": size * 8 // 10, "val": size // 10, "test": size // 10}
    texts: dict[str, bytearray] = {name: bytearray() for name in SPLIT_NAMES}
    for digest, path in source_files():
        name = ("val", "test", *["train"] * 8)[digest[0] % 10]
        if len(texts[name]) < budgets[name]:
            texts[name] += path.read_bytes()
    return [byte_windows(bytes(texts[name][: budgets[name]]), context, BYTE_VOCABULARY) for name in SPLIT_NAMES]


def source_root() -> Path:
    """Folder of the standard library's source."""
    return Path(sysconfig.get_path("stdlib"))


@functools.cache
def source_files() -> list[tuple[bytes, Path]]:
    """Files of the standard library, without tests, in the order of a hash of their paths, which comes with them."""
    root, files = source_root(), []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if not _SKIPPED_FOLDERS.intersection(relative.parts):
            files.append((hashlib.sha256(relative.as_posix().encode()).digest(), path))
    if not files:
        raise ValueError(f"no Python source under {root}; this interpreter has no standard library on disk")
    return sorted(files)
