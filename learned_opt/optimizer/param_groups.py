"""Parameter groups that carry the role of each tensor, made from a model or from what torch takes as parameters.

Roles, fan_ins and depth are kept in plain types, so that any checkpoint can hold them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from learned_opt.rules.rule import TensorSpec
from learned_opt.rules.tensor_specs import NamedParam, guessed_specs, tensor_specs, unwrapped

UNDECAYED_ROLES: Final = ("bias", "norm")

Params = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


def groups_of_model(
    model: nn.Module, roles: Mapping[str, str] | None, depth: int | None, weight_decay: float
) -> list[dict[str, Any]]:
    """One group, or with weight decay a second one of the tensors that do not decay."""
    specs = tensor_specs(model, roles=roles, depth=depth)
    named = list(unwrapped(model).named_parameters())
    if not named:
        raise ValueError(f"{type(model).__name__} has no parameters to optimize")
    if not weight_decay:
        return [_described(named, [specs[name] for name, _ in named])]
    sides: tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]] = ([], [])
    for name, param in named:
        sides[specs[name].role in UNDECAYED_ROLES].append((name, param))
    decayed, undecayed = (_described(side, [specs[name] for name, _ in side]) for side in sides)
    return [group for group in (decayed, {**undecayed, "weight_decay": 0.0}) if group["params"]]


def groups_of_params(params: Iterable[Any], depth: int | None) -> list[dict[str, Any]]:
    """Groups with roles, from what torch takes as parameters."""
    if isinstance(params, Tensor):
        raise TypeError("params must be a model or an iterable of parameters or groups, got a single tensor")
    entries = list(params)
    if not entries:
        raise ValueError("got an empty list of parameters")
    groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
    groups = [{**group, "params": _as_list(group["params"])} for group in groups]
    flat = [
        NamedParam(*_name_and_param(entry, f"group {g}, tensor {i}"), group.get("role"))
        for g, group in enumerate(groups)
        for i, entry in enumerate(group["params"])
    ]
    specs = iter(guessed_specs(flat, depth=depth))
    return [
        {
            **{k: v for k, v in group.items() if k != "role"},
            **_described(group["params"], [next(specs) for _ in group["params"]]),
        }
        for group in groups
    ]


def _described(params: Sequence[Any], specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Group of parameters with what `TensorSpec` needs."""
    return {
        "params": list(params),
        "roles": [spec.role for spec in specs],
        "fan_ins": [spec.fan_in for spec in specs],
        "depth": specs[0].depth if specs else 1,
    }


def _as_list(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def _name_and_param(entry: Any, default: str) -> tuple[str, Tensor]:
    return entry if isinstance(entry, tuple) else (default, entry)


def tensors_of(group: Mapping[str, Any]) -> list[Tensor]:
    """Parameters of a group, named or not."""
    return [_name_and_param(entry, "")[1] for entry in group["params"]]
