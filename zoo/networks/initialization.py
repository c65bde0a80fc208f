"""Initial parameters of populations: each run exactly as its seed alone would make it.

Legend: N networks, P numbers of one network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import index
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.networks.layout import ParamLayout
from zoo.networks.randomness import seeded_module

_MOST_RECORDED: Final = 2**20  # parameters; large ones take long to draw, not to build
_SCALED_ROLES: Final = ("input", "hidden", "output", "embedding")


def derive_seed(*parts: int | str) -> int:
    """Seed in [0, 2**63) that is a fixed hash of its parts, such as the seed of a zoo and the number of a run."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def run_seed(zoo_seed: int, run: int) -> int:
    """Seed of run number `run` of a zoo."""
    return derive_seed(zoo_seed, "run", run)


class Initializer:
    """Makes the parameters of networks that are each built under one seed, without building them.

    What building one does to tensors is recorded and repeated under other seeds, which takes a tenth of the time. Where
    that does not give what another seed builds, or building reads what was drawn, every network is built.

    Args:
        make_model: builds a module, drawing from the global generator of the CPU.
        layout: of that module.
    """

    def __init__(self, make_model: Callable[[], nn.Module], layout: ParamLayout) -> None:
        self._make_model = make_model
        self._layout = layout
        self._program: _Program | None = None
        if layout.num_params > _MOST_RECORDED:
            return
        recording, dtype = _Recording(), self._built(0).dtype
        with suppress(_ReadError):
            with recording:
                state = seeded_module(make_model, 0).state_dict()
                params = torch.cat([state[slot.name].flatten().to(dtype) for slot in layout])
            program = _Program(recording.calls, params)
            if torch.equal(program([1]), self._all_built([1])):
                self._program = program

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """Parameters (N, P), row i as `make_model` gives them under `seeds[i]`; no random state is changed."""
        return (self._program or self._all_built)(seeds)

    def _all_built(self, seeds: Sequence[int]) -> Tensor:
        return torch.stack([self._built(seed) for seed in seeds])

    def _built(self, seed: int) -> Tensor:
        return self._layout.flatten(seeded_module(self._make_model, seed))


class _ReadError(RuntimeError):
    """Building a network reads a number out of a tensor."""


class _Call(NamedTuple):
    operator: OpOverload
    args: tuple
    kwargs: dict
    results: list


class _Recording(TorchDispatchMode):
    """Operators in the order of their calls, with what went in and came out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if torch.Tag.data_dependent_output in func.tags:
            raise _ReadError
        result = func(*args, **(kwargs or {}))
        self.calls.append(_Call(func, args, kwargs or {}, tree_leaves(result)))
        return result


class _Program:
    """Calls that make a tensor, to be made again, without those that would make what is there or nothing of use."""

    def __init__(self, calls: Sequence[_Call], wanted: Tensor) -> None:
        self._wanted = id(wanted)
        changing: list[_Call] = []
        remade: set[int] = set()
        for call in calls:
            is_view = all(value.alias_info and not value.alias_info.is_write for value in call.operator._schema.returns)
            if not is_view or remade & _ids(call.args):
                changing.append(call)
                remade |= _ids(call.results) - _ids(call.args)
        used = {id(wanted)}
        self._calls: list[_Call] = []
        for call in reversed(changing):
            if call.operator._schema.is_mutable or used & _ids(call.results):
                self._calls.insert(0, call)
                used |= _ids((call.args, call.kwargs))

    @torch.no_grad()
    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """(N, ...) what `wanted` becomes under each seed."""
        with torch.random.fork_rng(devices=[]):
            return torch.stack([self._made(seed) for seed in seeds])

    def _made(self, seed: int) -> Tensor:
        torch.default_generator.manual_seed(index(seed))
        made: dict[int, object] = {}

        def current(value: object) -> object:
            return [current(one) for one in value] if type(value) is list else made.get(id(value), value)

        for operator, args, kwargs, results in self._calls:
            given = {name: current(value) for name, value in kwargs.items()}
            again = operator(*[current(value) for value in args], **given)
            made |= zip(map(id, results), [again] if isinstance(again, Tensor) else tree_leaves(again), strict=True)
        result = made[self._wanted]
        assert isinstance(result, Tensor)
        return result


def _ids(values: object) -> set[int]:
    return {id(value) for value in tree_leaves(values) if isinstance(value, Tensor)}


def scale_matrices(params: Tensor, layout: ParamLayout, scales: Tensor | float) -> Tensor:
    """Networks (N, P) after their matrices and embeddings were multiplied in place by a factor, one or (N,)."""
    if not isinstance(scales, Tensor) and scales == 1:
        return params
    factors = torch.as_tensor(scales, dtype=params.dtype, device=params.device).reshape(-1, 1)
    if len(factors) not in (1, len(params)):
        raise ValueError(f"expected one scale, or one for each of {len(params)} networks, got {len(factors)}")
    for slot in layout:
        if slot.role in _SCALED_ROLES:
            params[:, slot.span] *= factors
    return params
