"""ZooWriter: creates a zoo and fills it block by block, so that a crash at any moment loses nothing committed.

A block is committed by its chunk of runs/status, written when everything else of it is on the disk.

Legend: G runs of one block (g in the last one), S snapshots, P numbers of one network.
"""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor
from typing_extensions import Buffer

from zoo.networks.base import hash_of
from zoo.settings import Json, warn_of_other_software
from zoo.storage.base import base_chunks
from zoo.storage.durable import is_free, remove_file, remove_partials, staged_directory, write_file, write_files
from zoo.storage.locks import DEFAULT_EXPIRY, BlockLock, remove_locks, try_lock
from zoo.storage.precision import is_finite, to_stored
from zoo.storage.schema import (
    RunStatus,
    ZooFormatError,
    ZooSpec,
    array_metadata,
    attributes_checksum,
    block_name,
    fill_value,
    small_arrays,
)
from zoo.storage.shards import ShardShape, checked, portions, run_checksums, shard_key, shard_parts

_LOCKS: Final = Path("runs/status/claims")  # a name of the format


class ZooWriteError(OSError):
    """A block could not be written; what was committed before is intact."""


class ZooWriter:
    """Writes the blocks of one zoo in a local folder; any number of processes may do so at once.

    Use `create` or `open`, not the constructor.
    """

    def __init__(self, path: Path, spec: ZooSpec) -> None:
        self.path = path
        self.spec = spec
        self._shard_shape = ShardShape(spec.block_size, spec.shape[1], spec.shape[2], spec.stored_dtype)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        spec: ZooSpec,
        *,
        base: Mapping[str, Tensor] | None = None,
        defaults: Json = None,
    ) -> ZooWriter:
        """Begin a zoo, or continue the one of equal settings that is there, which may have fewer runs.

        Runs are added by more blocks. If the last block was not full, it becomes pending and must be written again.

        Args:
            path: a folder that does not exist, is empty, or holds this very zoo.
            spec: its settings.
            base: the tensors by name that all networks share, if the layout has a base. Those of a zoo that is there
                are repaired.
            defaults: what settings have that the zoo's attributes or `spec` leave out.

        Raises:
            FileExistsError: if the path holds something that is no zoo.
            SettingsMismatchError: if it holds a zoo with other settings; the message names them.
            ZooFormatError: if it holds a damaged zoo.
            ZooWriteError: if it cannot be written.
        """
        path, base = Path(path).absolute(), base or {}
        if hash_of(base) != spec.base_hash:
            raise ValueError(f"the base must have the hash {spec.base_hash!r}, got {hash_of(base)!r}")
        if not is_free(path):
            writer = cls.open(path)
            wanted = replace(writer.spec, num_runs=max(writer.spec.num_runs, spec.num_runs))
            wanted.require_same(spec, f"the zoo {path}", defaults=defaults)
            warn_of_other_software(writer.spec.software, spec.software, f"the zoo {path}")
            writer._repair_base(base)
            return writer if wanted == writer.spec else writer._extended(wanted)
        try:
            files: dict[str, Iterable[Buffer]] = {name: [content] for name, content in array_metadata(spec).items()}
            files |= {name: (part.data for part in parts) for name, parts in base_chunks(spec.layout, base).items()}
            with staged_directory(path) as staged:
                write_files({staged / name: parts for name, parts in files.items()})
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and path.is_dir():  # another builder was faster
                return cls.create(path, spec, base=base, defaults=defaults)
            raise ZooWriteError(error.errno, f"cannot create a zoo at {path}: {error.strerror}") from error
        return cls(path, spec)

    @classmethod
    def open(cls, path: str | os.PathLike) -> ZooWriter:
        """Continue a zoo; missing or damaged metadata of its arrays is rewritten.

        Raises:
            FileNotFoundError: if there is nothing.
            FileExistsError: if the path holds something that is no zoo.
            ZooFormatError: if its attributes are damaged or of a newer version.
        """
        path = Path(path).absolute()
        spec = ZooSpec.from_attributes(read_attributes(path))
        for name, content in array_metadata(spec).items():
            file = path / name
            if name != "zarr.json" and not (file.exists() and file.read_bytes() == content):
                write_file(file, [content])
        return cls(path, spec)

    @property
    def num_blocks(self) -> int:
        return self.spec.num_blocks

    def block_runs(self, block: int) -> range:
        """Runs of a block; IndexError for one that the zoo does not have."""
        return self.spec.block_runs(block)

    def pending_blocks(self) -> list[int]:
        """Blocks that are not committed."""
        return [block for block in range(self.num_blocks) if not self.is_committed(block)]

    def is_committed(self, block: int) -> bool:
        """Whether all of a block was written; a marker that is damaged does not count."""
        expected = self.spec.block_size
        try:
            content = (self.path / "runs/status/c" / str(block)).read_bytes()
        except FileNotFoundError:
            return False
        status = np.frombuffer(content[:expected], np.uint8)
        return content == b"".join(part.tobytes() for part in checked(status)) and bool(
            status[: len(self.block_runs(block))].all()
        )

    def lock(self, block: int, *, expiry: float = DEFAULT_EXPIRY) -> BlockLock | None:
        """Exclusive right to write a block, or None if it is committed or another living process has it.

        Use it as a context: `with lock: ... writer.write_block(...)`.

        Args:
            block: to lock.
            expiry: seconds after which the lock of a process that has vanished, on another machine, is void.

        Raises:
            ZooWriteError: if the zoo cannot be written.
        """
        self.block_runs(block)
        if self.is_committed(block):
            return None
        try:
            lock = try_lock(self.path / _LOCKS, block, expiry)
        except OSError as error:
            raise self._write_error(block, error) from error
        if lock is not None and self.is_committed(block):  # by whom had the lock until a moment ago
            lock.release()
            remove_locks(self.path / _LOCKS, block)
            return None
        return lock

    def discard_block(self, block: int) -> None:
        """Make a block pending again, because it is damaged; its numbers stay until they are replaced."""
        self.block_runs(block)
        remove_file(self.path / "runs/status/c" / str(block))

    def write_block(  # noqa: PLR0917
        self,
        block: int,
        params: np.ndarray,
        inner_step: np.ndarray,
        metrics: Mapping[str, np.ndarray],
        runs: Mapping[str, np.ndarray],
        status: np.ndarray,
        *,
        lock: BlockLock | None = None,
    ) -> None:
        """Write and commit all of a block.

        Args:
            block: which one.
            params: (g, S, P) float32.
            inner_step: (g, S) integers; -1 marks snapshots that a run does not have, whose parameters are not kept.
            metrics: the zoo's metrics, each (g, S).
            runs: seed and the zoo's columns, each (g,).
            status: (g,) of RunStatus, none EMPTY; only DIVERGED runs may have numbers that are not finite.
            lock: if given, it must still be held when the block is committed.

        Raises:
            ValueError: for arrays that do not fit, names that are missing or unknown, or numbers that are not finite.
            ZooWriteError: if the disk is full or read-only; nothing committed is lost, and the block stays pending.
            LockLostError: if another process took the block over.
        """
        arrays = self._checked_block(block, inner_step, metrics, runs, status)
        present = arrays["inner_step"] >= 0
        stored = self._checked_params(block, params, present, arrays["runs/status"])
        arrays["runs/checksum"] = run_checksums(stored, present, [v for k, v in arrays.items() if k != "runs/checksum"])
        marker = arrays.pop("runs/status")
        try:
            remove_file(self._file("runs/status", block))
            shard = self.path / "params" / shard_key(block)
            chunks = {self._file(name, block): checked(self._padded(values)) for name, values in arrays.items()}
            self._write({shard: shard_parts(stored, present, self._shard_shape), **chunks})
            if lock is not None:
                lock.require_held()
            self._write({self._file("runs/status", block): checked(self._padded(marker))})
            remove_locks(self.path / _LOCKS, block)
        except OSError as error:
            raise self._write_error(block, error) from error

    def _repair_base(self, base: Mapping[str, Tensor]) -> None:
        """Write the arrays of the base again that are missing or damaged."""
        for name, parts in base_chunks(self.spec.layout, base).items():
            file, content = self.path / name, [part.data for part in parts]
            if not file.exists() or file.read_bytes() != b"".join(content):
                write_file(file, content)

    def _extended(self, spec: ZooSpec) -> ZooWriter:
        """The same zoo with room for more runs."""
        last = self.num_blocks - 1
        if self.spec.num_runs % spec.block_size and self.is_committed(last):
            warnings.warn(
                f"{block_name(self.spec, last)} of the zoo {self.path} was not full: its runs are computed again, "
                "together with the first of those that are added",
                stacklevel=4,
            )
            self.discard_block(last)
        file = self.path / "zarr.json"
        content = json.loads(file.read_bytes())
        content["attributes"] |= spec.to_attributes()  # and those that users added stay
        try:
            write_file(file, [json.dumps(content, indent=2).encode()])
            return ZooWriter.open(self.path)  # which writes the metadata of arrays by the attributes
        except OSError as error:
            raise ZooWriteError(error.errno, f"cannot extend the zoo {self.path}: {error.strerror}") from error

    def _checked_block(
        self,
        block: int,
        inner_step: np.ndarray,
        metrics: Mapping[str, np.ndarray],
        runs: Mapping[str, np.ndarray],
        status: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """All small arrays of a block in the order of the schema, in their stored dtypes."""
        spec = self.spec
        given = {"inner_step": inner_step, "runs/status": status}
        given |= {f"metrics/{name}": values for name, values in metrics.items()}
        given |= {f"runs/{name}": values for name, values in runs.items()}
        expected = small_arrays(spec)
        del expected["runs/checksum"]
        if given.keys() != expected.keys():
            missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
            raise ValueError(f"block {block}: missing arrays {missing}, unknown arrays {unknown}")
        size = len(self.block_runs(block))
        result = {}
        for name, dtype in expected.items():
            shape = (size,) if name.startswith("runs/") else (size, spec.shape[1])
            values = np.asarray(given[name])
            if values.shape != shape:
                raise ValueError(f"block {block}: {name} must have shape {shape}, got {values.shape}")
            if np.dtype(dtype).kind in "iu" and values.dtype.kind not in "iub":
                raise ValueError(f"block {block}: {name} must hold integers, got {values.dtype}")
            result[name] = values.astype(np.dtype(dtype).newbyteorder("<"))
        if not np.isin(result["runs/status"], [s for s in RunStatus if s]).all():
            raise ValueError(f"block {block}: status must be 1 complete, 2 diverged or 3 imported, got {status}")
        return result

    def _checked_params(self, block: int, params: np.ndarray, present: np.ndarray, status: np.ndarray) -> np.ndarray:
        """(g, S, P) in the stored dtype, after a look at shape and finiteness."""
        spec = self.spec
        shape = (len(present), *spec.shape[1:])
        if params.shape != shape:
            raise ValueError(f"block {block}: params must have shape {shape} (runs, snapshots, P), got {params.shape}")
        stored = to_stored(params, spec.dtype)
        for local in np.flatnonzero(status != RunStatus.DIVERGED):
            some_at_once = list(portions(present[local], 4 * params.shape[2]))
            if not all(is_finite(stored[local][some], spec.dtype).all() for some in some_at_once):
                overflow = all(np.isfinite(params[local][some]).all() for some in some_at_once)
                cause = f"too large for {spec.dtype}" if overflow else "not finite"
                run = self.block_runs(block)[local]
                hint = "; store the zoo as float32 or bfloat16" if overflow else ""
                raise ValueError(
                    f"run {run} has parameters that are {cause}; only runs of status 2 (diverged) may{hint}"
                )
        return stored

    def _padded(self, values: np.ndarray) -> np.ndarray:
        """A whole chunk: the runs that the last block lacks are filled."""
        missing = self.spec.block_size - len(values)
        if not missing:
            return values
        filler = np.full((missing, *values.shape[1:]), fill_value(values.dtype.name), values.dtype)
        return np.concatenate([values, filler])

    def _file(self, name: str, block: int) -> Path:
        return self.path / name / "c" / (str(block) if name.startswith("runs/") else f"{block}/0")

    def _write(self, files: Mapping[Path, Iterator[np.ndarray]]) -> None:
        for file in files:
            remove_partials(file)
        write_files({file: (part.data for part in parts) for file, parts in files.items()})

    def _write_error(self, block: int, error: OSError) -> ZooWriteError:
        return ZooWriteError(
            error.errno,
            f"cannot write block {block} of the zoo {self.path}: {error.strerror or error}. "
            "Committed blocks are intact; make room or make it writable, then give the same command again",
        )


def read_attributes(path: Path) -> dict:
    """Attributes of the zoo in a local folder, known to be undamaged.

    Raises:
        FileNotFoundError: if there is nothing.
        FileExistsError: if the path holds something else.
        ZooFormatError: if they are damaged.
    """
    if is_free(path):
        raise FileNotFoundError(f"there is no zoo at {path}")
    file = path / "zarr.json"
    if not file.is_file():
        raise FileExistsError(f"{path} holds something that is no zoo (it has no zarr.json); choose another path")
    try:
        attributes = json.loads(file.read_bytes())["attributes"]
        checksum = attributes.get("checksum")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ZooFormatError(f"{file} is damaged: {error!r}; restore it from a copy") from error
    ZooSpec.from_attributes(attributes)  # names a foreign format or a newer version first
    if checksum != attributes_checksum(attributes):
        raise ZooFormatError(f"the attributes in {file} do not have their checksum: restore the file from a copy")
    return attributes
