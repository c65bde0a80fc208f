"""Many tensors in few operations and bounded memory: equal ones stacked, large ones in slices.

A batch is K tensors of one shape and role that share lr and weight decay. It is read chunk by chunk: some of its
tensors as one stack (N, K, *shape), or some rows of one of them as a view (N, 1, rows, ...).

Legend: N networks, K tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learned_opt.rules.rule import TensorUpdate


@dataclass(frozen=True, slots=True)
class Chunk:
    """K tensors of one shape as one, or some rows of one tensor."""

    tensors: Sequence[TensorUpdate]
    place: slice  # of these tensors in their batch
    rows: slice | None = None  # of the first dim of the only tensor
    active: Tensor | None = None  # (N, K)

    def read(self, of: Callable[[TensorUpdate], Tensor]) -> Tensor:
        """(N, K, *shape) of something of each tensor: a view if it is one tensor, else a copy."""
        parts = [of(tensor) for tensor in self.tensors]
        if len(parts) > 1:
            return torch.stack(parts, dim=1)
        return (parts[0] if self.rows is None else parts[0][:, self.rows]).unsqueeze(1)

    def params(self) -> list[Tensor]:
        """Views of the K parameters."""
        return [tensor.param if self.rows is None else tensor.param[:, self.rows] for tensor in self.tensors]

    def part_of(self, stack: Tensor) -> Tensor:
        """View of this chunk's place in a stack (N, K, *shape) of the whole batch."""
        part = stack[:, self.place]
        return part if self.rows is None else part[:, :, self.rows]

    def grad(self) -> Tensor:
        """(N, K, *shape), zero for inactive networks."""
        grad = self.read(lambda tensor: tensor.raw_grad)
        return grad if self.active is None else grad.masked_fill(~per_row(self.active, grad), 0.0)

    def state(self, kind: str) -> Tensor:
        """(N, K, *shape)."""
        return self.read(lambda tensor: tensor.state[kind])

    def write_state(self, kind: str, new: Tensor, *, in_place: bool) -> None:
        """Store what `state` gave and was changed in place, or a new tensor of one whole tensor."""
        if not in_place:
            self.tensors[0].state[kind] = new.squeeze(1)
        elif len(self.tensors) > 1:
            torch._foreach_copy_([tensor.state[kind] for tensor in self.tensors], unstacked(new))


def batches(tensors: Sequence[TensorUpdate], max_numel: int) -> list[list[TensorUpdate]]:
    """Tensors that can be handled as one, of at most `max_numel` numbers together unless one alone has more."""
    alike: dict[Hashable, list[TensorUpdate]] = defaultdict(list)
    for tensor in tensors:
        lr = id(tensor.lr) if isinstance(tensor.lr, Tensor) else tensor.lr
        alike[tensor.spec.shape, tensor.spec.role, lr, tensor.weight_decay, tensor.active is None].append(tensor)
    return [
        group[start : start + count]
        for group in alike.values()
        for count in [max(1, max_numel // max(1, group[0].param.numel()))]
        for start in range(0, len(group), count)
    ]


def whole_chunk(tensors: Sequence[TensorUpdate], place: slice = slice(None)) -> Chunk:
    """All of some tensors of one shape."""
    masks = [tensor.active for tensor in tensors if tensor.active is not None]
    return Chunk(tensors, place, None, torch.stack(masks, dim=1) if masks else None)


def chunks(batch: Sequence[TensorUpdate], max_numel: int) -> Iterator[list[Chunk]]:
    """Chunks of a batch; those that are slices of one tensor in one list."""
    first = batch[0].param
    count = max(1, max_numel // max(1, first.numel()))  # of a shard there may be nothing
    for start in range(0, len(batch), count):
        whole = whole_chunk(batch[start : start + count], slice(start, start + count))
        if first.numel() <= max_numel or first.ndim == 1:
            yield [whole]
            continue
        height = max(1, max_numel // first[:, 0].numel())
        rows = (slice(row, row + height) for row in range(0, first.shape[1], height))
        yield [replace(whole, rows=part) for part in rows]


def unstacked(stack: Tensor) -> list[Tensor]:
    """The K tensors (N, *shape) of a stack.

    Of one network they have the strides of tensors on their own: a GPU then changes all of a list in one kernel.
    """
    if len(stack) > 1:
        return list(stack.unbind(1))
    return list(stack.reshape(stack.shape[1], 1, *stack.shape[2:]).unbind())


def per_row(x: Tensor, other: Tensor) -> Tensor:
    """(N or 1, K or 1) -> as many dims as `other` (N, K, *shape)."""
    return x.reshape(*x.shape, *(1,) * (other.ndim - 2))
