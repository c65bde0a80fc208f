"""The role of each tensor of a module: how its size depends on the width of the network.

What kind of tensor it is, `tensor_kinds` tells. Which matrices read the data (input) and which write the result
(output) comes from what the model declares (Hugging Face's `get_input_embeddings`, timm's `get_classifier`), then from
a traced forward pass, then from the names of heads, and last, as a guess, from the order of registration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from torch import Tensor, nn

from zoo.networks.module_graph import ModuleGraph, own_class
from zoo.networks.tensor_kinds import Kind, Owned, is_adapter, is_lookup, is_recurrent, kind_of, owned_tensors

MATRIX_ROLES: Final = ("input", "hidden", "output")
PARAM_ROLES: Final = (*MATRIX_ROLES, "bias", "norm", "embedding")
BUFFER_ROLES: Final = ("running_mean", "running_var", "counter", "buffer")
ROLES: Final = PARAM_ROLES + BUFFER_ROLES

_HEADS: Final = ("head", "heads", "head_dist", "lm_head", "classifier", "score", "qa_outputs", "fc_out", "logits")
_ENTRANCE: Final = re.compile(r"embed|patch|stem|input|first|conv_?(0|1|in|pre)\b|feature_extractor|subsampl|frontend")
_WRAPPERS: Final = ("base_model", "model", "module")  # parts of names that PEFT and others put before a model's own


@dataclass(frozen=True)
class TensorRole:
    """What is known of one tensor.

    Args:
        role: one of `ROLES`.
        fan_in: number of products summed into one output of a matrix; for a bias, that of the matrix it is added to.
            An embedding selects one row, and norms act on one number, so theirs is 1.
        axes: how it holds its matrix, one of `tensor_kinds.AXES`.
        guessed: whether only its shape, or the order of registration, spoke for it.
    """

    role: str
    fan_in: int = 1
    axes: str = "oi"
    guessed: bool = False


def infer_roles(module: nn.Module, overrides: Mapping[str, str] | None = None) -> dict[str, TensorRole]:
    """Role of every parameter and persistent buffer of a module, by its name in the state dict.

    A model that begins with an embedding has no input matrix, one with a single matrix only an output matrix. Tied
    tensors have one role: an embedding's, if one of them is that.

    Args:
        module: any module.
        overrides: roles that go before what is inferred, by name or pattern ("blocks.*.mlp.*"); later ones win. Roles
            of matrices leave biases and norms that a pattern matches as they are.

    Raises:
        ValueError: if an override matches no tensor of the module that can have the role, or is no role.
    """
    tensors, graph = owned_tensors(module), ModuleGraph(module)
    kinds = {name: kind_of(owned, graph) for name, owned in tensors.items() if isinstance(owned.tensor, nn.Parameter)}
    _unite_tied(kinds, tensors)
    roles = _place(module, tensors, kinds, graph)
    roles |= {name: _buffer_role(owned) for name, owned in tensors.items() if name not in kinds}
    for pattern, role in (overrides or {}).items():
        if role not in ROLES:
            raise ValueError(f"role of {pattern!r} must be one of {ROLES}, got {role!r}")
        tied = {id(tensors[name].tensor) for name in _matched(str(pattern), role, tensors)}
        matched = [name for name, owned in tensors.items() if id(owned.tensor) in tied]
        roles |= dict.fromkeys(matched, role)
        kinds |= {name: replace(kinds[name], known=True) for name in matched if name in kinds}
    return _described(roles, kinds, tensors)


def is_head(name: str) -> bool:
    """Whether a tensor is one of a head, by its name in the model."""
    return next((part for part in name.split(".") if part not in _WRAPPERS), "") in _HEADS


def can_have(role: str | None, tensor: Tensor) -> bool:
    """Whether a tensor can have a role: what has no rows and columns is no matrix. Any can have none."""
    return role not in MATRIX_ROLES or tensor.ndim >= 2


def fan_in(role: str, shape: tuple[int, ...], axes: str = "oi", groups: int = 1) -> int:
    """Number of products summed into one output of a tensor of that role, see `TensorRole`.

    Args:
        groups: of a transposed convolution, whose weight holds the inputs of all its groups.
    """
    if role not in MATRIX_ROLES or len(shape) < 2:
        return 1
    if axes == "oi":
        return math.prod(shape[1:])
    if axes == "io":
        return shape[0] // groups * math.prod(shape[2:])
    return shape[2 if axes == "eoi" else 1]


def guesses(roles: Mapping[str, TensorRole]) -> str:
    """The guessed roles as words, "" if there are none."""
    return _some([f"{name}: {known.role}" for name, known in roles.items() if known.guessed])


def _matched(pattern: str, role: str, tensors: Mapping[str, Owned]) -> list[str]:
    """The tensors that a pattern gives a role to."""
    names = [pattern] if pattern in tensors else [name for name in tensors if fnmatchcase(name, pattern)]
    if not names:
        raise ValueError(
            f'roles names {pattern!r}, which the module does not have (what is inside of "head" is "head.*"); '
            f"it has {_some(list(tensors))}"
        )
    of_kind = {name for name in names if isinstance(tensors[name].tensor, nn.Parameter) == (role in PARAM_ROLES)}
    matched = [name for name in names if name in of_kind and can_have(role, tensors[name].tensor)]
    if not matched:
        raise ValueError(f"nothing that {pattern!r} names can have the role {role!r}: {_some(names)}")
    return matched


def _place(
    module: nn.Module, tensors: Mapping[str, Owned], kinds: dict[str, Kind], graph: ModuleGraph
) -> dict[str, str]:
    """Roles by name; which matrices were placed by their order alone is noted in `kinds`."""
    roles = {name: "hidden" if kind.name == "matrix" else kind.name for name, kind in kinds.items()}
    matrices = [name for name, role in roles.items() if role == "hidden" and not is_adapter(name)]
    lookups = [name for name in kinds if is_lookup(tensors[name])]
    tied: list[str] = []  # tables that are multiplied with, too
    first, last = _declared_inputs(module, tensors), _declared_outputs(module, tensors)
    if first is None or last is None:
        tables = [name for name, kind in kinds.items() if kind.name == "embedding"]
        tied = [n for n in tables if isinstance(tensors[n].owner, nn.Linear) or (n in lookups and graph.multiplies(n))]
        ends = graph.ends([*matrices, *tied], tables)
        first = ends.first if first is None and ends else first
        last = ends.last if last is None and ends else last
    if first is None:
        first = set() if lookups else set(matrices[:1])
        _note_guess(kinds, {n for n in first if not (_ENTRANCE.search(n) or _is_in_order(module, n))}, matrices)
    if last is None:
        last = {name for name in matrices if is_head(name)}
        if not last and not tied:  # else a table is the output
            last = {name for name in matrices[-1:] if not is_recurrent(tensors[name])}
            _note_guess(kinds, {name for name in last if not _is_in_order(module, name)}, matrices)
    roles |= {name: "input" for name in first if roles[name] == "hidden"}
    return roles | {name: "output" for name in last if roles[name] in ("hidden", "input")}


def _declared_inputs(module: nn.Module, tensors: Mapping[str, Owned]) -> set[str] | None:
    """Matrices that the model says read its inputs, none of them if it embeds tokens; None if it does not say."""
    found = _answer(module, "get_input_embeddings")[1]
    config = getattr(module, "pretrained_cfg", None)
    if found is None and isinstance(config, Mapping) and config.get("first_conv"):
        names = [config["first_conv"]] if isinstance(config["first_conv"], str) else config["first_conv"]
        found = [child for name, child in module.named_modules() if name in names]
    owned = _names_inside(found, tensors)
    return {name for name in owned if tensors[name].tensor.ndim > 1 and not is_lookup(tensors[name])} if owned else None


def _declared_outputs(module: nn.Module, tensors: Mapping[str, Owned]) -> set[str] | None:
    """The matrix of each head that the model declares; None if it does not say."""
    for method in ("get_output_embeddings", "get_classifier"):
        declarer, found = _answer(module, method)
        if found is not None:
            heads = [found] if isinstance(found, nn.Module) and not isinstance(found, nn.ModuleList) else list(found)
            last = [[n for n in _names_inside(head, tensors) if tensors[n].tensor.ndim > 1][-1:] for head in heads]
            return {name for names in last for name in names}
        if declarer is module and not any(map(is_head, tensors)):
            return set()  # a model of hidden states, without a head
    return None


def _answer(module: nn.Module, method: str) -> tuple[nn.Module | None, Any]:
    """The outermost module that has a method, and what it returns."""
    declarer = next((child for child in module.modules() if callable(getattr(child, method, None))), None)
    try:
        answer = getattr(declarer, method)() if declarer else None
    except Exception:  # models that have none raise errors of many types
        return None, None
    return declarer, answer if isinstance(answer, nn.Module | list | tuple) else None


def _names_inside(modules: Any, tensors: Mapping[str, Owned]) -> list[str]:
    """Parameters of one or several modules, by their names in the whole model."""
    modules = [modules] if isinstance(modules, nn.Module) else modules or []
    inside = {id(param) for child in modules if isinstance(child, nn.Module) for param in child.parameters()}
    return [name for name, owned in tensors.items() if id(owned.tensor) in inside]


def _note_guess(kinds: dict[str, Kind], placed: Iterable[str], matrices: Sequence[str]) -> None:
    """Mark matrices that were placed by their order alone; a single one has no other place."""
    kinds.update({name: replace(kinds[name], known=False) for name in placed if len(matrices) > 1})


def _is_in_order(module: nn.Module, name: str) -> bool:
    """Whether the modules around a tensor run in the order of registration, as torch's own do but for lists."""
    around = [module]
    for part in name.split(".")[:-1]:
        around.append(around[-1].get_submodule(part))
    are_lists = any(isinstance(owner, nn.ModuleList | nn.ModuleDict) for owner in around)
    return not are_lists and all(own_class(owner).__module__.startswith("torch.nn.") for owner in around)


