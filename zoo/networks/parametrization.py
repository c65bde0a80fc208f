"""Roles of a network's tensors, and what standard and maximal-update parametrization do with them.

A role says how a tensor's size depends on the width of the network. Roles are all that the maximal update
parametrization (µP) needs to know about a model, so they are inferred once and kept in the layout.

Scales are powers of fan_in: variance of the initial values, multiplier in the forward pass, size of an update whose
entries do not depend on width (Adam and kin). µP has two equivalent forms: "mup" leaves the forward pass as it is and
works on an unmodified model, "mup_multiplier" divides the output layer by its fan_in and updates it as an input.

| role                  | sp                 | mup                 | mup_multiplier      |
|                       | var  mult  update  | var  mult  update   | var  mult  update   |
| input                 | -1   0     0       | -1   0     0        | -1   0     0        |
| hidden                | -1   0     0       | -1   0     -1       | -1   0     -1       |
| output                | -1   0     0       | -2   0     -1       | 0    -1    0        |
| embedding             | var 1, else 0      | var 1, else 0       | var 1, else 0       |
| bias 0, norm weight 1 | else 0             | else 0              | else 0              |

µP also asks for attention logits divided by the width of a head instead of its root.

Source: Yang and Hu 2021 (arXiv 2011.14522); Yang et al. 2022 (arXiv 2203.03466), tables 3, 8 and 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

PARAM_ROLES: Final = ("input", "hidden", "output", "bias", "norm", "embedding")
BUFFER_ROLES: Final = ("running_mean", "running_var", "counter", "buffer")
ROLES: Final = PARAM_ROLES + BUFFER_ROLES

PARAMETRIZATIONS: Final = ("sp", "mup", "mup_multiplier")


class FanInPowers(NamedTuple):
    """Exponents of fan_in, see the table above."""

    variance: int
    multiplier: int
    update: int


_STANDARD: Final = FanInPowers(variance=-1, multiplier=0, update=0)
_CONSTANT: Final = FanInPowers(variance=0, multiplier=0, update=0)
_MATRIX_POWERS: Final[dict[str, dict[str, FanInPowers]]] = {
    "sp": {},
    "mup": {"hidden": FanInPowers(-1, 0, -1), "output": FanInPowers(-2, 0, -1)},
    "mup_multiplier": {"hidden": FanInPowers(-1, 0, -1), "output": FanInPowers(0, -1, 0)},
}

_MATRIX_MODULES: Final = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)
_NORM_MODULES: Final = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDING_MODULES: Final = (nn.Embedding, nn.EmbeddingBag)


class UnknownRoleError(ValueError):
    """A tensor whose role cannot be told from the module that owns it."""


def infer_roles(
    module: nn.Module, overrides: Mapping[str, str] | None = None, *, strict: bool = False
) -> dict[str, str]:
    """Role of every parameter and persistent buffer of a module, by its name in the state dict.

    Matrices are those of linear, convolutional, attention and recurrent modules. The first matrix in registration
    order is the input matrix unless the model begins with an embedding, the last one is the output matrix, all
    others are hidden. A model with a single matrix has only an output matrix.

    Args:
        module: any module.
        overrides: roles that go before what is inferred, by name.
        strict: raise for parameters with two or more axes that belong to no known kind of module (a position table
            or a class token, say) instead of calling them hidden.

    Raises:
        ValueError: if an override names no tensor of the module, or no role.
        UnknownRoleError: if `strict` and a role cannot be inferred.
    """
    overrides = dict(overrides or {})
    roles: dict[str, str] = {}
    matrices: list[str] = []
    unknown: list[str] = []
    has_embedding = False
    for prefix, owner in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        for local_name, param in owner.named_parameters(recurse=False):
            name = dot + local_name
            role = _param_role(owner, local_name, param)
            has_embedding |= role == "embedding"
            if role == "matrix":
                matrices.append(name)
                if name not in overrides and not isinstance(owner, _MATRIX_MODULES):
                    unknown.append(f"{name} {tuple(param.shape)} of {type(owner).__name__}")
            roles[name] = role
        for local_name, buffer in owner.named_buffers(recurse=False):
            roles[dot + local_name] = _buffer_role(local_name, buffer)
    if strict and unknown:
        raise UnknownRoleError(
            f"cannot infer the role of {', '.join(unknown)}; pass roles={{name: role}} with one of {PARAM_ROLES}"
        )
    for i, name in enumerate(matrices):
        is_first = i == 0 and len(matrices) > 1 and not has_embedding
        roles[name] = "input" if is_first else "output" if i == len(matrices) - 1 else "hidden"
    for name, role in overrides.items():
        if name not in roles:
            raise ValueError(f"roles names {name!r}, which the module does not have; it has {sorted(roles)}")
        if role not in ROLES:
            raise ValueError(f"role of {name!r} must be one of {ROLES}, got {role!r}")
        roles[name] = role
    return roles


def fan_in(role: str, shape: tuple[int, ...], owner: nn.Module | None = None) -> int:
    """Number of products summed into one output of the tensor; for a bias, that of the matrix it is added to.

    An embedding selects one row, and norms act on one number, so theirs is 1.
    """
    if role in ("input", "hidden", "output"):
        return _product(shape[1:]) if len(shape) > 1 else 1
    weight = getattr(owner, "weight", None)
    if role == "bias" and isinstance(weight, Tensor) and weight.ndim > 1:
        return _product(tuple(weight.shape)[1:])
    return 1


def fan_in_powers(role: str, parametrization: str) -> FanInPowers:
    """How a tensor of that role scales with fan_in.

    Raises:
        ValueError: for an unknown role of a parameter or an unknown parametrization.
    """
    if parametrization not in PARAMETRIZATIONS:
        raise ValueError(f"parametrization must be one of {PARAMETRIZATIONS}, got {parametrization!r}")
    if role not in PARAM_ROLES:
        raise ValueError(f"role must be one of {PARAM_ROLES}, got {role!r}")
    if role not in ("input", "hidden", "output"):
        return _CONSTANT
    return _MATRIX_POWERS[parametrization].get(role, _STANDARD)


def init_std(role: str, fan_in: int, parametrization: str) -> float:
    """Standard deviation of the initial values of a matrix."""
    return fan_in ** (fan_in_powers(role, parametrization).variance / 2)


def forward_multiplier(role: str, fan_in: int, parametrization: str) -> float:
    """Factor by which the forward pass multiplies the tensor's product (and its bias)."""
    return float(fan_in) ** fan_in_powers(role, parametrization).multiplier


