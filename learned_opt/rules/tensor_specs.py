"""What an update rule must know of each tensor of a model: role, fan_in, and the depth of the model.

Depth counts residual branches where a model has residual blocks: the signal is a sum over them, so that each may
change by 1 / depth. A block that normalises the input of each branch (transformers) counts once for each such norm,
others (ResNets) once. A model without blocks counts its hidden layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from learned_opt.rules.rule import TensorSpec
from zoo.networks.layout import ParamLayout
from zoo.networks.parametrization import PARAM_ROLES, fan_in, infer_roles

MIN_BLOCK_MATRICES: Final = 2  # modules with fewer matrices are layers

_MATRIX_ROLES: Final = ("input", "hidden", "output")
_EMBEDDING_NAMES: Final = ("embed", "wte", "wpe")
_NORM_NAMES: Final = ("norm", "ln_")


@dataclass(frozen=True)
class NamedParam:
    """A parameter without its model."""

    name: str
    param: Tensor
    role: str | None = None


def tensor_specs(
    module: nn.Module, *, roles: Mapping[str, str] | None = None, depth: int | None = None
) -> dict[str, TensorSpec]:
    """Description of every parameter by name; wrappers of DDP and torch.compile are looked through.

    Args:
        module: any module.
        roles: roles by name, before what is inferred.
        depth: residual branches or hidden layers, default inferred.

    Raises:
        zoo.parametrization.UnknownRoleError: if the role of a tensor cannot be inferred; it names the tensors.
        ValueError: if `roles` names no tensor of the module, or no role.
    """
    module = unwrapped(module)
    inferred = infer_roles(module, roles, strict=True)
    owners = dict(module.named_modules())
    named = dict(module.named_parameters())
    depth = depth or infer_depth(module) or _count_hidden_layers(inferred[name] for name in named)
    return {
        name: TensorSpec(
            name,
            inferred[name],
            fan_in(inferred[name], tuple(param.shape), owners[name.rpartition(".")[0]]),
            tuple(param.shape),
            depth,
        )
        for name, param in named.items()
    }


def specs_of(layout: ParamLayout, depth: int | None = None) -> tuple[TensorSpec, ...]:
    """Descriptions of a layout's trainable tensors.

    Args:
        layout: of the networks.
        depth: residual branches, or hidden layers; by default two for each block where slots are named `blocks.<i>.`,
            else one for each input or hidden matrix.
    """
    slots = [slot for slot in layout if slot.kind == "param"]
    if depth is None:
        blocks = {slot.name.split(".")[1] for slot in slots if slot.name.startswith("blocks.")}
        depth = 2 * len(blocks) or max(1, sum(slot.role in ("input", "hidden") for slot in slots))
    return tuple(TensorSpec(slot.name, slot.role, slot.fan_in, slot.shape, depth) for slot in slots)


def guessed_specs(params: Sequence[NamedParam], *, depth: int | None = None) -> list[TensorSpec]:
    """Descriptions of parameters without their model, from given roles, names and the order of shapes.

    Among tensors with two or more axes the first counts as input (unless there is an embedding), the last as output,
    all others as hidden. Warns about what was guessed.

    Raises:
        ValueError: for an unknown role.
    """
    roles = [entry.role or _role_by_name(entry) for entry in params]
    matrices = [i for i, role in enumerate(roles) if role is None]
    has_input = any(role in ("embedding", "input") for role in roles)
    for place, i in enumerate(matrices):
        is_first = place == 0 and len(matrices) > 1 and not has_input
        is_last = place == len(matrices) - 1 and "output" not in roles
        roles[i] = "input" if is_first else "output" if is_last else "hidden"
    known = [role for role in roles if role is not None]
    for entry, role in zip(params, known, strict=True):
        if role not in PARAM_ROLES:
            raise ValueError(f"role of {entry.name!r} must be one of {PARAM_ROLES}, got {role!r}")
    if matrices:
        guessed = ", ".join(f"{params[i].name}: {roles[i]}" for i in matrices[:8])
        more = f" and {len(matrices) - 8} more" if len(matrices) > 8 else ""
        warnings.warn(
            f"roles of matrices were guessed from their order ({guessed}{more}); pass the model itself, or groups "
            '{"params": ..., "role": ...}, to be sure',
            stacklevel=4,
        )
    depth = depth or _count_hidden_layers(known)
    shapes = [tuple(entry.param.shape) for entry in params]
    return [
        TensorSpec(entry.name, role, fan_in(role, shape), shape, depth)
        for entry, role, shape in zip(params, known, shapes, strict=True)
    ]


def infer_depth(module: nn.Module) -> int:
    """Residual branches of a model, 0 if it has no residual blocks.

    Blocks are children of a Sequential or ModuleList that hold several matrices. One without a norm of its own that
    holds other blocks is a stage, and its blocks count.
    """
    total = 0
    for child in module.children():
        inside = infer_depth(child)
        if isinstance(module, nn.Sequential | nn.ModuleList) and _is_block(child):
            total += _num_own_norms(child) or inside or 1
        else:
            total += inside
    return total


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's module inside wrappers of DDP, DataParallel and torch.compile."""
    while True:
        if isinstance(module, DistributedDataParallel | DataParallel):
            module = module.module
        elif hasattr(module, "_orig_mod"):
            module = cast(nn.Module, module._orig_mod)
        else:
            return module


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.RNNBase | nn.MultiheadAttention):
        return False
    return sum(param.ndim >= 2 for param in module.parameters()) >= MIN_BLOCK_MATRICES


def _num_own_norms(block: nn.Module) -> int:
    """Norms of the block itself that act within an example, by the names of their classes."""
    names = [type(child).__name__.lower() for child in block.children()]
    return sum("norm" in name and not name.startswith(("batch", "sync", "group", "instance")) for name in names)


def _count_hidden_layers(roles: Iterable[str]) -> int:
    return max(1, sum(role in ("input", "hidden") for role in roles))


def _role_by_name(entry: NamedParam) -> str | None:
    name = entry.name.lower()
    if any(part in name for part in _EMBEDDING_NAMES):
        return "embedding"
    if entry.param.ndim >= 2:
        return None
    return "norm" if any(part in name for part in _NORM_NAMES) and not name.endswith("bias") else "bias"
