"""A network as one flat vector: ordered slots, their roles, and the sets of units that can be exchanged.

Legend: P numbers of one network (all parameters, then all persistent buffers), `...` any leading dims.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from zoo.networks.roles import ROLES, infer_roles

_VERSION: Final = 2  # which a layout without a base does not need
LARGE: Final = 2**20  # numbers of a network from which on one at a time fills the machine
GROUP_KINDS: Final = ("permutation", "linear")
_EXACT_INTEGERS: Final = 2**24  # integers up to here are exact in float32
_LOW_RANK: Final = re.compile(r"((?:.*\.)?)lora_(embedding_)?A((?:\..*)?)")
_OUTSIDE: Final = re.compile(r"lora_magnitude_vector|lora_ranknum|lora_B(\.[^.]+)?\.bias$")  # of the product B A


class LayoutMismatchError(ValueError):
    """Tensors that do not fit a layout: missing, unexpected or misshapen."""


@dataclass(frozen=True)
class ParamSlot:
    """One named tensor and its place `offset : offset + numel` in the flat vector."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    role: str
    fan_in: int
    offset: int
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("param", "buffer"):
            raise ValueError(f"kind of slot {self.name!r} must be 'param' or 'buffer', got {self.kind!r}")
        if self.role not in ROLES:
            raise ValueError(f"role of slot {self.name!r} must be one of {ROLES}, got {self.role!r}")

    @cached_property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def span(self) -> slice:
        return slice(self.offset, self.offset + self.numel)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class GroupAxis:
    """An axis of a slot that is indexed by the units of a symmetry group.

    Each unit owns `unit_size` neighbouring entries of the axis (the dims of an attention head, the pixels of a
    flattened channel). Where units may also be scaled (ReLU networks), a factor s > 0 multiplies the slot by
    s ** scale_power along the axis.
    """

    slot: str
    axis: int
    unit_size: int = 1
    scale_power: int = 0


@dataclass(frozen=True)
class SymmetryGroup:
    """A set of `size` units of a network that may be permuted without changing what it computes.

    The units of a "linear" group, such as the components of a low-rank product B A, may be mixed by any invertible
    matrix G: the slot of its first axis becomes G^-1 A, that of its second B G (see `zoo.networks.low_rank`).
    """

    name: str
    size: int
    axes: tuple[GroupAxis, ...]
    kind: str = "permutation"

    def __post_init__(self) -> None:
        if self.kind not in GROUP_KINDS or (self.kind == "linear" and len(self.axes) != 2):
            raise ValueError(
                f"kind of group {self.name!r} must be one of {GROUP_KINDS}, a linear one with two axes; "
                f"got {self.kind!r} with {len(self.axes)}"
            )


@runtime_checkable
class HasSymmetryGroups(Protocol):
    """A module that knows which of its units are interchangeable."""

    def symmetry_groups(self) -> tuple[SymmetryGroup, ...]: ...