def _unite_tied(kinds: dict[str, Kind], tensors: Mapping[str, Owned]) -> None:
    """Give each tensor one kind under all its names, whichever was registered first."""
    embeddings = {id(tensors[name].tensor): kind for name, kind in kinds.items() if kind.name == "embedding"}
    kinds.update({name: embeddings.get(id(tensors[name].tensor), kind) for name, kind in kinds.items()})


def _described(
    roles: Mapping[str, str], kinds: Mapping[str, Kind], tensors: Mapping[str, Owned]
) -> dict[str, TensorRole]:
    weights = {
        id(owned.owner): name
        for name, owned in tensors.items()
        if owned.label == "weight" and name in kinds and kinds[name].name == "matrix"
    }
    described = {}
    for name, owned in tensors.items():
        role, kind = roles[name], kinds.get(name, Kind(roles[name]))
        counted = weights.get(id(owned.owner)) if role == "bias" else name
        width = 1
        if counted is not None and (role == "bias" or role in MATRIX_ROLES):
            shape, groups = tuple(tensors[counted].tensor.shape), getattr(owned.owner, "groups", 1)
            width = fan_in("hidden", shape, kinds[counted].axes, groups)
        described[name] = TensorRole(role, width, kind.axes, not kind.known)
    return described


def _buffer_role(owned: Owned) -> str:
    if owned.label in ("running_mean", "running_var"):
        return owned.label
    return "buffer" if owned.tensor.is_floating_point() else "counter"


def _some(words: Sequence[str], limit: int = 8) -> str:
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
