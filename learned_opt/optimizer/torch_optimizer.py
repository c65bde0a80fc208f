"""Learned optimizers as torch optimizers.

    opt = MuLO(model, num_training_steps=10_000)       # no learning rate to choose
    opt = MuLO(model)                                  # of unknown length: call opt.eval() before the model is used

`lr` multiplies the rule's own step and is 1 unless one wishes otherwise; any `lr_scheduler` works on it, those that
cycle a momentum too, though the momentum of a learned rule stays its own. Weight decay is decoupled and in units of the
rule's base step, so that the usual values (0.01 to 0.1) are sensible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learned_opt.optimizer.averaging import holds_averages, show_averages, show_iterates, update_averages
from learned_opt.optimizer.checks import check_options, check_param, checked_horizon
from learned_opt.optimizer.counters import COUNTERS, advance, read_counters
from learned_opt.optimizer.gradients import Pending, gradients_of, known, largest_entries, to_update
from learned_opt.optimizer.loading import fit, theta_of
from learned_opt.optimizer.param_groups import Params, groups_of_model, groups_of_params, tensors_of
from learned_opt.optimizer.remarks import LATE_STEP, Remarks
from learned_opt.optimizer.skipped_steps import SkippedSteps
from learned_opt.optimizer.whole_tensors import complete_state, update_whole
from learned_opt.pretrained.files import Pretrained, Source, load_pretrained
from learned_opt.rules.rule import reads_loss
from zoo.devices import sent
from zoo.remarks import warn

RECOMMENDED: Final = {True: "mulo-wide", False: "mulo-norm"}  # by whether the number of steps is known
AVERAGE_POWER: Final = 20.0  # of the average where no horizon is known: over about the last 5% of the run

# Kept in every parameter group, where any way of saving optimizers finds them.
_COMMON: Final = (*COUNTERS, "num_training_steps", "theta_hash", "average", "train_mode")

# Kept of the optimizer itself where it is pickled or copied.
_OWN: Final = ("pretrained", "kahan_sum", "_is_recommended", "_is_loaded", "_remarks", "_skips")


class LearnedOptimizer(Optimizer):
    """An update rule with its meta-parameters, as a torch optimizer.

    A tensor without a gradient, or with one that is zero everywhere (an expert without tokens, a parameter that a step
    of DDP did not use), stays as it is, and nothing of it enters the updates of others. Under `torch.compile` a step
    runs as it does without. A step never waits for a GPU: whether gradients are finite is decided there, and counters,
    and a warning that all steps are skipped, come when they are asked for or the state is saved.

    Parameters may be sharded (DTensor: FSDP2, HSDP, tensor parallelism): give the model after `fully_shard`. Every rank
    updates its share of the matrices, whole, and its shards of all else, and keeps its shards of momenta and second
    moments (see `sharded`).

    Args:
        params: a model, whose tensors' roles are inferred (see `zoo.networks.roles`); or parameters, named parameters
            or groups as torch takes them, whose roles are guessed unless a group has a "role".
        theta: a name of `available()`, a file, whatever else `load_pretrained` takes, or a `Pretrained`; default
            "mulo-wide" where `num_training_steps` is given and "mulo-norm" where it is not, or what a state that is
            loaded was made with, if it is one of the two.
        num_training_steps: horizon T of the run; infinity is no horizon. Steps beyond it keep the last step size, with
            one warning.
        lr: multiplier of the update.
        weight_decay: decoupled, in units of the rule's base step; default the learned decay of the rule, 0 is none.
            Given a model, biases and norms are in a second group without it.
        maximize: ascend instead of descend.
        nonfinite: what to do with infinite or NaN gradients, or such a loss where the rule reads it: "skip" the whole
            step and count it in `num_skipped_steps`, or "raise", for which each step waits for the device.
        average: p of an average of the weights over about the last 1 / (p + 1) of the run, for runs without a horizon;
            None for none. `eval()` puts it into the model and `train()` takes it out again; both do nothing without.
        kahan_sum: keep what rounding takes from parameters in half precision (two bytes for each number) and add it
            before the next update; without it updates that are small beside their weights are lost.
        roles: roles by parameter name or pattern ("blocks.*.mlp.*") that override the inferred ones; only with a model.
        depth: residual branches or hidden layers, default inferred.

    Raises:
        TypeError: for parameters that are no tensors.
        ValueError: for bad options, no parameters, or complex or flattened ones.
    """

    def __init__(
        self,
        params: Params,
        theta: Source | Pretrained | None = None,
        *,
        num_training_steps: float | None = None,
        lr: float | Tensor = 1.0,
        weight_decay: float | None = None,
        maximize: bool = False,
        nonfinite: str = "skip",
        average: float | None = None,
        kahan_sum: bool = True,
        roles: Mapping[str, str] | None = None,
        depth: int | None = None,
    ) -> None:
        check_options(lr=lr, weight_decay=weight_decay, nonfinite=nonfinite, average=average, depth=depth, roles=roles)
        horizon = checked_horizon(num_training_steps)
        self._is_recommended = theta is None
        theta = RECOMMENDED[horizon is not None] if theta is None else theta
        self.pretrained = theta if isinstance(theta, Pretrained) else load_pretrained(theta)
        self.kahan_sum = kahan_sum
        self._thetas: dict[torch.device, Tensor] = {}
        self._remarks = Remarks()
        self._most_steps = 0  # no fewer than `inner_step`, which may be on a device
        self._skips = SkippedSteps(raises=nonfinite == "raise")
        if average is None and horizon is None:
            average = self.default_average
        if isinstance(params, nn.Module):
            groups = groups_of_model(params, roles, depth, weight_decay)
        elif roles is not None:
            raise ValueError('roles needs the model itself; parameter groups carry {"params": ..., "role": ...}')
        else:
            groups = groups_of_params(params, depth)
        options = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "momentum": None}
        common = (0, 0, horizon, self.pretrained.hash, average, True)
        super().__init__(groups, options | dict(zip(_COMMON, common, strict=True)))
        if horizon is None and average is None and self.pretrained.rule.uses_horizon:
            warn(
                "num_training_steps is not given, so the step does not fall to zero; give it, or an average of the "
                "weights (average=8 and optimizer.eval()), to end lower"
            )

    default_average: float | None = None  # where there is no horizon
    _is_loaded = False  # and has not been used since
    _loading: Mapping[str, Any] | None = None  # while it is loaded

    @property
    def num_training_steps(self) -> int | None:
        """Horizon T; it may be changed at any time, and the meta-parameters stay. Where it is taken away, an average
        begins if one is the default."""
        return self.param_groups[0]["num_training_steps"]

    @num_training_steps.setter
    def num_training_steps(self, value: float | None) -> None:
        horizon = checked_horizon(value)
        for group in self.param_groups:
            group["num_training_steps"] = horizon
            if horizon is None and group["average"] is None:
                group["average"] = self.default_average
        self._remarks.forget("horizon")

    @property
    def inner_step(self) -> int:
        """Updates made so far."""
        return int(self.param_groups[0]["inner_step"])

    @property
    def num_skipped_steps(self) -> int:
        """Steps skipped so far because gradients were not finite."""
        self._report_skips()
        return int(self.param_groups[0]["num_skipped_steps"])

    def eval(self) -> None:
        """Put the averages into the model, to evaluate or save it. BatchNorm's statistics stay those of the iterates:
        `torch.optim.swa_utils.update_bn(loader, model)` gives it those of the averages."""
        if self._set_mode(is_training=False):
            show_averages(self._all_params(), self.state)

    def train(self) -> None:
        """Put the weights into the model that training goes on from."""
        if self._set_mode(is_training=True):
            show_iterates(self._all_params(), self.state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; roles come from its "role" or are guessed, names are made up where the others have some."""
        if "roles" not in param_group:
            (param_group,) = groups_of_params([param_group], beside=self.param_groups)
        for param in tensors_of(param_group):
            check_param(param)
        common = self.param_groups[0] if self.param_groups else self.defaults
        for key in ("num_training_steps", "average"):
            if param_group.get(key, common[key]) != common[key]:
                raise ValueError(f"{key} is one for all groups, {common[key]!r}, got {param_group[key]!r} for a group")
        param_group |= {key: common[key] for key in _COMMON}
        if self.param_groups:
            entries, place = param_group["params"], len(self.param_groups)
            if "param_names" in self.param_groups[0] and not any(isinstance(entry, tuple) for entry in entries):
                param_group["params"] = [(f"group{place}.{i}", entry) for i, entry in enumerate(entries)]
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        check_options(lr=group["lr"], weight_decay=group["weight_decay"])
        self._remarks.of_small_lr([group])

    @overload
    def step(self, closure: None = None, *, loss: float | Tensor | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, loss: float | Tensor | None = None) -> float: ...

    @torch._disable_dynamo  # kernels in C, and state that appears when a tensor has its first gradient
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, loss: float | Tensor | None = None) -> float | None:
        """Update every parameter that has a gradient; where none has, nothing changes.

        Args:
            closure: computes gradients and returns the loss.
            loss: that the gradients are of, for a rule that reads it (VeLO's) and has no closure to tell it; with
                several processes the mean over them, so that all make the same update.

        Returns:
            What the closure returned, None without one.

        Raises:
            NonFiniteGradientError: if a gradient is not finite and `nonfinite` is "raise".
            RuntimeError: after `eval()`.
            ValueError: if the rule reads the loss and it is not given.
        """
        first = self.param_groups[0]
        if not first["train_mode"]:
            raise RuntimeError("the model holds averaged weights; call optimizer.train() before training goes on")
        self._report_modes()
        returned = None
        if closure is not None:
            with torch.enable_grad():
                returned = closure()
        pending = [entry for group in self.param_groups for entry in gradients_of(group)]
        self._remarks.of_gradients(len(pending), self._all_params())
        if not pending:
            return returned
        told = self._told(returned if loss is None else loss)
        largest = self._largest_entries(pending, told)
        is_skipped = self._skips.decide(pending, largest, first["inner_step"])
        advance(self.param_groups, "num_skipped_steps", is_skipped)
        if is_skipped is True:
            self._report_skips()
            return returned
        for entry in pending:  # also of zero gradients: that is how torch.distributed.checkpoint asks for state
            entry.state = self.state[entry.param]
            complete_state(entry, self.pretrained.rule, kahan_sum=self.kahan_sum)
        has_gradient = largest != 0 if is_skipped is False else (largest != 0) & ~is_skipped
        if pending := to_update(pending, has_gradient):
            self._update(pending, told, is_update=known(has_gradient.any()))
        return returned

    def state_dict(self) -> dict[str, Any]:
        """As of torch.optim, counters and NumPy's scalars as Python numbers, for files of weights alone."""
        self._report_skips()
        for group in self.param_groups:
            group.update({key: value.item() for key, value in group.items() if isinstance(value, np.generic)})
        with read_counters(self.param_groups):
            return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit for bit where `state_dict()` was taken.

        The horizon given to the constructor, if any, and the roles go before the saved ones.

        Raises:
            ThetaMismatchError: if the state is of other meta-parameters.
        """
        own = self.pretrained
        handle = self.register_load_state_dict_pre_hook(_note_loading)  # after the user's hooks, which may replace it
        try:
            super().load_state_dict(state_dict)
        except BaseException:
            self.pretrained, self._thetas = own, {}
            raise
        finally:
            handle.remove()
            self._loading = None

    def __getstate__(self) -> dict[str, Any]:
        self._report_skips()
        with read_counters(self.param_groups):
            groups = [dict(group) for group in self.param_groups]
        own = {name: getattr(self, name) for name in _OWN}
        return {**super().__getstate__(), "param_groups": groups, **own, "_thetas": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if self._loading is not None:  # before the user's hooks that run after loading
            fit(state, self._loading, self.param_groups, self.pretrained.rule)
            self._is_loaded = True
        super().__setstate__(state)
        self._most_steps = self.inner_step

    def _told(self, loss: float | Tensor | None) -> dict[str, Tensor]:
        """What the rule is told of the step besides gradients: the loss, if it reads it."""
        if not reads_loss(self.pretrained.rule):
            return {}
        if loss is None:
            raise ValueError(
                f"rule {self.pretrained.rule.name!r} reads the loss, got none; call optimizer.step(loss=loss), or "
                "optimizer.step(closure) with a closure that returns it"
            )
        return {"loss": torch.as_tensor(loss, dtype=torch.float32).detach().mean()}

    def _largest_entries(self, pending: Sequence[Pending], told: Mapping[str, Tensor]) -> Tensor:
        """Largest absolute entry of the gradient of every whole matrix; none is finite if the loss is not."""
        largest = largest_entries([entry.grad for entry in pending])
        if "loss" in told:  # what is not finite would stay in the rule's averages
            largest = largest.masked_fill(~sent(told["loss"].isfinite(), largest.device), torch.nan)
        if all(entry.sharding is None for entry in pending):
            return largest
        if getattr(self.pretrained.rule, "mixes_tensors", False):
            raise ValueError(
                f"rule {self.pretrained.rule.name!r} looks at all tensors at once, got sharded ones; use DDP"
            )
        from learned_opt.optimizer.sharded import largest_over_ranks

        return largest_over_ranks(pending, largest)

    def _update(self, pending: Sequence[Pending], told: Mapping[str, Tensor], *, is_update: bool | Tensor) -> None:
        """Run the rule, then what follows the parameters: averages and the counter."""
        self._report_settings()
        first, rule = self.param_groups[0], self.pretrained.rule
        inner_step, power, horizon = first["inner_step"], first["average"], first["num_training_steps"]
        update = partial(update_whole, rule, self._theta_on, inner_step=inner_step, num_steps=horizon, told=told)
        update([entry for entry in pending if entry.sharding is None])
        if sharded := [entry for entry in pending if entry.sharding is not None]:
            from learned_opt.optimizer.sharded import update_sharded

            update_sharded(sharded, rule, update)
        if power is not None:
            update_averages(self._all_params(), self.state, power=power, inner_step=inner_step, by=is_update)
        advance(self.param_groups, "inner_step", is_update)
        self._most_steps += 1

    def _theta_on(self, device: torch.device) -> Tensor:
        """The meta-parameters, copied to a device once."""
        if device not in self._thetas:
            self._thetas[device] = sent(self.pretrained.theta, device)
        return self._thetas[device]

    def _set_mode(self, *, is_training: bool) -> bool:
        """Whether there are averages, so that there is something to show."""
        self._report_modes()
        for group in self.param_groups:
            group["train_mode"] = is_training or group["average"] is None
        return self.param_groups[0]["average"] is not None

    def _all_params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _report_modes(self) -> None:
        is_mixed = self._is_loaded and self.param_groups[0]["train_mode"] and self.inner_step > 1
        self._is_loaded = False
        if is_mixed and holds_averages(self._all_params(), self.state):
            self._remarks.of_modes()

    def _report_skips(self) -> None:
        self._remarks.of_skips(self._skips.num_in_a_row, self._skips.names())

    def _report_settings(self) -> None:
        horizon = self.num_training_steps
        if horizon is not None and self._most_steps >= horizon and not self._remarks.is_said("horizon"):
            self._most_steps = self.inner_step  # may have to wait for the device, at the end of a run
            self._remarks.of_horizon(self._most_steps, horizon)
        if self._most_steps == LATE_STEP:
            self._remarks.of_small_lr(self.param_groups)
        self._remarks.of_momentum(self.param_groups)


class MuLO(LearnedOptimizer):
    """The recommended learned optimizer.

    Given the length of the run its steps fall to zero at the end. Without it, or with an infinite one, what to keep at
    any time is the average of the weights: call `optimizer.eval()` before the model is evaluated or saved, and
    `optimizer.train()` before training goes on, as with Schedule-Free optimizers. BatchNorm's running statistics are
    those of the iterates; after `eval()`, `torch.optim.swa_utils.update_bn(loader, model)` makes them fit.

    Its arguments are those of `LearnedOptimizer`. The meta-parameters are "mulo-wide" where `num_training_steps` is
    given; where it is not, they are "mulo-norm", and `average` is AVERAGE_POWER.
    """

    default_average = AVERAGE_POWER


def _note_loading(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Refuse the state of other meta-parameters, and keep it for `__setstate__`."""
    assert isinstance(optimizer, LearnedOptimizer)
    others = RECOMMENDED.values() if optimizer._is_recommended else ()
    optimizer.pretrained, optimizer._thetas = theta_of(state_dict, optimizer.pretrained, others), {}
    optimizer._loading = state_dict