@dataclass(frozen=True)
class ParamLayout:
    """The one view of a network as a vector.

    Slots are in state-dict order, parameters before buffers, without gaps, so `vector[..., :num_trainable]` is what
    an optimizer may change. Build it with `ParamLayout.of(module)`.

    Attributes:
        slots: the tensors that the vector holds.
        groups: interchangeable units.
        base: layout of the tensors that all networks share, such as a frozen network under adapters; they are no part
            of the vector. None if there are none.
    """

    slots: tuple[ParamSlot, ...]
    groups: tuple[SymmetryGroup, ...] = ()
    base: ParamLayout | None = None
    _by_name: dict[str, ParamSlot] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {slot.name: slot for slot in self.slots})
        offset = 0
        for slot in self.slots:
            if slot.offset != offset:
                raise ValueError(f"slot {slot.name!r} must begin at {offset}, got {slot.offset}")
            offset += slot.numel
        for group in self.groups:
            _check_group(group, self._by_name)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        *,
        roles: Mapping[str, str] | None = None,
        groups: tuple[SymmetryGroup, ...] | None = None,
        shared: Collection[str] = (),
    ) -> ParamLayout:
        """Layout of a module's parameters and persistent buffers.

        Args:
            module: any module; tied tensors take one slot with aliases.
            roles: roles by name or pattern that override the inferred ones.
            groups: interchangeable units; default those of `module.symmetry_groups()` if it has that method, as far as
                they index no shared tensor, and the components of its low-rank adapters.
            shared: names of parameters and buffers that all networks share: they make up `base`.

        Raises:
            ValueError: for state that is no real tensor (extra state, complex numbers), or bad roles or groups.
        """
        inferred = infer_roles(module, roles)
        held = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        held_names = {id(tensor): name for name, tensor in reversed(held)}  # hooks may save tensors under other names
        named: dict[int, list[str]] = {}
        tensors: dict[int, Tensor] = {}
        for name, value in module.state_dict(keep_vars=True).items():
            if not isinstance(value, Tensor) or value.is_complex():
                got = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"state {name!r} must be a real tensor, got {got}")
            if id(value) not in held_names:
                raise ValueError(
                    f"state {name!r} is made by a hook of the state dict: it is no parameter and no buffer"
                )
            tensors[id(value)] = value
            named.setdefault(id(value), []).append(name)
        slots: dict[bool, list[ParamSlot]] = {False: [], True: []}  # by whether they are shared
        offsets = {False: 0, True: 0}
        for key, value in sorted(tensors.items(), key=lambda item: not isinstance(item[1], nn.Parameter)):
            (name, *aliases), known = named[key], inferred[held_names[key]]
            kind = "param" if isinstance(value, nn.Parameter) else "buffer"
            shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
            is_shared = not {name, *aliases}.isdisjoint(shared)
            offset = offsets[is_shared]
            slot = ParamSlot(name, shape, dtype, kind, known.role, known.fan_in, offset, tuple(aliases))
            slots[is_shared].append(slot)
            offsets[is_shared] += value.numel()
        own = {slot.name: slot.shape for slot in slots[False]}
        if groups is None:
            declared = module.symmetry_groups() if isinstance(module, HasSymmetryGroups) else ()
            groups = tuple(group for group in declared if all(axis.slot in own for axis in group.axes))
            groups += low_rank_groups(own)
        return cls(tuple(slots[False]), groups, cls(tuple(slots[True])) if slots[True] else None)

    def __iter__(self) -> Iterator[ParamSlot]:
        return iter(self.slots)

    def __getitem__(self, name: str) -> ParamSlot:
        """Slot of that name; KeyError with the known names otherwise."""
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(f"no slot {name!r}; the layout has {list(self._by_name)}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, under each of which they may be given; those of the base come last."""
        own = tuple(name for slot in self.slots for name in (slot.name, *slot.aliases))
        return own if self.base is None else own + self.base.names

    @cached_property
    def num_params(self) -> int:
        """Length P of the flat vector, buffers included."""
        return sum(slot.numel for slot in self.slots)

    @cached_property
    def num_trainable(self) -> int:
        """Length of the leading part that holds trainable parameters."""
        return sum(slot.numel for slot in self.slots if slot.kind == "param")

    @property
    def is_large(self) -> bool:
        """Whether one network at a time fills the machine, so that nothing is gained by several."""
        return self.num_params >= LARGE

    def flatten(self, source: nn.Module | Mapping[str, Tensor]) -> Tensor:
        """Flat vector (..., P) of a module or of named tensors, which may share leading dims.

        A tied tensor may have any of its names, or several if they hold the same. Tensors of the base may be there.
        The dtype is float32, or float64 where a slot has that. Integer and boolean buffers are exact in it; a zoo that
        stores float16 or bfloat16 rounds them like everything else.

        Raises:
            LayoutMismatchError: if tensors are missing, unexpected or misshapen, or tied names hold different numbers.
            ValueError: if an integer is too large to be exact in float32.
        """
        tensors = source.state_dict() if isinstance(source, nn.Module) else source
        values, lead = self._fitting(tensors)
        dtype = torch.float64 if any(slot.dtype == "float64" for slot in self.slots) else torch.float32
        parts = []
        for slot, value in zip(self.slots, values, strict=True):
            if not value.is_floating_point() and not _is_exact(value):
                raise ValueError(f"integers in {slot.name!r} exceed 2**24 and would not be exact in float32")
            parts.append(value.reshape((*lead, slot.numel)).to(dtype))
        return torch.cat(parts, dim=-1) if parts else torch.zeros(*lead, 0, dtype=dtype)  # (..., P)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Named tensors (..., *shape) of a flat vector, as `load_state_dict` takes them.

        They are views of the vector where its dtype is the slot's. Tied tensors appear under each of their names.
        """
        named = {}
        for slot, view in zip(self.slots, self.views(vector).values(), strict=True):
            value = view if slot.torch_dtype.is_floating_point else view.round()
            value = value.to(slot.torch_dtype)
            for name in (slot.name, *slot.aliases):
                named[name] = value
        return named

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Views (..., *shape) of a flat vector by slot name, all in the vector's own dtype."""
        self.check_vector(vector)
        lead = vector.shape[:-1]
        parts = vector.split([slot.numel for slot in self.slots], dim=-1)  # whose gradient is one concatenation
        return {slot.name: part.view((*lead, *slot.shape)) for slot, part in zip(self.slots, parts, strict=True)}

    def check_vector(self, vector: Tensor) -> None:
        """Raise LayoutMismatchError unless the last dim of the vector is P."""
        if vector.ndim == 0 or vector.shape[-1] != self.num_params:
            got = "a scalar" if vector.ndim == 0 else f"a vector of {vector.shape[-1]:,}"
            raise LayoutMismatchError(
                f"layout has {self.num_params:,} parameters, got {got}; is it of another architecture?"
            )

    def to_json(self) -> str:
        """JSON text from which `from_json` makes an equal layout."""
        content: dict[str, object] = {"version": 1, "slots": [asdict(slot) for slot in self.slots]}
        content["groups"] = [
            {name: value for name, value in asdict(group).items() if (name, value) != ("kind", "permutation")}
            for group in self.groups
        ]
        if self.base is not None:
            content |= {"version": _VERSION, "base": [asdict(slot) for slot in self.base.slots]}
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> ParamLayout:
        """Layout from the text of `to_json`.

        Raises:
            ValueError: if the text is no layout, or of a newer version.
        """
        try:
            data = json.loads(text)
            version = data["version"]
            if version > _VERSION:
                raise ValueError(f"layout has version {version}, this release reads up to {_VERSION}; upgrade")
            groups = tuple(
                SymmetryGroup(**{**group, "axes": tuple(GroupAxis(**axis) for axis in group["axes"])})
                for group in data["groups"]
            )
            slots, base = _slots_of(data["slots"]), _slots_of(data.get("base", ()))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a layout: {error!r}") from error
        return cls(slots, groups, cls(base) if base else None)

    def _fitting(self, tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], tuple[int, ...]]:
        """The tensor of each slot, and the leading dims that all share."""
        problems = []
        values: list[Tensor] = []
        lead: tuple[int, ...] | None = None
        for slot in self.slots:
            names = [name for name in (slot.name, *slot.aliases) if name in tensors]
            if not names:
                problems.append(f"missing {slot.name!r} {slot.shape}")
                continue
            value = tensors[names[0]]
            values.append(value)
            untied = [name for name in names[1:] if not _is_same(tensors[name], value)]
            problems += [
                f"{name!r} is tied to {names[0]!r}, but holds other numbers; use a module without the tie"
                for name in untied
            ]
            shape = tuple(value.shape)
            split = len(shape) - len(slot.shape)
            if split < 0 or shape[split:] != slot.shape or (lead is not None and shape[:split] != lead):
                expected = (*(lead or ()), *slot.shape)
                problems.append(f"{slot.name!r} must be {expected}, got {shape}")
            elif lead is None:
                lead = shape[:split]
        known = set(self.names)
        problems += [f"unexpected {name!r}" for name in tensors if name not in known]
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise LayoutMismatchError(f"tensors do not fit the layout: {shown}")
        return values, lead or ()


