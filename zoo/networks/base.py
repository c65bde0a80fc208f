"""The base of a population: what all its networks share, because training leaves it as it is.

Legend: B examples.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from zoo.networks.randomness import preserved_randomness

_NUM_PASSES: Final = 4  # forward passes in training mode after which a buffer counts as constant


@torch.no_grad()
def shared_names(module: nn.Module, other: nn.Module, inputs: Tensor) -> set[str]:
    """Names of the tensors that all networks of a module share: frozen parameters, and buffers that stay constant.

    A buffer is constant if forward passes in training mode do not write to it, and the seed does not matter to it.

    Args:
        module, other: the module as it is built under two seeds; their buffers may change.
        inputs: (B, ...) to run it on.

    Raises:
        ValueError: if frozen parameters depend on the seed, so that no base would be common to all networks.
    """
    before = {name: tensor.clone() for name, tensor in module.named_buffers()}
    unwritten = {name: (tensor, tensor._version) for name, tensor in module.named_buffers()}
    frozen = {name: param for name, param in module.named_parameters() if not param.requires_grad}
    theirs = other.state_dict()
    saved = theirs.keys()
    drawn = [name for name, param in frozen.items() if not torch.equal(param, theirs[name])]
    if drawn:
        raise ValueError(
            f"frozen parameters differ from seed to seed, so they are no common base: {drawn[:5]}; build the module "
            "on tensors that were made once, or register what each run draws for itself as buffers"
        )
    with preserved_randomness():
        for _ in range(_NUM_PASSES if before else 0):
            module.train()(inputs)
    constant = {
        name
        for name, tensor in module.named_buffers()
        if name in saved and _same(tensor, before[name]) and _same(before[name], theirs[name])
        if tensor is unwritten[name][0] and tensor._version == unwritten[name][1]
    }
    return constant | frozen.keys()


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash of a base: of names, dtypes, shapes and bits, in the order of the names; empty for no tensors."""
    if not tensors:
        return ""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def check_base(tensors: Mapping[str, Tensor], noted: str, base: Mapping[str, Tensor], own: str) -> None:
    """Raise ValueError for a network that was trained on another base.

    Args:
        tensors: of the network, perhaps with those of its base.
        noted: hash of its base; empty if that is unknown.
        base: tensors of the base that it is to have.
        own: hash of that.
    """
    other = [name for name, value in base.items() if name in tensors and not torch.equal(tensors[name], value)]
    if other or (noted and own and noted != own):
        what = f"{other[:3]} differ" if other else f"it was trained on the base {noted[:19]}..., not {own[:19]}..."
        raise ValueError(f"this network has another base than the model: {what}")


def sharing_copy(module: nn.Module) -> nn.Module:
    """A copy of a module with attributes and buffers of its own, whose parameters share the memory of the original's.

    So a thousand networks with adapters on one base hold it once. It can be frozen, moved and given adapters without
    touching the original; but whoever trains parameters that were there before changes both.
    """
    memo: dict[int, object] = {
        id(param): nn.Parameter(param.detach(), requires_grad=param.requires_grad) for param in module.parameters()
    }
    return copy.deepcopy(module, memo)


def with_own_memory(module: nn.Module) -> nn.Module:
    """The module, of which everything but frozen parameters now has memory of its own, so that it can be written to."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.requires_grad or not isinstance(tensor, nn.Parameter):
            tensor.data = tensor.data.clone()
    return module


def _same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)