def update_scale(role: str, fan_in: int, parametrization: str) -> float:
    """Factor of an update whose entries do not depend on width."""
    return float(fan_in) ** fan_in_powers(role, parametrization).update


@torch.no_grad()
def parametrize(
    module: nn.Module,
    parametrization: str = "mup",
    *,
    rng: torch.Generator | None = None,
    roles: Mapping[str, str] | None = None,
    gain: float = 1.0,
) -> nn.Module:
    """The same module, its matrices redrawn in a parametrization that needs no forward multiplier.

    Matrices become normal, biases zero. Embeddings and weights of norms stay as they are, see the head of this file.

    Args:
        module: any module; tied tensors keep the role of their first name.
        parametrization: "mup" or "sp".
        rng: source of randomness on the CPU; default torch's own.
        roles: roles by name that override the inferred ones.
        gain: factor of the standard deviation of input and hidden matrices (2 ** 0.5 for deep ReLU networks).

    Raises:
        ValueError: for a parametrization with multipliers, which the module's forward pass would have to apply.
    """
    if parametrization == "mup_multiplier":
        raise ValueError('"mup_multiplier" changes the forward pass; use the equivalent form "mup"')
    inferred = infer_roles(module, roles)
    owners = dict(module.named_modules())
    for name, param in module.named_parameters():
        role = inferred[name]
        if role == "bias":
            param.zero_()
        elif role in ("input", "hidden", "output"):
            width = fan_in(role, tuple(param.shape), owners[name.rpartition(".")[0]])
            std = init_std(role, width, parametrization) * (gain if role != "output" else 1.0)
            param.copy_(torch.empty(param.shape).normal_(std=std, generator=rng))
    return module


def _param_role(owner: nn.Module, local_name: str, param: Tensor) -> str:
    if isinstance(owner, _EMBEDDING_MODULES):
        return "embedding"
    if isinstance(owner, _NORM_MODULES):
        return "bias" if local_name == "bias" else "norm"
    if param.ndim >= 2:
        return "matrix"
    is_norm_like = "norm" in type(owner).__name__.lower() or local_name in ("gamma", "scale")
    return "norm" if is_norm_like and local_name != "bias" else "bias"


def _buffer_role(local_name: str, buffer: Tensor) -> str:
    if local_name in ("running_mean", "running_var"):
        return local_name
    return "buffer" if buffer.is_floating_point() else "counter"


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
