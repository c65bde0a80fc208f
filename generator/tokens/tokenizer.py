"""Networks as tokens: a graph of interchangeable units, or a sequence of chunks, both exactly invertible.

A tokenizer cuts the flat vector of a network into *feature blocks*. A block belongs to the nodes of one group,
`(..., n, width)`, or to the edges between two groups, `(..., n_target, n_source, width)`. Blocks with equal keys mean
the same thing in every layer and every network, so encoders, decoders and normalisation statistics are shared by key.
Integer buffers (step counters) are in no block: they are copied, never generated.

Legend: P numbers of one network, n units of a group, L chunks, W chunk width, `...` any leading dims.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.networks.layout import LayoutMismatchError, ParamLayout, ParamSlot

GLOBAL_NODE: Final = "network"
CHUNKS: Final = "chunks"


@dataclass(frozen=True)
class NodeGroup:
    """A set of `size` tokens that play the same part."""

    name: str
    size: int


@dataclass(frozen=True)
class FeatureBlock:
    """Numbers that belong to the nodes of one group, or to the edges between a target and a source group."""

    name: str
    key: str
    groups: tuple[int, ...]
    width: int


class ParamTokenizer(ABC):
    """What the generator knows of a network: groups of nodes, feature blocks, and the way there and back.

    Attributes:
        layout: of the network.
        groups: sets of nodes, in the order of the tokens.
        blocks: feature blocks of nodes and edges.
    """

    layout: ParamLayout
    groups: tuple[NodeGroup, ...]
    blocks: tuple[FeatureBlock, ...]

    @abstractmethod
    def encode(self, values: Tensor) -> dict[str, Tensor]:
        """Feature blocks by name of flat vectors (..., P)."""

    @abstractmethod
    def decode(self, features: Mapping[str, Tensor]) -> Tensor:
        """Flat vectors (..., P) of feature blocks; copied slots are zero."""

    @property
    def positions(self) -> Tensor | None:
        """(L, 2) int64 where tokens are in an order: of chunks and of components; None where they are sets."""
        return None

    @abstractmethod
    def statistics(self) -> tuple[dict[str, int], Tensor]:
        """Sizes of the shared statistics by key, and the statistic of each number as an index (P,) into them all."""

    @property
    def factor_keys(self) -> set[str]:
        """Keys of blocks that hold the factors B and A of adapters."""
        return set()

    @property
    def drawn_keys(self) -> set[str]:
        """Keys of blocks that hold factors A, which are drawn at random when adapters are made."""
        return set()

    @cached_property
    def node_blocks(self) -> list[FeatureBlock]:
        return [block for block in self.blocks if len(block.groups) == 1]

    @cached_property
    def edge_blocks(self) -> list[FeatureBlock]:
        return [block for block in self.blocks if len(block.groups) == 2]

    @cached_property
    def spans(self) -> list[slice]:
        """Tokens of each group."""
        ends = list(accumulate(group.size for group in self.groups))
        return [slice(end - group.size, end) for end, group in zip(ends, self.groups, strict=True)]


class NeuronTokenizer(ParamTokenizer):
    """One node per interchangeable unit, one node for all that belongs to no unit, edges between units.

    A node holds what is indexed by its unit and otherwise by fixed axes: incoming weights from fixed inputs, biases,
    norm parameters and statistics, outgoing weights to fixed outputs. An edge holds what two units share: a weight,
    the k * k numbers of a convolution kernel. Nodes of one group carry no position, so a permutation of units is a
    permutation of tokens.

    Of an adapter B A a node is a component: a row of A and a column of B. In canonical form they have an order, and the
    axes of the adapted matrix mean something else in every module, so components have positions, and blocks of their
    own in every module. The rank is the number of nodes, so one model serves several.

    Args:
        layout: the network.
        statistics_per_number: whether every number has statistics of its own; for adapters that begin at one, whose
            components are no set. The rank is then that of the statistics.

    Raises:
        ValueError: if a slot is indexed by more than two groups or twice by one (use ChunkTokenizer then), or numbers
            of interchangeable units are to have statistics of their own.
    """

    def __init__(self, layout: ParamLayout, *, statistics_per_number: bool = False) -> None:
        if statistics_per_number and any(group.kind != "linear" for group in layout.groups):
            raise ValueError("statistics_per_number is for chunk tokens and adapters; units of a network are a set")
        self.layout = layout
        self.statistics_per_number = statistics_per_number
        units = (NodeGroup(group.name, group.size) for group in layout.groups)
        self.groups = (NodeGroup(GLOBAL_NODE, 1), *units)
        owners: dict[str, dict[int, tuple[int, int]]] = {}
        for index, group in enumerate(layout.groups, start=1):
            for axis in group.axes:
                if axis.axis in owners.setdefault(axis.slot, {}):
                    raise ValueError(
                        f"axis {axis.axis} of slot {axis.slot!r} belongs to two groups; use ChunkTokenizer"
                    )
                owners[axis.slot][axis.axis] = index, axis.unit_size
        seen: Counter[object] = Counter()
        self._is_linear = [False, *(group.kind == "linear" for group in layout.groups)]
        factors = {axis.slot for group in layout.groups if group.kind == "linear" for axis in group.axes}
        self._cuts = [
            _Cut.of(slot, owners.get(slot.name, {}), seen, own_key=slot.name in factors)
            for slot in layout
            if is_generated(slot)
        ]
        self.blocks = tuple(cut.block for cut in self._cuts)

    @property
    def factor_keys(self) -> set[str]:
        factors = (block for block in self.node_blocks if self._is_linear[block.groups[0]])
        return {block.name if self.statistics_per_number else block.key for block in factors}

    @property
    def drawn_keys(self) -> set[str]:
        drawn = {group.axes[0].slot for group in self.layout.groups if group.kind == "linear"}
        return {block.key for block in self.node_blocks if block.name in drawn}

    @cached_property
    def positions(self) -> Tensor | None:
        """(L, 2) int64: number of the group, number of the component within it; None if there are no adapters."""
        if not any(self._is_linear):
            return None
        rows = [
            torch.stack((torch.full((group.size,), i), torch.arange(group.size) * is_linear), dim=1)
            for i, (group, is_linear) in enumerate(zip(self.groups, self._is_linear, strict=True))
        ]
        return torch.cat(rows)

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        self.layout.check_vector(values)
        return {cut.slot.name: cut.split(values[..., cut.slot.span]) for cut in self._cuts}

    def decode(self, features: Mapping[str, Tensor]) -> Tensor:
        parts = {cut.slot.name: cut.join(features[cut.slot.name]) for cut in self._cuts}
        return _join_slots(self.layout, parts)

    def statistics(self) -> tuple[dict[str, int], Tensor]:
        if self.statistics_per_number:
            return _statistics_of_slots(self.layout, own=True)
        sizes: dict[str, int] = {}
        for block in self.blocks:
            sizes.setdefault(block.key, block.width)
        sizes |= {_copied_key(slot): slot.numel for slot in self.layout if not is_generated(slot)}
        first = _offsets(sizes)
        ids = {}
        for block in self.blocks:
            counts = [self.groups[index].size for index in block.groups]
            ids[block.name] = (first[block.key] + torch.arange(block.width)).expand(*counts, block.width)
        return sizes, _fill_copied(self.layout, self.decode(ids), first)


class ChunkTokenizer(ParamTokenizer):
    """Slots cut into chunks of `chunk_width` numbers, the last one of a slot padded with zeros: any layout at all.

    Args:
        layout: the network.
        chunk_width: W; 0 for the whole network in one chunk, a flat vector.
        statistics_per_number: whether every number has statistics of its own, not every slot; for networks of one run,
            which differ by little from their mean.
    """

    def __init__(self, layout: ParamLayout, chunk_width: int = 64, *, statistics_per_number: bool = False) -> None:
        if chunk_width < 0:
            raise ValueError(f"chunk_width must be positive, or 0 for one chunk, got {chunk_width}")
        self.layout = layout
        slots = tuple(slot for slot in layout if is_generated(slot) and slot.numel)
        self.chunk_width = chunk_width or sum(slot.numel for slot in slots)
        self.statistics_per_number = statistics_per_number
        self._pieces = tuple((slot,) for slot in slots) if chunk_width else (slots,)  # cut one by one
        sizes = [sum(slot.numel for slot in piece) for piece in self._pieces]
        self._counts = tuple(math.ceil(size / self.chunk_width) for size in sizes)
        self.groups = (NodeGroup(CHUNKS, sum(self._counts)),)
        key = f"chunk_{self.chunk_width}"
        self.blocks = (FeatureBlock(CHUNKS, key, (0,), self.chunk_width),)

    @cached_property
    def positions(self) -> Tensor:
        """(L, 2) int64: number of the slot, number of the chunk within it."""
        rows = [
            torch.stack((torch.full((count,), i), torch.arange(count)), dim=1) for i, count in enumerate(self._counts)
        ]
        return torch.cat(rows) if rows else torch.zeros(0, 2, dtype=torch.int64)

    @cached_property
    def mask(self) -> Tensor:
        """(L, W) bool: true where a chunk holds a number of the network, false in the padding."""
        return self.encode(torch.ones(self.layout.num_params))[CHUNKS] > 0

    def encode(self, values: Tensor) -> dict[str, Tensor]:
        self.layout.check_vector(values)
        parts = []
        for piece, count in zip(self._pieces, self._counts, strict=True):
            flat = torch.cat([values[..., slot.span] for slot in piece], dim=-1)
            padded = F.pad(flat, (0, count * self.chunk_width - flat.shape[-1]))
            parts.append(padded.unflatten(-1, (count, self.chunk_width)))
        return {CHUNKS: torch.cat(parts, dim=-2)}  # (..., L, W)

    def decode(self, features: Mapping[str, Tensor]) -> Tensor:
        parts: dict[str, Tensor] = {}
        chunks = features[CHUNKS].split(self._counts, dim=-2)
        for piece, flat in zip(self._pieces, (part.flatten(-2) for part in chunks), strict=True):
            sizes = [slot.numel for slot in piece]
            values = flat[..., : sum(sizes)].split(sizes, dim=-1)
            parts |= {slot.name: value for slot, value in zip(piece, values, strict=True)}
        return _join_slots(self.layout, parts)

    def statistics(self) -> tuple[dict[str, int], Tensor]:
        return _statistics_of_slots(self.layout, own=self.statistics_per_number)


def make_tokenizer(
    kind: str, layout: ParamLayout, *, chunk_width: int = 64, statistics_per_number: bool = False
) -> ParamTokenizer:
    """Tokenizer of that kind: "neuron", or "chunk" with the options of ChunkTokenizer.

    Raises:
        ValueError: for another kind.
        LayoutMismatchError: for a layout that has no symmetry groups and needs chunks.
    """
    if kind == "chunk":
        return ChunkTokenizer(layout, chunk_width, statistics_per_number=statistics_per_number)
    if kind != "neuron":
        raise ValueError(f"tokenizer must be 'neuron' or 'chunk', got {kind!r}")
    if not layout.groups:
        raise LayoutMismatchError(
            "the layout names no interchangeable units, of which neuron tokens are made; train with tokenizer='chunk'"
        )
    return NeuronTokenizer(layout, statistics_per_number=statistics_per_number)


def is_generated(slot: ParamSlot) -> bool:
    """Whether a slot holds real numbers; integers are copied."""
    return slot.torch_dtype.is_floating_point


@dataclass(frozen=True)
class _Cut:
    """How a slot becomes a block: axes split into (unit, rest), units brought forward, the rest flattened.

    Attributes:
        slot: the tensor.
        block: what it becomes.
        split_shape: shape in which each axis over units is two.
        order: axes of that shape, those over units first.
    """

    slot: ParamSlot
    block: FeatureBlock
    split_shape: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def of(
        cls, slot: ParamSlot, owners: Mapping[int, tuple[int, int]], seen: Counter[object], *, own_key: bool = False
    ) -> _Cut:
        """Cut of a slot.

        Args:
            slot: to cut.
            owners: by axis, the index of the group that owns it and the neighbouring entries that each unit has.
            seen: blocks of earlier slots; where one group has several (query, key, value), their keys differ.
            own_key: whether the block has the meaning of no other slot's.
        """
        groups = sorted((group for group, _ in owners.values()), reverse=True)  # targets come after their sources
        if len(set(groups)) < len(groups) or len(groups) > 2:
            raise ValueError(
                f"slot {slot.name!r} must be indexed by at most two different groups of units, got groups {groups}; "
                "use ChunkTokenizer for this layout"
            )
        split_shape: list[int] = []
        unit_axes: dict[int, int] = {}
        rest: list[int] = []
        for axis, size in enumerate(slot.shape):
            entries = size
            if axis in owners:
                group, entries = owners[axis]
                unit_axes[group] = len(split_shape)
                split_shape.append(size // entries)
            rest.append(len(split_shape))
            split_shape.append(entries)
        width = math.prod(split_shape[axis] for axis in rest)
        pattern = "".join(f"a{axis}" for axis in sorted(owners, key=lambda axis: -owners[axis][0])) or "global"
        kind = slot.name.replace(".", "/") if own_key else slot.role
        key, place = f"{kind}_{pattern}_{width}", tuple(groups) or (0,)
        ordinal = seen[place, key]
        seen[place, key] += 1
        block = FeatureBlock(slot.name, f"{key}_{ordinal}" if ordinal else key, place, width)
        return cls(slot, block, tuple(split_shape), (*(unit_axes[group] for group in groups), *rest))

    def split(self, flat: Tensor) -> Tensor:
        """Feature block (..., units, width) or (..., units, units, width) of the slot's numbers (..., numel)."""
        lead = flat.shape[:-1]
        split = flat.reshape(*lead, *self.split_shape)
        num_groups = len(self.order) - len(self.slot.shape)
        counts = tuple(self.split_shape[axis] for axis in self.order[:num_groups]) or (1,)
        ordered = split.permute(*range(len(lead)), *(len(lead) + axis for axis in self.order))
        return ordered.reshape(*lead, *counts, self.block.width)

    def join(self, feature: Tensor) -> Tensor:
        """The slot's numbers (..., numel): the inverse of `split`."""
        lead = feature.shape[: -1 - len(self.block.groups)]
        ordered = feature.reshape(*lead, *(self.split_shape[axis] for axis in self.order))
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        restored = ordered.permute(*range(len(lead)), *(len(lead) + axis for axis in inverse))
        return restored.reshape(*lead, self.slot.numel)


