"""Parameter groups that carry what a rule must know of each tensor, made from a model or from what torch takes.

A group describes its tensors in plain types, so that any checkpoint can hold it: "roles", "fan_ins" and "axes" are
lists beside "params", "depth" and "reads_tokens" are of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from learned_opt.rules.tensor_specs import NamedParam, guessed_roles, model_roles, unwrapped
from zoo.networks.roles import TensorRole, can_have

UNDECAYED_ROLES: Final = ("bias", "norm")
DESCRIPTION: Final = ("roles", "fan_ins", "axes", "depth", "reads_tokens")

Params = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


def groups_of_model(
    model: nn.Module, roles: Mapping[str, str] | None, depth: int | None, weight_decay: float | None
) -> list[dict[str, Any]]:
    """One group, or with weight decay a second one of the tensors that do not decay."""
    _refuse_flattened(model)
    named = list(unwrapped(model).named_parameters())
    if not named:
        raise ValueError(f"{type(model).__name__} has no parameters to optimize")
    for name, param in named:
        if isinstance(param, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name} of a lazy module has no shape yet; run a batch through the model first")
    known, depth, reads_tokens = model_roles(model, roles, depth)
    if not weight_decay:
        return [_described(named, [known[name] for name, _ in named], depth, reads_tokens)]
    sides: tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]] = ([], [])
    for name, param in named:
        sides[known[name].role in UNDECAYED_ROLES].append((name, param))
    decayed, undecayed = (_described(side, [known[n] for n, _ in side], depth, reads_tokens) for side in sides)
    return [group for group in (decayed, {**undecayed, "weight_decay": 0.0}) if group["params"]]


def groups_of_params(
    params: Iterable[Any], depth: int | None = None, beside: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Groups with roles, from what torch takes as parameters.

    Args:
        params: tensors, pairs of name and tensor, or groups of either.
        depth: residual branches or hidden layers, default counted.
        beside: groups that the optimizer has already.

    Raises:
        TypeError, ValueError, KeyError: as torch.optim, for what it does not take.
    """
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        got = "a single tensor" if isinstance(params, Tensor) else f"a {type(params).__name__}"
        raise TypeError(f"params must be a model or an iterable of parameters or groups, got {got}")
    entries = list(params)
    if not entries:
        raise ValueError("got an empty list of parameters")
    groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
    if not all(isinstance(group, dict) for group in groups):
        raise TypeError("params must be all parameters or all groups, got groups and parameters")
    groups = [{**group, "params": _as_list(group)} for group in groups]
    flat = [entry for i, group in enumerate(groups, start=len(beside)) for entry in _named_params(group, i)]
    others = [role for group in beside for role in group["roles"]]
    known, depth, reads_tokens = guessed_roles(flat, depth=depth, beside=others)
    reads_tokens = reads_tokens or any(group["reads_tokens"] for group in beside)
    remaining = iter(known)
    return [
        {
            **{key: value for key, value in group.items() if key != "role"},
            **_described(group["params"], [next(remaining) for _ in group["params"]], depth, reads_tokens),
        }
        for group in groups
    ]


def tensors_of(group: Mapping[str, Any]) -> list[Tensor]:
    """Parameters of a group, named or not."""
    return [entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry for entry in group["params"]]


def _described(params: Sequence[Any], known: Sequence[TensorRole], depth: int, reads_tokens: bool) -> dict[str, Any]:
    return {
        "params": list(params),
        "roles": [role.role for role in known],
        "fan_ins": [role.fan_in for role in known],
        "axes": [role.axes for role in known],
        "depth": depth,
        "reads_tokens": reads_tokens,
    }


def _as_list(group: Mapping[str, Any]) -> list[Any]:
    if "params" not in group:
        raise KeyError(f'a parameter group needs "params", got one with {sorted(group)}')
    params = group["params"]
    if isinstance(params, set):
        raise TypeError("parameters of a group must have an order, got a set; use a list")
    return [params] if isinstance(params, Tensor) else list(params)


def _named_params(group: Mapping[str, Any], place: int) -> list[NamedParam]:
    """The tensors of a group with its role; biases and norms beside matrices do not have the role of these."""
    role, params = group.get("role"), tensors_of(group)
    for param in params:
        if not isinstance(param, Tensor):
            raise TypeError(f"optimizer can only optimize Tensors, but one of the params is {type(param).__name__}")
    can_have_it = [can_have(role, param) for param in params]
    if params and not any(can_have_it):
        raise ValueError(f"the role {role!r} is one of matrices, got shapes {[tuple(p.shape) for p in params][:8]}")
    return [
        NamedParam(
            entry[0] if isinstance(entry, tuple) else f"group {place}, tensor {i}",
            param,
            role if fits else None,
            named=isinstance(entry, tuple),
        )
        for i, (entry, param, fits) in enumerate(zip(group["params"], params, can_have_it, strict=True))
    ]


def _refuse_flattened(model: nn.Module) -> None:
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "FSDP1 flattens parameters into vectors, of which a rule cannot know rows and columns; use FSDP2 or DDP"
        )
