"""Files that are either whole or absent, whatever happens to the process or the machine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from typing_extensions import Buffer


def write_file(path: Path, parts: Iterable[Buffer]) -> None:
    """Create or replace a file; once this returns, a power cut does not lose it.

    A crash on the way leaves what was there before, and perhaps a hidden partial file (see `remove_partials`).

    Args:
        path: its missing parents are created.
        parts: contents, written one after the other, so a generator bounds the memory.

    Raises:
        OSError: if the file system refuses; the partial file is then gone and the old content is intact.
    """
    make_directory(path.parent)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        with open(partial, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file if it is there, durably."""
    if path.exists():
        path.unlink()
        sync_directory(path.parent)


def remove_partials(path: Path) -> None:
    """Remove what killed writers of `path` left behind; only for a caller that is its sole writer."""
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        partial.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Create a folder and its missing parents, durably."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the creation, renaming and removal of files in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