def _join_slots(layout: ParamLayout, parts: Mapping[str, Tensor]) -> Tensor:
    """Flat vectors (..., P) from slots (..., numel); slots that are missing become zeros."""
    like = next(iter(parts.values()))
    blank = [
        parts[slot.name] if slot.name in parts else like.new_zeros(*like.shape[:-1], slot.numel) for slot in layout
    ]
    return torch.cat(blank, dim=-1)


def _statistics_of_slots(layout: ParamLayout, *, own: bool) -> tuple[dict[str, int], Tensor]:
    """As `ParamTokenizer.statistics`: one for each slot, or for each of its numbers."""
    generated = [slot for slot in layout if is_generated(slot) and slot.numel]
    sizes = {slot.name: slot.numel if own else 1 for slot in generated}
    sizes |= {_copied_key(slot): slot.numel for slot in layout if not is_generated(slot)}
    first = _offsets(sizes)
    parts = {slot.name: first[slot.name] + torch.arange(slot.numel) * own for slot in generated}
    return sizes, _fill_copied(layout, _join_slots(layout, parts), first)


def _copied_key(slot: ParamSlot) -> str:
    return f"copied:{slot.name}"


def _offsets(sizes: Mapping[str, int]) -> dict[str, int]:
    offsets, total = {}, 0
    for key, size in sizes.items():
        offsets[key] = total
        total += size
    return offsets


def _fill_copied(layout: ParamLayout, ids: Tensor, first: Mapping[str, int]) -> Tensor:
    for slot in layout:
        if not is_generated(slot):
            ids[slot.span] = first[_copied_key(slot)] + torch.arange(slot.numel)
    return ids
