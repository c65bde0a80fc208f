"""What an update rule must know of each tensor of a model: role, fan_in, and the depth of the model.

Depth counts residual branches where a model has residual blocks: the signal is a sum over them, so that each may
change by 1 / depth. A block that normalises the input of each branch (transformers) counts once for each such norm,
others (ResNets) once. A model without blocks counts its hidden layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from learned_opt.rules.rule import TensorSpec
from zoo.networks.layout import ParamLayout
from zoo.networks.module_graph import own_class
from zoo.networks.roles import PARAM_ROLES, TensorRole, fan_in, guesses, infer_roles, is_head
from zoo.networks.tensor_kinds import kind_of_named
from zoo.remarks import warn

MIN_BLOCK_MATRICES: Final = 2  # modules with fewer matrices are layers


@dataclass(frozen=True)
class NamedParam:
    """A parameter without its model; without a name of its own it is `named` for messages only."""

    name: str
    param: Tensor
    role: str | None = None
    named: bool = True


def tensor_specs(
    module: nn.Module, *, roles: Mapping[str, str] | None = None, depth: int | None = None
) -> dict[str, TensorSpec]:
    """Description of every parameter by name; wrappers of DDP and torch.compile are looked through.

    Args:
        module: any module.
        roles: roles by name or pattern ("blocks.*.mlp.*"), before what is inferred.
        depth: residual branches or hidden layers, default inferred.

    Raises:
        ValueError: if `roles` matches no tensor of the module, or is no role.
    """
    known, depth, reads_tokens = model_roles(module, roles, depth)
    params = dict(unwrapped(module).named_parameters())
    shapes = {name: tuple(matrix_view(params[name], role.axes).shape[1:]) for name, role in known.items()}
    return {
        name: TensorSpec(name, role.role, role.fan_in, shapes[name], depth, reads_tokens)
        for name, role in known.items()
    }


def model_roles(
    module: nn.Module, roles: Mapping[str, str] | None = None, depth: int | None = None
) -> tuple[dict[str, TensorRole], int, bool]:
    """What is known of every parameter of a model by name, its depth, and whether it reads tokens.

    Warns once of what was guessed. Arguments as of `tensor_specs`. Tables of positions alone are no tokens.
    """
    module = unwrapped(module)
    inferred = infer_roles(module, roles)
    known = {name: inferred[name] for name, _ in module.named_parameters()}
    if guessed := guesses(known):
        warn(
            f"roles were guessed from shapes or the order of registration ({guessed}); where one is wrong, give it: "
            f'roles={{"name or pattern": role}} with one of {PARAM_ROLES}'
        )
    depth = depth or infer_depth(module) or _count_hidden_layers(role.role for role in known.values())
    return known, depth, any(isinstance(child, nn.Embedding | nn.EmbeddingBag) for child in module.modules())


def matrix_view(tensor: Tensor, axes: str) -> Tensor:
    """View (N, outputs, inputs, *kernel) of a tensor: a stack of N matrices is N networks to a rule, all else one."""
    if axes.startswith("e"):
        return tensor if axes == "eoi" else tensor.transpose(1, 2)
    return (tensor if axes == "oi" else tensor.transpose(0, 1)).unsqueeze(0)


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
    reads_tokens = any(slot.role == "embedding" for slot in slots)
    return tuple(TensorSpec(slot.name, slot.role, slot.fan_in, slot.shape, depth, reads_tokens) for slot in slots)


def guessed_roles(
    params: Sequence[NamedParam], *, depth: int | None = None, beside: Sequence[str] = ()
) -> tuple[list[TensorRole], int, bool]:
    """As `model_roles`, of parameters without their model, from given roles, names and the order of shapes.

    Among matrices the first counts as input (unless there is a table of tokens), those with names of heads, or else the
    last, as output, all others as hidden. Warns about what was guessed.

    Args:
        params: in the order in which they are used.
        depth: residual branches or hidden layers; default the number of input and hidden matrices.
        beside: roles of the parameters that are known already.

    Raises:
        ValueError: for an unknown role.
    """
    kinds = [kind_of_named(entry.name if entry.named else "", entry.param) for entry in params]
    roles = [entry.role or kind.name for entry, kind in zip(params, kinds, strict=True)]
    matrices = [i for i, entry in enumerate(params) if entry.role is None and roles[i] == "matrix"]
    reads_tokens = any(map(_is_token_table, params, roles))
    has_input = reads_tokens or "input" in roles or any(role in ("embedding", "input") for role in beside)
    has_output = "output" in (*roles, *beside)
    heads = [] if has_output else [i for i in matrices if is_head(params[i].name)] or matrices[-1:]
    for i in matrices:
        is_first = i == matrices[0] and not has_input and (len(matrices) > 1 or has_output)
        roles[i] = "input" if is_first else "output" if i in heads else "hidden"
    for entry, role in zip(params, roles, strict=True):
        if role not in PARAM_ROLES:
            raise ValueError(f"role of {entry.name!r} must be one of {PARAM_ROLES}, got {role!r}")
    known = [
        TensorRole(role, fan_in(role, tuple(entry.param.shape), kind.axes), kind.axes, i in matrices)
        for i, (entry, role, kind) in enumerate(zip(params, roles, kinds, strict=True))
    ]
    if matrices:
        guessed = guesses({entry.name: role for entry, role in zip(params, known, strict=True)})
        warn(
            f"parameters do not tell their modules: roles of matrices were guessed from their order ({guessed}), a "
            "table of embeddings counts as a matrix unless its name says so, and depth as the number of matrices; pass "
            'the model itself, or groups {"params": ..., "role": ...}, to be sure'
        )
    return known, depth or _count_hidden_layers((*roles, *beside)), reads_tokens


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
        elif "_orig_mod" in module._modules:
            module = cast(nn.Module, module._orig_mod)
        else:
            return module


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.RNNBase | nn.MultiheadAttention):
        return False
    return sum(param.ndim >= 2 for param in module.parameters()) >= MIN_BLOCK_MATRICES


def _num_own_norms(block: nn.Module) -> int:
    """Norms of the block itself that act within an example, by the names of their classes."""
    names = [own_class(child).__name__.lower() for child in block.children()]
    return sum("norm" in name and not name.startswith(("batch", "sync", "group", "instance")) for name in names)


def _is_token_table(entry: NamedParam, role: str) -> bool:
    """Whether a parameter is a table of tokens, so that no matrix reads the inputs; one of positions is none."""
    return role == "embedding" and entry.param.ndim == 2 and "pos" not in entry.name


def _count_hidden_layers(roles: Iterable[str]) -> int:
    return max(1, sum(role in ("input", "hidden") for role in roles))
