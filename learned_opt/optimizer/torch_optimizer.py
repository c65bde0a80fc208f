"""Learned optimizers as torch optimizers.

    opt = MuLO(model)                                  # no learning rate to choose
    opt = MuLO(model, num_training_steps=10_000)       # better, where the length of the run is known

`lr` multiplies the rule's own step and is 1 unless one wishes otherwise; any `lr_scheduler` works on it. Weight decay
is decoupled and in units of the rule's base step, so that the usual values (0.01 to 0.1) are sensible.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learned_opt.optimizer.param_groups import Params, groups_of_model, groups_of_params, tensors_of
from learned_opt.pretrained.files import Pretrained, load_pretrained
from learned_opt.rules.rule import RuleState, TensorSpec

WITHOUT_HORIZON: Final = "mulo"
WITH_HORIZON: Final = "mulo-norm"
NONFINITE: Final = ("skip", "raise")


class ThetaMismatchError(ValueError):
    """A saved optimizer was run by other meta-parameters."""


class NonFiniteGradientError(RuntimeError):
    """Gradients held infinities or NaN, and the optimizer was asked to raise."""


@dataclass(frozen=True)
class _Pending:
    """A parameter with a gradient, and what the rule needs to update it."""

    param: Tensor
    grad: Tensor
    spec: TensorSpec
    lr: float
    weight_decay: float


class LearnedOptimizer(Optimizer):
    """An update rule with its meta-parameters, as a torch optimizer.

    Args:
        params: a model, whose tensors' roles are inferred; or parameters, named parameters or groups as torch takes
            them, whose roles are guessed unless a group has a "role" (see `zoo.networks.parametrization.PARAM_ROLES`).
        theta: a name of `available()`, a file, or a `Pretrained`.
        num_training_steps: horizon T of the run. Steps beyond it keep the last step size, with one warning.
        lr: multiplier of the update.
        weight_decay: decoupled, in units of the rule's base step. Given a model, biases and norms are in a second
            group without it.
        maximize: ascend instead of descend.
        nonfinite: what to do with infinite or NaN gradients: "skip" the whole step and count it in
            `num_skipped_steps`, or "raise".
        roles: roles by parameter name that override the inferred ones; only with a model.
        depth: residual branches or hidden layers, default inferred.

    Raises:
        ValueError: for bad options, no parameters, or complex ones.
        zoo.parametrization.UnknownRoleError: if the role of a model's tensor cannot be inferred.
    """

    def __init__(
        self,
        params: Params,
        theta: str | Path | Pretrained = WITH_HORIZON,
        *,
        num_training_steps: int | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        nonfinite: str = "skip",
        roles: Mapping[str, str] | None = None,
        depth: int | None = None,
    ) -> None:
        _check_options(lr=lr, weight_decay=weight_decay, nonfinite=nonfinite, num_training_steps=num_training_steps)
        self.pretrained = theta if isinstance(theta, Pretrained) else load_pretrained(theta)
        self.nonfinite = nonfinite
        self.num_skipped_steps = 0
        self._inner_step = 0
        self._num_training_steps = num_training_steps
        self._warned_beyond_horizon = False
        self._thetas: dict[torch.device, Tensor] = {}
        if isinstance(params, nn.Module):
            groups = groups_of_model(params, roles, depth, weight_decay)
        elif roles is not None:
            raise ValueError('roles needs the model itself; parameter groups carry {"params": ..., "role": ...}')
        else:
            groups = groups_of_params(params, depth)
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize})
        if num_training_steps is None and self.pretrained.rule.uses_horizon:
            warnings.warn(
                "num_training_steps is not given, so the step stays constant; give it, or decay lr by a scheduler, "
                "to end lower",
                stacklevel=2,
            )

    @property
    def num_training_steps(self) -> int | None:
        """Horizon T; it may be changed at any time."""
        return self._num_training_steps

    @num_training_steps.setter
    def num_training_steps(self, value: int | None) -> None:
        _check_options(num_training_steps=value)
        self._num_training_steps = value
        self._warned_beyond_horizon = False

    @property
    def inner_step(self) -> int:
        """Updates made so far."""
        return self._inner_step

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; roles come from its "role" or are guessed."""
        if "roles" not in param_group:
            (param_group,) = groups_of_params([param_group], None)
        for param in tensors_of(param_group):
            if param.is_complex():
                raise ValueError(f"complex parameters are not supported, got one of shape {tuple(param.shape)}")
            if _is_sharded(param):
                raise ValueError("sharded parameters (DTensor) are not supported; use DDP")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check_options(lr=float(group["lr"]), weight_decay=group["weight_decay"])

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Returns:
            What the closure returned, None without one.

        Raises:
            RuntimeError: if no parameter has a gradient.
            NonFiniteGradientError: if a gradient is not finite and `nonfinite` is "raise".
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pending = list(self._pending())
        if not pending:
            raise RuntimeError("no parameter has a gradient; call loss.backward() before step()")
        if not self._check_finite([entry.grad for entry in pending]):
            return loss
        self._warn_beyond_horizon()
        for device in dict.fromkeys(entry.param.device for entry in pending):
            self._update(device, [entry for entry in pending if entry.param.device == device])
        self._inner_step += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch's; each group also holds the number of updates, the horizon and the hash of the meta-parameters."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group["inner_step"] = self._inner_step
            group["num_training_steps"] = self._num_training_steps
            group["num_skipped_steps"] = self.num_skipped_steps
            group["theta_hash"] = self.pretrained.hash
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit for bit where `state_dict()` was taken.

        The horizon given to the constructor, if any, goes before the saved one.

        Raises:
            ThetaMismatchError: if the state is of other meta-parameters.
        """
        first = state_dict["param_groups"][0]
        if first.get("theta_hash") != self.pretrained.hash:
            raise ThetaMismatchError(
                f"the saved optimizer used meta-parameters {first.get('theta_hash')}, this one has "
                f"{self.pretrained.hash} ({self.pretrained.name or self.pretrained.rule.name}); "
                "make it with the same theta"
            )
        super().load_state_dict(state_dict)
        self._inner_step = first["inner_step"]
        self.num_skipped_steps = first["num_skipped_steps"]
        if self._num_training_steps is None:
            self._num_training_steps = first["num_training_steps"]
        for group in self.param_groups:
            for key in ("inner_step", "num_training_steps", "num_skipped_steps", "theta_hash"):
                group.pop(key, None)
        self._restore_float32(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        own = ("pretrained", "nonfinite", "num_skipped_steps", "_inner_step", "_num_training_steps")
        kept = {name: getattr(self, name) for name in (*own, "_warned_beyond_horizon")}
        return {**super().__getstate__(), **kept, "_thetas": {}}

    def _pending(self) -> Iterator[_Pending]:
        for group in self.param_groups:
            described = zip(group["params"], group["roles"], group["fan_ins"], strict=True)
            for i, (param, role, fan_in) in enumerate(described):
                if param.grad is None:
                    continue
                grad = param.grad.to_dense() if param.grad.is_sparse else param.grad
                name = group["param_names"][i] if "param_names" in group else f"params.{i}"
                spec = TensorSpec(name, role, fan_in, tuple(param.shape), group["depth"])
                yield _Pending(
                    param, -grad if group["maximize"] else grad, spec, float(group["lr"]), group["weight_decay"]
                )

    def _check_finite(self, grads: list[Tensor]) -> bool:
        largest = nn.utils.get_total_norm([grad for grad in grads if grad.numel()], norm_type=float("inf"))
        if bool(torch.isfinite(largest)):
            return True
        if self.nonfinite == "raise":
            raise NonFiniteGradientError(
                f"gradients are not finite at step {self._inner_step}; parameters are unchanged"
            )
        self.num_skipped_steps += 1
        return False

    def _update(self, device: torch.device, pending: Sequence[_Pending]) -> None:
        """Run the rule on the tensors of one device, as one network."""
        rule = self.pretrained.rule
        specs = [entry.spec for entry in pending]
        params = [entry.param.detach().to(torch.float32).unsqueeze(0) for entry in pending]
        state = self._state_of(pending, params)
        if device not in self._thetas:
            self._thetas[device] = self.pretrained.theta.to(device)
        before = [
            None if entry.param.dtype == torch.float32 else p.clone() for entry, p in zip(pending, params, strict=True)
        ]
        rule.update(
            self._thetas[device],
            specs,
            params,
            [entry.grad.to(torch.float32).unsqueeze(0) for entry in pending],
            state,
            inner_step=self._inner_step,
            num_steps=self._num_training_steps,
            lr=[entry.lr for entry in pending],
            weight_decay=[entry.weight_decay for entry in pending],
        )
        for i, (entry, start) in enumerate(zip(pending, before, strict=True)):
            self.state[entry.param].update({key: tensors[i].squeeze(0) for key, tensors in state.items()})
            if start is not None:  # the rule worked on a float32 copy
                entry.param.add_((params[i] - start).squeeze(0).to(entry.param.dtype))
            elif params[i].data_ptr() != entry.param.data_ptr():  # the rule put a new tensor into the list
                entry.param.copy_(params[i].squeeze(0))

    def _state_of(self, pending: Sequence[_Pending], params: Sequence[Tensor]) -> RuleState:
        """The rule's state of these tensors, made at their first update."""
        state: RuleState = {}
        for entry, param in zip(pending, params, strict=True):
            kept = self.state[entry.param]
            if not kept:
                fresh = self.pretrained.rule.init_state([entry.spec], [param])
                kept.update({key: tensors[0].squeeze(0) for key, tensors in fresh.items()})
            for key, tensor in kept.items():
                state.setdefault(key, []).append(tensor.unsqueeze(0))
        return state

    def _restore_float32(self, saved: Mapping[str, Any]) -> None:
        """Undo torch's cast of the state to the parameters' dtype."""
        saved_ids = [i for group in saved["param_groups"] for i in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for i, param in zip(saved_ids, params, strict=True):
            if i in saved["state"] and param.dtype != torch.float32:
                copies = {key: value.to(param.device, copy=True) for key, value in saved["state"][i].items()}
                self.state[param] = copies

    def _warn_beyond_horizon(self) -> None:
        total = self._num_training_steps
        if total is None or self._inner_step < total or self._warned_beyond_horizon:
            return
        self._warned_beyond_horizon = True
        warnings.warn(
            f"step {self._inner_step} is beyond num_training_steps={total}; the step size stays that of the last step. "
            "Set optimizer.num_training_steps to train longer",
            stacklevel=4,
        )


class MuLO(LearnedOptimizer):
    """The recommended learned optimizer: "mulo-norm" if the length of the run is given, else "mulo".

    Args:
        params: as of `LearnedOptimizer`.
        theta: other meta-parameters.
        num_training_steps: horizon T of the run.
        options: as of `LearnedOptimizer`.
    """

    def __init__(
        self,
        params: Params,
        theta: str | Path | Pretrained | None = None,
        *,
        num_training_steps: int | None = None,
        **options: Any,
    ) -> None:
        recommended = WITHOUT_HORIZON if num_training_steps is None else WITH_HORIZON
        super().__init__(params, theta or recommended, num_training_steps=num_training_steps, **options)


def _is_sharded(param: Tensor) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(param, DTensor)


def _check_options(
    *,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    nonfinite: str = "skip",
    num_training_steps: int | None = None,
) -> None:
    if not lr >= 0:
        raise ValueError(f"lr must be at least 0, got {lr}")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {NONFINITE}, got {nonfinite!r}")
    if num_training_steps is not None and num_training_steps < 1:
        raise ValueError(f"num_training_steps must be positive, got {num_training_steps}")
