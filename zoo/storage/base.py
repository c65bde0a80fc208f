"""The base of a zoo: tensors that all its networks share, written once, an array each under base/.

Types that NumPy lacks, such as bfloat16, are stored as unsigned integers of their bits; the attribute `dtype` of the
array says what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import numpy as np
import torch
import zarr
from torch import Tensor

from zoo.networks.base import hash_of
from zoo.networks.layout import ParamLayout, ParamSlot
from zoo.storage.shards import checked

_FOLDER: Final = "base"
_REPAIR: Final = "build again into the same path, which writes it anew, or restore it from a copy"


class BaseError(ValueError):
    """A base that cannot be read, or is not the one that a zoo is of."""


def base_arrays(layout: ParamLayout) -> dict[str, ParamSlot]:
    """Slot of each array of the base by its path in the zoo."""
    return {f"{_FOLDER}/{slot.name}": slot for slot in layout.base or ()}


def create_base_arrays(root: zarr.Group, layout: ParamLayout, encoding: Mapping[str, Any]) -> None:
    """Metadata of all arrays of the base."""
    for path, slot in base_arrays(layout).items():
        dtype = _stored_dtype(slot)
        chunks = tuple(max(1, size) for size in slot.shape)
        attributes: dict[str, Any] = {"dtype": slot.dtype}
        root.create_array(
            path, shape=slot.shape, chunks=chunks, dtype=dtype, fill_value=0, attributes=attributes, **encoding
        )


def base_chunks(layout: ParamLayout, tensors: Mapping[str, Tensor]) -> dict[str, Iterator[np.ndarray]]:
    """Contents, in parts, of the one chunk of each array, by its path in the zoo."""
    return {
        "/".join([path, "c", *("0" for _ in slot.shape)]): checked(_bits(tensors[slot.name], slot))
        for path, slot in base_arrays(layout).items()
        if slot.numel
    }


def read_base(group: zarr.Group, layout: ParamLayout, expected_hash: str) -> dict[str, Tensor]:
    """Tensors of the base by name; none if the zoo has no base.

    Raises:
        BaseError: if one is missing or damaged, or they are not those with that hash.
    """
    tensors = {}
    for path, slot in base_arrays(layout).items():
        try:
            values = np.array(cast("zarr.Array", group[path])[...], ndmin=1)
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise BaseError(f"array {path!r} cannot be read: {error!r}; {_REPAIR}") from error
        raw = torch.from_numpy(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
        tensors[slot.name] = raw.view(slot.torch_dtype).reshape(slot.shape)
    found = hash_of(tensors)
    if found != expected_hash:
        raise BaseError(f"the base has the hash {found}, expected {expected_hash}; {_REPAIR}")
    return tensors


def _stored_dtype(slot: ParamSlot) -> str:
    try:
        return torch.empty(0, dtype=slot.torch_dtype).numpy().dtype.name
    except TypeError:  # one of torch's own, whose name NumPy may know from another package, but Zarr does not
        return f"uint{8 * slot.torch_dtype.itemsize}"


def _bits(tensor: Tensor, slot: ParamSlot) -> np.ndarray:
    """The tensor's bytes as the stored array."""
    if tuple(tensor.shape) != slot.shape or tensor.dtype != slot.torch_dtype:
        got = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise BaseError(f"{slot.name!r} of the base must be {slot.dtype} {slot.shape}, got {got}")
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw.view(_stored_dtype(slot))
