"""Parameter groups that carry what a rule must know of each tensor, made from a model or from what torch takes.

A group describes its tensors in plain types, so that any checkpoint can hold it: "roles", "fan_ins" and "axes" are
lists beside "params", "depth" and "reads_tokens" are of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from learned_opt.rules.tensor_specs import NamedParam, guessed_roles, model_roles, unwrapped
from zoo.networks.roles import TensorRole

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
    flat = [
        _named_param(entry, f"group {g}, tensor {i}", group.get("role"))
        for g, group in enumerate(groups, start=len(beside))
        for i, entry in enumerate(group["params"])
    ]
    known, depth = guessed_roles(flat, depth=depth, beside=[role for group in beside for role in group["roles"]])
    reads_tokens = any(role.role == "embedding" for role in known) or any(group["reads_tokens"] for group in beside)
    remaining = iter(known)
    return [
        {
            **{key: value for key, value in group.items() if key != "role"},
            **_described(group["params"], [next(remaining) for _ in group["params"]], depth, reads_tokens),
        }
        for group in groups
    ]


def complete_group(group: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Add to a loaded group what its release did not save, and what the constructor was told: `own`."""
    if "axes" in group:
        group |= {key: own[key] for key in DESCRIPTION}
    else:  # version 0.1: every tensor as it lies in memory, and no decay meant the learned one
        group["axes"] = ["oi"] * len(group["params"])
        group["weight_decay"] = group["weight_decay"] or None
    group |= {key: value for key, value in own.items() if key not in group}
    group["num_training_steps"] = own["num_training_steps"] or group["num_training_steps"]


def tensors_of(group: Mapping[str, Any]) -> list[Tensor]:
    """Parameters of a group, named or not."""
    return [entry[1] if isinstance(entry, tuple) else entry for entry in group["params"]]


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


def _named_param(entry: Any, default: str, role: str | None) -> NamedParam:
    name, param = entry if isinstance(entry, tuple) and len(entry) == 2 else (default, entry)
    if not isinstance(param, Tensor):
        raise TypeError(f"optimizer can only optimize Tensors, but one of the params is {type(param).__name__}")
    return NamedParam(name, param, role, named=isinstance(entry, tuple))


def _refuse_flattened(model: nn.Module) -> None:
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "FSDP1 flattens parameters into vectors, of which a rule cannot know rows and columns; use FSDP2 or DDP"
        )
