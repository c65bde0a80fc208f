"""What a traced forward pass tells of a module: which tensors come first and last, and how a bare one is used.

The pass runs on symbols (torch.fx), in a shallow copy of the module: no hook runs, no attribute or buffer of the
user's module changes, and no random number is used up. A module that cannot be traced (control flow that depends on
data) tells nothing.
"""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer
from torch.nn import functional as F

from zoo.networks.randomness import preserved_randomness


class Use(NamedTuple):
    """How a forward pass uses a bare parameter: as what kind of tensor (see `tensor_kinds`), held along which axes.

    A "kernel" is the matrix of a convolution, whose third axis numbers no stack of matrices.
    """

    kind: str
    axes: str = "oi"


class Ends(NamedTuple):
    """Names of the matrices that read what no other matrix made, and of those whose results no other matrix reads."""

    first: set[str]
    last: set[str]


_PASSED_ON: Final = ("to", "type_as", "contiguous", "view", "reshape", "float", "unsqueeze", "expand", "repeat")
_FLIPS: Final = ("t", "transpose", "permute", "T", "mT")
_ADDITIONS: Final = (operator.add, operator.iadd, torch.add, torch.cat, "add", "add_", "expand_as")
_PRODUCTS: Final = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_MATMULS: Final = (operator.matmul, torch.matmul, torch.mm, torch.bmm, "matmul", "mm", "bmm")
_WEIGHTED: Final = (F.linear, F.conv1d, F.conv2d, F.conv3d, F.bilinear)
_WEIGHTED_TRANSPOSED: Final = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_LOOKUPS: Final = (F.embedding, F.embedding_bag, operator.getitem, torch.index_select, "index_select")


class ModuleGraph:
    """The traced forward pass of a module, made when it is first asked for."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @cached_property
    def graph(self) -> Graph | None:
        """None if the module cannot be traced."""
        try:
            with preserved_randomness():
                return _Tracer().trace(_shallow_copy(self._module, {}))
        except Exception:  # whatever the user's forward pass raises when it meets symbols
            return None

    def use_of(self, name: str) -> Use | None:
        """How the forward pass uses a parameter that no known module owns; None if it does not tell."""
        nodes = self.graph.nodes if self.graph else ()
        sources = [node for node in nodes if node.op == "get_attr" and node.target == name]
        uses = [use for source in sources for user in source.users if (use := _use(source, user, flipped=False))]
        return uses[0] if uses else None

    def multiplies(self, name: str) -> bool:
        """Whether the forward pass multiplies with a parameter as with a matrix, beside what its module does."""
        return (use := self.use_of(name)) is not None and use.kind in ("matrix", "kernel")

    def ends(self, matrices: Iterable[str], embeddings: Iterable[str]) -> Ends | None:
        """First and last of these matrices, where embeddings come before the matrices that read them."""
        if self.graph is None:
            return None
        nodes = list(self.graph.nodes)
        matrices, embeddings = list(matrices), list(embeddings)
        owned = {node: _tensors_of(node, matrices) for node in nodes}
        carries = {node: bool(owned[node] or _tensors_of(node, embeddings)) for node in nodes}
        before, after, used = dict.fromkeys(nodes, False), dict.fromkeys(nodes, False), dict.fromkeys(nodes, False)
        for node in nodes:
            before[node] = any(before[x] or carries[x] for x in node.all_input_nodes)
        for node in reversed(nodes):
            after[node] = any(after[user] or bool(owned[user]) for user in node.users if used[user])
            used[node] = node.op == "output" or any(used[user] for user in node.users)
        holders = [node for node in nodes if owned[node] and used[node]]
        inner = {name for node in holders for name in owned[node] if before[node]}
        first = {name for node in holders if not before[node] for name in _reading(owned[node])} - inner
        read_on = {name for node in holders for name in owned[node] if after[node]}
        last = {name for node in holders if not after[node] for name in _writing(owned[node])} - read_on
        return Ends(first, last)


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module as its author wrote it: FSDP2 puts one of its own before it."""
    return next(cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.distributed."))


class _Tracer(Tracer):
    proxy_buffer_attributes = True  # otherwise an update of a buffer in the forward pass would be carried out


def _shallow_copy(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """The same module tree with the same tensors, in which attributes can be set without touching the original."""
    if id(module) in done:
        return done[id(module)]
    own = own_class(module)
    twin = done[id(module)] = own.__new__(own)
    for key, value in module.__dict__.items():
        keeps = isinstance(value, dict | list | set)
        twin.__dict__[key] = OrderedDict() if key.endswith("_hooks") else copy.copy(value) if keeps else value
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _shallow_copy(child, done)
    return twin


def _use(source: Node, user: Node, *, flipped: bool) -> Use | None:
    """What a user of a tensor does with it, looking through views."""
    target: Any = user.target if user.op in ("call_function", "call_method") else None
    name = user.args[1] if target is getattr else getattr(target, "__name__", target)
    if name in _FLIPS or name in _PASSED_ON:
        flipped ^= name in _FLIPS
        uses = [use for after in user.users if (use := _use(user, after, flipped=flipped))]
        return uses[0] if uses else None
    place = next((i for i, arg in enumerate(user.args) if arg is source), None)
    if target in _MATMULS:
        return Use("matrix", "io" if (place == 1) != flipped else "oi")
    if target in _WEIGHTED or target in _WEIGHTED_TRANSPOSED:
        return Use("kernel", "io" if (target in _WEIGHTED_TRANSPOSED) != flipped else "oi")
    if target is torch.einsum and place:
        return _use_in_einsum(str(user.args[0]), place - 1, flipped=flipped)
    if target in _LOOKUPS or target in _ADDITIONS:
        return Use("embedding")
    return Use("norm") if target in _PRODUCTS else None


def _use_in_einsum(equation: str, place: int, *, flipped: bool) -> Use | None:
    """What an equation tells of one of its tensors: of a matrix, or a stack of them, one axis is summed over."""
    terms, _, result = equation.replace(" ", "").partition("->")
    own = terms.split(",")[place]
    is_output = [axis in result and terms.count(axis) == 1 for axis in own[-2:]]
    if len(own) not in (2, 3) or own[:-2] not in result or sum(is_output) != 1:
        return None
    return Use("matrix", "oi" if is_output[0] != flipped else "io")


def _tensors_of(node: Node, names: list[str]) -> list[str]:
    """Which of the tensors a node applies: those of the module it calls, or bare ones among its arguments."""
    if node.op == "call_module":
        return [name for name in names if name.startswith(f"{node.target}.")]
    if node.op in ("call_function", "call_method"):
        return [str(x.target) for x in node.all_input_nodes if x.op == "get_attr" and x.target in names]
    return []


def _reading(owned: list[str]) -> list[str]:
    """Of the matrices of one layer those that read its input."""
    recurrent = [name for name in owned if "weight_ih" in name]
    return [name for name in recurrent if "_l0" in name or "_l" not in name] if recurrent else owned[:1]


def _writing(owned: list[str]) -> list[str]:
    """Of the matrices of one layer those that write its output, unless it is recurrent: then they are read again."""
    return [] if any("weight_ih" in name for name in owned) else owned[-1:]
