"""How a DTensor is divided among ranks, and which part of the whole each of them holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

Part = tuple[slice, ...]


@dataclass(frozen=True)
class Sharding:
    """How a tensor of some shape is divided among the ranks of a mesh."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Sharding:
        """That of a DTensor.

        Raises:
            ValueError: for a tensor of which ranks hold summands, or rows that do not follow each other.
        """
        tensor = cast(DTensor, tensor)
        sharding = cls(tensor.device_mesh, tuple(tensor.placements), tuple(tensor.shape))
        if any(isinstance(placement, Partial) for placement in sharding.placements):
            raise ValueError(
                f"a parameter of shape {sharding.shape} has placements {sharding.placements}: ranks hold summands of "
                "it, not shards; redistribute it to Shard or Replicate"
            )
        _parts(sharding)
        return sharding

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that together hold the tensor once; None if each holds all of it."""
        dims = tuple(i for i, placement in enumerate(self.placements) if not isinstance(placement, Replicate))
        return _group(self.mesh, dims, dist.group.WORLD) if dims else None

    @property
    def parts(self) -> tuple[Part, ...]:
        """What each rank of the group holds."""
        return _parts(self)


def sharded_gradient(param: Tensor) -> tuple[Tensor, Sharding]:
    """This rank's shard of the gradient, divided as the parameter is."""
    param, grad = cast(DTensor, param), cast(DTensor, param.grad)
    if grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return grad.to_local(), Sharding.of(param)


@lru_cache(maxsize=64)
def _group(mesh: DeviceMesh, dims: tuple[int, ...], world: Any) -> dist.ProcessGroup:
    """The ranks along some dims of a mesh, this one among them, in the process group that is now the default."""
    if len(dims) == 1:
        return mesh.get_group(dims[0])
    coordinate = cast(tuple[int, ...], mesh.get_coordinate())
    place = tuple(slice(None) if i in dims else coordinate[i] for i in range(mesh.ndim))
    ranks = mesh.mesh[place].flatten().tolist()
    return dist.new_group(ranks, use_local_synchronization=True)


@lru_cache(maxsize=4096)
def _parts(sharding: Sharding) -> tuple[Part, ...]:
    group = sharding.group
    if group is None:
        return ((slice(None),) * len(sharding.shape),)
    ranks = sharding.mesh.mesh
    return tuple(_part(sharding, (ranks == rank).nonzero()[0].tolist()) for rank in dist.get_process_group_ranks(group))


def _part(sharding: Sharding, coordinate: Sequence[int]) -> Part:
    """What the rank at some place of the mesh holds: dims of the mesh divide, one after the other, what is left."""
    held: list[Sequence[int]] = [range(size) for size in sharding.shape]
    for placement, place, num_ranks in zip(sharding.placements, coordinate, sharding.mesh.shape, strict=True):
        if not isinstance(placement, Replicate):
            dim = cast(Shard, placement).dim
            held[dim] = _divided(held[dim], placement, place, num_ranks)
    parts = []
    for indices in held:
        start, stop = (indices[0], indices[-1] + 1) if indices else (0, 0)
        if list(indices) != list(range(start, stop)):
            raise ValueError(
                f"a parameter of shape {sharding.shape} has placements {sharding.placements} on a mesh of shape "
                f"{tuple(sharding.mesh.shape)}, so that ranks hold rows which do not follow each other; choose sizes "
                "that divide evenly among the ranks"
            )
        parts.append(slice(start, stop))
    return tuple(parts)


def _divided(indices: Sequence[int], placement: Placement, place: int, num_ranks: int) -> Sequence[int]:
    """A rank's chunk of indices; with a split factor (FSDP2 over tensor parallelism) its chunk of each of the parts."""
    num_parts = getattr(placement, "split_factor", 1)
    part_size = max(1, -(-len(indices) // num_parts))
    chunks = []
    for start in range(0, len(indices), part_size):
        part = indices[start : start + part_size]
        size = -(-len(part) // num_ranks)
        chunks.append(part[place * size : (place + 1) * size])
    return chunks[0] if len(chunks) == 1 else [i for chunk in chunks for i in chunk]