def low_rank_groups(shapes: Mapping[str, tuple[int, ...]]) -> tuple[SymmetryGroup, ...]:
    """The components of low-rank adapters, by the names and shapes of all tensors that adapters train.

    Rows of `lora_A` (rank, inputs, ...) and columns of `lora_B` (outputs, rank, ...) in its place are a linear group:
    only their product acts. Whatever else an adapter holds between the two takes that away: a diagonal with as many
    entries as the rank, as AdaLoRA's `lora_E` is, leaves permutations; anything unknown leaves nothing. Biases after B
    and magnitudes of the whole weight (DoRA) do not matter.
    """
    groups = []
    for name, shape in shapes.items():
        found = _LOW_RANK.fullmatch(name)
        partner = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
        up = shapes.get(partner, ())
        if not found or len(shape) < 2 or len(up) < 2 or up[1] != shape[0]:
            continue
        prefix, _, adapter = found.groups()
        beside = {
            other: size
            for other, size in shapes.items()
            if other.startswith(f"{prefix}lora_") and other not in (name, partner) and not _OUTSIDE.search(other)
        }
        axes = (GroupAxis(name, 0, scale_power=1), GroupAxis(partner, 1, scale_power=-1))
        label = f"{prefix}lora{adapter}"
        if not beside:
            groups.append(SymmetryGroup(label, shape[0], axes, "linear"))
        elif all(other.startswith(f"{prefix}lora_E") and size == (shape[0], 1) for other, size in beside.items()):
            more = (GroupAxis(other, 0) for other in beside)
            groups.append(SymmetryGroup(label, shape[0], (GroupAxis(name, 0), GroupAxis(partner, 1), *more)))
    return tuple(groups)


def _slots_of(content: Sequence[Mapping[str, Any]]) -> tuple[ParamSlot, ...]:
    return tuple(
        ParamSlot(**{**slot, "shape": tuple(slot["shape"]), "aliases": tuple(slot["aliases"])}) for slot in content
    )


def _check_group(group: SymmetryGroup, slots: Mapping[str, ParamSlot]) -> None:
    for axis in group.axes:
        if axis.slot not in slots:
            raise ValueError(f"group {group.name!r} names slot {axis.slot!r}, which the layout does not have")
        shape = slots[axis.slot].shape
        if not 0 <= axis.axis < len(shape) or shape[axis.axis] != group.size * axis.unit_size:
            raise ValueError(
                f"group {group.name!r} of {group.size} units with {axis.unit_size} entries each does not fit "
                f"axis {axis.axis} of {axis.slot!r} with shape {shape}"
            )


def _is_exact(integers: Tensor) -> bool:
    """Whether integers or truth values are exact in float32."""
    if not integers.numel():
        return True
    low, high = integers.to(torch.int64).aminmax()
    return bool(low >= -_EXACT_INTEGERS) and bool(high <= _EXACT_INTEGERS)


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same bits."""
    if first is second:
        return True
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    bits = (value.detach().reshape(-1).contiguous().view(torch.uint8) for value in (first, second))
    return torch.equal(*bits)
