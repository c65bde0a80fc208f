"""Several networks made one, by the name of a method; parameters are combined, buffers follow a rule of their own.

Buffers that hold real numbers, such as the statistics of BatchNorm, are averaged with the weights that the networks
have in the result: they are no directions of training, and a sum of differences would make variances negative.
Integers and truth values, such as counters of batches, are those of the last network. Teleportation moves buffers with
the units that they belong to. Low-rank adapters are averaged by their products, whatever their factors.

Legend: N networks, P numbers of one network, P' those of them that are trained.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

from zoo.ambient import torch_defaults
from zoo.networks import low_rank
from zoo.networks.layout import ParamLayout
from zoo.operations.averages import average, exponential_average, exponential_weights, greedy_soup, normalized_weights
from zoo.operations.extrapolation import extrapolate
from zoo.operations.merging import dare, task_arithmetic, ties
from zoo.operations.networks import Networks
from zoo.operations.teleportation import teleport

Evaluate: TypeAlias = Callable[[Tensor], Tensor]
_BY_PRODUCTS: Final = ("average", "exponential_average")  # how adapters are combined in these methods


class Combined(NamedTuple):
    """A network (P,), and remarks on what to look at."""

    params: Tensor
    remarks: list[str]


@torch_defaults()
def combine(
    networks: Networks,
    method: str,
    *,
    base: Networks | None = None,
    evaluate: Evaluate | None = None,
    seed: int = 0,
    **settings: object,
) -> Combined:
    """One network of several.

    Args:
        networks: in the order of training where that matters.
        method: average, exponential_average, greedy_soup, task_arithmetic, ties, dare, extrapolate or teleport.
        base: one network, with which the trainings began, for methods that need it.
        evaluate: held-out losses (n,) of networks (n, P), for greedy_soup.
        seed: of what is random.
        settings: further arguments of the function of that name in this package.

    Raises:
        ValueError: for an unknown method, settings that are not its own, or what it needs and was not given.
    """
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
    function, apply = METHODS[method]
    parameters = (*inspect.signature(function).parameters.values(), *inspect.signature(apply).parameters.values())
    known = {parameter.name for parameter in parameters if parameter.default is not parameter.empty}
    if unknown := sorted(settings.keys() - known):
        raise ValueError(f"{method} has no settings {unknown}; it takes {sorted(known)}")
    trained, weights = apply(_Given(networks, base, evaluate, seed), **settings)
    if not trained.isfinite().all():
        raise ValueError(f"{method} with {settings or 'these networks'} gives NaN or infinity")
    if method == "teleport":
        return Combined(trained, [])
    buffers, remarks = _combined_buffers(networks.layout, networks.params, weights)
    by_products = low_rank.has_adapters(networks.layout)
    if by_products and method in _BY_PRODUCTS:
        remarks.append("adapters were averaged by their products: what is nearest to the mean at the same rank")
    elif by_products or any("lora_A" in slot.name for slot in networks.layout):
        remarks.append("adapters were combined factor by factor, which is not their products combined")
    return Combined(torch.cat([trained, buffers]), remarks)


@dataclass(frozen=True)
class _Given:
    networks: Networks
    base: Networks | None
    evaluate: Evaluate | None
    seed: int

    @property
    def trained(self) -> Tensor:
        """(N, P')."""
        return self.networks.trained()

    def mean(self, shares: Tensor) -> Tensor:
        """The mean (P',) with shares (N,) that sum to one."""
        if not low_rank.has_adapters(self.networks.layout):
            return average(self.trained, shares)
        return low_rank.mean(self.networks.layout, self.networks.params, shares)[: self.trained.shape[1]]

    def base_of(self, method: str) -> Tensor:
        """(P',) of the base."""
        if self.base is None or len(self.base.params) != 1:
            raise ValueError(f"{method} needs base=..., the one network with which all of these trainings began")
        return self.base.trained()[0]


def _average(given: _Given, weights: Sequence[float] | None = None) -> tuple[Tensor, Tensor]:
    shares = normalized_weights(weights, given.trained)
    return given.mean(shares), shares


def _exponential_average(given: _Given, **settings: float) -> tuple[Tensor, Tensor]:
    shares = exponential_weights(len(given.trained), **settings)
    return given.mean(shares), shares


def _greedy_soup(given: _Given) -> tuple[Tensor, Tensor]:
    if given.evaluate is None:
        raise ValueError("greedy_soup chooses by held-out losses: it needs the task that the networks were trained on")
    soup = greedy_soup(given.networks.params, given.evaluate)
    shares = torch.zeros(len(given.trained)).index_fill(0, torch.tensor(soup.members), 1 / len(soup.members))
    return soup.params[: given.trained.shape[1]], shares


def _task_arithmetic(given: _Given, **settings: float) -> tuple[Tensor, None]:
    return task_arithmetic(given.trained, given.base_of("task_arithmetic"), **settings), None


def _ties(given: _Given, **settings: float) -> tuple[Tensor, None]:
    return ties(given.trained, given.base_of("ties"), **settings), None


def _dare(given: _Given, **settings: float) -> tuple[Tensor, None]:
    rng = torch.Generator(given.trained.device).manual_seed(given.seed)
    return dare(given.trained, given.base_of("dare"), rng, **settings), None


def _extrapolate(
    given: _Given, to_step: float | None = None, sizes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    steps = [step for step in given.networks.steps if step is not None]
    if to_step is None or len(steps) < len(given.networks.steps):
        raise ValueError("extrapolate needs to_step, and the inner step of every network, as snapshots of a run have")
    sizes = sizes or [slot.numel for slot in given.networks.layout if slot.kind == "param"]
    last = torch.zeros(len(steps)).index_fill(0, torch.tensor([len(steps) - 1]), 1)
    return extrapolate(given.trained, steps, to_step, sizes), last


def _teleport(given: _Given, **settings: float) -> tuple[Tensor, None]:
    if len(given.networks.params) != 1:
        raise ValueError(f"teleport moves one network, got {len(given.networks.params)}")
    rng = torch.Generator(given.trained.device).manual_seed(given.seed)
    return teleport(given.networks.layout, given.networks.params, rng, **settings)[0], None


METHODS: Final[Mapping[str, tuple[Callable, Callable]]] = {
    "average": (average, _average),
    "exponential_average": (exponential_average, _exponential_average),
    "greedy_soup": (greedy_soup, _greedy_soup),
    "task_arithmetic": (task_arithmetic, _task_arithmetic),
    "ties": (ties, _ties),
    "dare": (dare, _dare),
    "extrapolate": (extrapolate, _extrapolate),
    "teleport": (teleport, _teleport),
}


def _combined_buffers(layout: ParamLayout, params: Tensor, weights: Tensor | None) -> tuple[Tensor, list[str]]:
    """All numbers (P - P',) that are not trained, and remarks on them."""
    shares = normalized_weights(weights, params)
    combined, remarks = [params.new_zeros(0)], []
    for slot in layout:
        if slot.kind == "param":
            continue
        values = params[:, slot.span]
        is_real = slot.torch_dtype.is_floating_point
        combined.append(shares @ values if is_real else values[-1])
        is_count = slot.name.endswith("num_batches_tracked")
        if not (is_real or is_count) and not bool((values == values[-1]).all()):
            remarks.append(f"{slot.name} differs between the networks; the last one's was taken")
    if any(slot.role == "running_var" for slot in layout):
        remarks.append("statistics of BatchNorm are averages; recompute them on training data for the best result")
    return torch.cat(combined), remarks
