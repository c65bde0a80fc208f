"""Checkpoints that torch's distributed checkpointing (DCP, FSDP) cut into pieces: `.metadata` and `__0_0.distcp`.

`.metadata` is a pickle. It is read by an unpickler that knows nothing but the classes that it is made of, so that it
runs no code; the pieces are read with `weights_only=True`. One process puts the tensors together.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, Metadata
from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata

from zoo.checkpoints.tensors import METADATA, CheckpointError, StateDict

_MODEL_KEYS: Final = ("state_dict", "model_state_dict", "model", "app")
_CLASSES: Final = {
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},  # of Python 3.13
    "collections": {"OrderedDict"},
}


def read_distributed(folder: Path, state_key: str | None = None) -> StateDict:
    """The state dict of a sharded checkpoint, put together on the CPU.

    Args:
        folder: with `.metadata`.
        state_key: name under which the state dict was saved; by default `state_dict`, `model_state_dict`, `model` or
            `app`, or all tensors that were saved without such a name.

    Raises:
        CheckpointError: if a file is damaged, missing or outside the folder, would run code, or there is no state dict.
    """
    reader = _Reader(folder)
    metadata = reader.read_metadata()
    paths = {name: _path_of(metadata, name) for name in metadata.state_dict_metadata}
    roots = dict.fromkeys(str(path[0]) for path in paths.values() if len(path) > 1)
    chosen = state_key or next((key for key in _MODEL_KEYS if key in roots), None)
    if chosen is not None and chosen not in roots:
        raise CheckpointError(f"{folder} holds no state dict under {chosen}; choose a state_key among {list(roots)}")
    wanted: dict[str, Any] = {}
    other_keys: dict[str, None] = {}
    for name, path in paths.items():
        stored = metadata.state_dict_metadata[name]
        is_model = (len(path) == 1) if chosen is None else (len(path) > 1 and path[0] == chosen)
        if is_model and isinstance(stored, TensorStorageMetadata):
            wanted[name] = torch.empty(stored.size, dtype=stored.properties.dtype)
        elif isinstance(stored, TensorStorageMetadata) or is_model:
            other_keys[str(path[0])] = None
    if not wanted:
        raise CheckpointError(f"{folder} holds no state dict; choose a state_key among {list(roots)}")
    try:
        with warnings.catch_warnings(action="ignore"):  # that it is one process, which it is
            dcp.load(wanted, storage_reader=reader, no_dist=True)
    except CheckpointException as error:  # which is no Exception
        (cause, _), *_ = error.failures.values()
        raise CheckpointError(f"cannot read {folder}: {str(cause).partition(chr(10))[0] or cause!r}") from error
    return StateDict({_own_name(paths[name], chosen): value for name, value in wanted.items()}, tuple(other_keys))


class _Reader(FileSystemReader):
    """Reads `.metadata` without running code, and pieces within the folder alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            with (self._folder / METADATA).open("rb") as file:
                metadata = _Unpickler(file).load()
            places = {Path(info.relative_path) for info in metadata.storage_data.values()}
        except (OSError, EOFError, AttributeError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"cannot read {self._folder / METADATA}: {error}") from error
        if outside := [place for place in places if place.name != str(place)]:
            raise CheckpointError(f"{self._folder / METADATA} names files outside its folder: {outside[:3]}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, so loading it could run code, and it is refused")
        return super().find_class(module, name)


def _path_of(metadata: Metadata, name: str) -> tuple:
    """Keys of the nested mapping that a tensor was saved in."""
    return tuple((metadata.planner_data or {}).get(name, (name,)))


def _own_name(path: tuple, root: str | None) -> str:
    return ".".join(map(str, path if root is None else path[1:]))
