"""Files that are either whole or absent, whatever happens to the process or the machine."""

from __future__ import annotations

import io
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from typing_extensions import Buffer

# Pages that are written together stay together in the page cache, so that later page faults map many at once.
_WRITE_NBYTES: Final = 2**22


def write_file(path: Path, parts: Iterable[Buffer]) -> None:
    """Create or replace one file; see `write_files`."""
    write_files({path: parts})


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Create or replace a file that `torch.load` reads; see `write_files`."""
    content = io.BytesIO()
    torch.save(state, content)
    write_file(path, [content.getbuffer()])


def write_files(files: Mapping[Path, Iterable[Buffer]]) -> None:
    """Create or replace files; once this returns, a power cut does not lose them.

    A crash on the way leaves of each file what was there before or the new content, and perhaps hidden partial files
    (see `remove_partials`). All are written before the first is synchronised, because a file system's journal then
    commits them together: several times faster than one after the other.

    Args:
        files: contents by path, each in parts, so that a generator bounds the memory. Missing parents are created.

    Raises:
        OSError: if the file system refuses; partial files are then gone.
    """
    partials: dict[Path, Path] = {}
    changed = set()
    try:
        for path, parts in files.items():
            changed |= {path.parent, *_make_parents(path)}
            partials[path] = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
            with open(partials[path], "xb", buffering=_WRITE_NBYTES) as file:
                for part in parts:
                    file.write(part)
        for partial in partials.values():
            _sync(partial)
        for path, partial in partials.items():
            os.replace(partial, path)
    except BaseException:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise
    for folder in changed:
        _sync(folder)


def remove_file(path: Path) -> None:
    """Remove a file if it is there, durably."""
    if path.exists():
        path.unlink()
        _sync(path.parent)


def remove_partials(path: Path) -> None:
    """Remove what killed writers of `path` left behind; only for a caller that is its sole writer."""
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        partial.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Create a folder and its missing parents, durably."""
    for folder in _make_parents(path / "any"):
        _sync(folder)


def rename_directory(source: Path, target: Path) -> None:
    """Rename a folder, durably; the target may be an empty folder.

    Raises:
        OSError: ENOTEMPTY or EEXIST if the target holds something.
    """
    os.rename(source, target)
    _sync(target.parent)


def is_free(path: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of a free path at the end, or vanishes if that is not reached."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        yield staged
        rename_directory(staged, path)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _make_parents(path: Path) -> list[Path]:
    """Create the missing folders above a path; returns those that got a new entry."""
    changed = []
    missing = []
    folder = path.parent
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        changed.append(folder.parent)
    return changed


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
