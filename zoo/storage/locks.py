"""Exclusive locks on the blocks of a zoo, held by living processes only.

A lock is a file BLOCK.GENERATION made by exclusive creation, which every file system does for one process alone.
The highest generation counts. Its holder touches the file while it works; a lock not touched for the time of
expiry, released, or of a process that is known to be gone is stale, and whoever creates the next generation first
has the block. Locks are never replaced or renamed, so no two processes can both take over a stale one.

A process that was stopped for longer than the expiry may wake up while another works on its block. That is harmless:
both write the same numbers, every file is replaced whole, and the late one notices before it commits.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from zoo.storage.durable import make_directory

DEFAULT_EXPIRY: Final = 120.0
_BEATS_PER_EXPIRY: Final = 6


class LockLostError(RuntimeError):
    """The lock expired and another process took the block over."""


class BlockLock:
    """The right of this process to write a block, as a context that ends it.

    Args:
        path: of the file that this process has just created.
        expiry: seconds after which others regard an untouched lock as stale.
    """

    def __init__(self, path: Path, expiry: float) -> None:
        self.path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(expiry / _BEATS_PER_EXPIRY,), daemon=True)
        self._thread.start()

    def __enter__(self) -> BlockLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def require_held(self) -> None:
        """Raise LockLostError if another process has taken the block over."""
        block, generation = _parse(self.path)
        if not self.path.exists() or max(_generations(self.path.parent, block), default=-1) != generation:
            raise LockLostError(f"another builder took over block {block} while this one stood still; its work stands")

    def release(self) -> None:
        """Let others lock the block at once; harmless when done before."""
        self._stop.set()
        self._thread.join()
        with suppress(OSError):  # without a disk to write to, or removed by another: then the lock expires
            os.utime(self.path, (0, 0))

    def _beat(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            with suppress(OSError):  # a disk that fails for a moment; if it lasts, the lock expires
                os.utime(self.path)


def try_lock(folder: Path, block: int, expiry: float = DEFAULT_EXPIRY) -> BlockLock | None:
    """The lock of a block, or None while another living process has it.

    Args:
        folder: where locks are kept.
        block: to lock.
        expiry: seconds; clocks of the machines that share the folder must agree to much less.

    Raises:
        OSError: if the folder cannot be written.
    """
    make_directory(folder)
    newest = max(_generations(folder, block), default=-1)
    if newest >= 0 and not _is_stale(_path(folder, block, newest), expiry):
        return None
    path = _path(folder, block, newest + 1)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None
    with open(descriptor, "w") as file:
        json.dump({"host": _host_identity(), "pid": os.getpid(), "time": time.time()}, file)
    return BlockLock(path, expiry)


def remove_locks(folder: Path, block: int) -> None:
    """Remove all locks on a block, which must be committed: they have done their duty."""
    for generation in sorted(_generations(folder, block)):
        _path(folder, block, generation).unlink(missing_ok=True)


def _host_identity() -> str:
    """Name of the machine, boot and process namespace in which this process's id has a meaning."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        parts.append("no-proc")
    return "/".join(parts)


def _is_stale(path: Path, expiry: float) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
        text = path.read_text()
    except FileNotFoundError:
        return True
    if age > expiry:
        return True
    try:
        owner = json.loads(text)
        return owner["host"] == _host_identity() and not _is_alive(owner["pid"])
    except (ValueError, KeyError, TypeError):
        return False  # its creator is still writing it, or died before it could: then it expires


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has died and only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def _path(folder: Path, block: int, generation: int) -> Path:
    return folder / f"{block}.{generation}"


def _parse(path: Path) -> tuple[int, int]:
    block, generation = path.name.split(".")
    return int(block), int(generation)


def _generations(folder: Path, block: int) -> list[int]:
    return [_parse(path)[1] for path in folder.glob(f"{block}.*")]
