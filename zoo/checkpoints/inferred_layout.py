"""The layout of tensors that come without their module, by what their names and shapes suggest.

Names decide in this order; `.` separates parts, and the last part is the tensor's own name:

    running_mean, running_var, and all integers and booleans    buffers; every other tensor is a parameter
    two or more axes, a part with `embed`, or `wte`, `wpe`      embedding
    two or more axes                                            matrix: the first is the input matrix unless there is
                                                                an embedding, the last the output matrix, others hidden
    `bias` or `beta`                                            bias
    one axis: a part with `norm`, `bn` or `ln`; own name        norm
      `weight`, `gamma` or `scale`
    anything else                                               bias

Low-rank adapters (names with a part `lora_A` and a partner with `lora_B` in its place) have hidden matrices; their
components are symmetry groups as `low_rank_groups` tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from zoo.networks.layout import ParamLayout, ParamSlot, low_rank_groups
from zoo.networks.roles import PARAM_ROLES, fan_in

_RUNNING: Final = ("running_mean", "running_var")
_EMBEDDING: Final = re.compile(r"embed|^wte$|^wpe$", re.IGNORECASE)
_NORM: Final = re.compile(r"norm|^bn|^ln|_bn|_ln", re.IGNORECASE)
_LORA: Final = re.compile(r"(?:^|\.)lora_(?:embedding_)?[AB](?:\.|$)")


def layout_of_state_dict(tensors: Mapping[str, Tensor]) -> ParamLayout:
    """Layout of named tensors, with roles guessed from names and shapes as described above.

    Prefer `ParamLayout.of(module)` where there is a module: it knows roles and symmetry groups for certain.

    Args:
        tensors: real tensors by name, in the order of the state dict.

    Raises:
        ValueError: if there is no tensor, or one is complex.
    """
    if not tensors:
        raise ValueError("a layout needs at least one tensor")
    roles = _guessed_roles(tensors)
    slots: list[ParamSlot] = []
    offset = 0
    for kind, is_parameter in (("param", True), ("buffer", False)):
        for name in (name for name, role in roles.items() if (role in PARAM_ROLES) == is_parameter):
            tensor, role = tensors[name], roles[name]
            if tensor.is_complex():
                raise ValueError(f"tensor {name!r} must be real, got {tensor.dtype}")
            dtype = str(tensor.dtype).removeprefix("torch.")
            width = _fan_in(name, role, tensors)
            slots.append(ParamSlot(name, tuple(tensor.shape), dtype, kind, role, width, offset))
            offset += tensor.numel()
    return ParamLayout(tuple(slots), low_rank_groups({name: tuple(tensor.shape) for name, tensor in tensors.items()}))


def _guessed_roles(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    roles: dict[str, str] = {}
    matrices: list[str] = []
    for name, tensor in tensors.items():
        *owners, own = name.split(".")
        is_norm = own == "weight" and any(_NORM.search(part) for part in owners)
        if own in _RUNNING:
            roles[name] = own
        elif not (tensor.is_floating_point() or tensor.is_complex()):
            roles[name] = "counter"
        elif tensor.ndim < 2:
            roles[name] = "norm" if is_norm or own.lower() in ("gamma", "scale") else "bias"
        elif _LORA.search(name):
            roles[name] = "hidden"
        elif any(_EMBEDDING.search(part) for part in (*owners, own)):
            roles[name] = "embedding"
        else:
            roles[name] = "hidden"
            matrices.append(name)
    if matrices:
        if len(matrices) > 1 and "embedding" not in roles.values():
            roles[matrices[0]] = "input"
        roles[matrices[-1]] = "output"
    return roles


def _fan_in(name: str, role: str, tensors: Mapping[str, Tensor]) -> int:
    shape = tuple(tensors[name].shape)
    weight = tensors.get(f"{name.rpartition('.')[0]}.weight" if "." in name else "weight")
    if role == "bias" and weight is not None and weight.ndim >= 2:
        return fan_in("hidden", tuple(weight.shape))
    return fan_in(role, shape)
