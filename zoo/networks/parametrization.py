"""What standard and maximal-update parametrization (µP) do with tensors of each role (see `roles`).

Scales are powers of fan_in: the variance of the initial values, and the size of an update whose entries do not depend
on width (Adam and kin). This form of µP leaves the forward pass as it is, so it serves unmodified models.

| role            | sp: variance  update | mup: variance  update |
| input           | -1            0      | -1             0      |
| hidden          | -1            0      | -1             -1     |
| output          | -1            0      | -2             -1     |
| others          | 0             0      | 0              0      |

What is summed over no dimension that grows (embeddings, weights of norms) has no power of width, so its initial values
are the module's own: nn.Embedding's 1 as well as a transformer's .02, a norm's 1 as well as the 0 that begins with a
residual branch switched off. Biases begin at 0.

µP also asks for attention logits divided by the width of a head instead of its root.

Source: Yang and Hu 2021 (arXiv 2011.14522); Yang et al. 2022 (arXiv 2203.03466), tables 3, 8 and 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import nn

from zoo.networks.roles import MATRIX_ROLES, PARAM_ROLES, infer_roles

PARAMETRIZATIONS: Final = ("sp", "mup")


class FanInPowers(NamedTuple):
    """Exponents of fan_in, see the table above."""

    variance: int
    update: int


_STANDARD: Final = FanInPowers(variance=-1, update=0)
_CONSTANT: Final = FanInPowers(variance=0, update=0)
_MATRIX_POWERS: Final[dict[str, dict[str, FanInPowers]]] = {
    "sp": {},
    "mup": {"hidden": FanInPowers(variance=-1, update=-1), "output": FanInPowers(variance=-2, update=-1)},
}


def fan_in_powers(role: str, parametrization: str) -> FanInPowers:
    """How a tensor of that role scales with fan_in.

    Raises:
        ValueError: for an unknown role of a parameter or an unknown parametrization.
    """
    if parametrization not in PARAMETRIZATIONS:
        raise ValueError(f"parametrization must be one of {PARAMETRIZATIONS}, got {parametrization!r}")
    if role not in PARAM_ROLES:
        raise ValueError(f"role must be one of {PARAM_ROLES}, got {role!r}")
    if role not in MATRIX_ROLES:
        return _CONSTANT
    return _MATRIX_POWERS[parametrization].get(role, _STANDARD)


def init_std(role: str, fan_in: int, parametrization: str) -> float:
    """Standard deviation of the initial values of a matrix."""
    return fan_in ** (fan_in_powers(role, parametrization).variance / 2)


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
        module: any module.
        parametrization: "mup" or "sp".
        rng: source of randomness on the CPU; default torch's own.
        roles: roles by name or pattern that override the inferred ones.
        gain: factor of the standard deviation of input and hidden matrices (2 ** 0.5 for deep ReLU networks).

    Raises:
        ValueError: for an unknown parametrization or bad roles.
    """
    inferred = infer_roles(module, roles)
    for name, param in module.named_parameters():
        role = inferred[name].role
        if role == "bias":
            param.zero_()
        elif role in MATRIX_ROLES:
            std = init_std(role, inferred[name].fan_in, parametrization) * (gain if role != "output" else 1.0)
            param.copy_(torch.empty(param.shape).normal_(std=std, generator=rng))
    return module
