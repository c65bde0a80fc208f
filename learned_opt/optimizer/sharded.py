"""Sharded parameters (DTensor of FSDP2 and tensor parallelism): by shards where sums suffice, else whole, by one rank.

What a rule `updates_shards` of (of "mulo-norm" embeddings, biases and norms) each rank updates where it lies: only the
sums that the rule takes over tensors travel, those of all tensors in one message. All else must be seen whole, as
matrices that are orthogonalised. The ranks that hold shards of the same tensors divide these among themselves. Each
gathers its share, a bounded batch at a time, runs the rule on it as one process would, and sends every rank its shard
of the result. Any rule and any of its kernels gives the numbers of one process, and no rank does the work of another.
Parameters, momenta and second moments stay sharded between steps; the few statistics of a tensor are the same on every
rank.

With P numbers in matrices on R ranks each rank sends and receives about 7 P / R of them in a step of "mulo-norm"
(parameter, gradient and two moments there, all but the gradient back), where FSDP itself moves about 3 P.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from learned_opt.optimizer.averaging import AVERAGE
from learned_opt.optimizer.gradients import Pending
from learned_opt.optimizer.sharding import Sharding, sharded_gradient
from learned_opt.rules.rule import TensorwiseRule, UpdateRule
from learned_opt.rules.tensor_specs import matrix_view

MAX_SHARE_NUMEL: Final = 2**22  # numbers of the parameters that a rank gathers at once, unless one tensor has more


def whole_param(entry: Pending) -> Tensor:
    """The whole of a parameter, on every rank: for a moment, when its state is made."""
    return cast(DTensor, entry.param.detach()).full_tensor()


def shard_state(entry: Pending, kinds: Sequence[str]) -> None:
    """Divide among ranks what is as large as the parameter: those kinds of its state that are whole."""
    sharding = _sharding(entry)
    for kind in [kind for kind in kinds if kind in entry.state]:
        tensor = entry.state[kind]
        if sharding.group is None and isinstance(tensor, DTensor):
            entry.state[kind] = tensor.to_local()
        elif sharding.group is not None and not isinstance(tensor, DTensor):
            placements = _state_placements(sharding, tuple(tensor.shape))
            entry.state[kind] = distribute_tensor(tensor, sharding.mesh, placements, src_data_rank=None)


def largest_over_ranks(pending: Sequence[Pending], largest: Tensor) -> Tensor:
    """Largest absolute entries of whole matrices, from those of this rank's shards.

    A gradient that is not finite on one rank is infinite on all of them, also one of a parameter that is not sharded:
    ranks must agree on whether a step is skipped.
    """
    found = list(largest.nan_to_num(nan=torch.inf, posinf=torch.inf).split([len(entry.grad) for entry in pending]))
    places: dict[dist.ProcessGroup, list[int]] = defaultdict(list)
    for i, entry in enumerate(pending):
        if entry.sharding is not None and entry.sharding.group is not None:
            places[entry.sharding.group].append(i)
    for group, own in places.items():
        whole = [largest.new_zeros(pending[i].num_matrices) for i in own]
        for i, numbers in zip(own, whole, strict=True):
            part = _sharding(pending[i]).parts[group.rank()]
            numbers[part[0] if pending[i].is_stack else slice(None)] = found[i]
        others = [found[i] for i in range(len(found)) if i not in own]
        rest = torch.cat(others).amax() if others else largest.new_zeros(())
        message = torch.cat([*whole, rest.reshape(1)])
        dist.all_reduce(message, dist.ReduceOp.MAX, group=group)
        *whole, rest = message.split([*map(len, whole), 1])
        found = [torch.where(rest.isfinite(), numbers, torch.inf) for numbers in found]
        for i, numbers in zip(own, whole, strict=True):
            found[i] = numbers
    return torch.cat(found)


def update_sharded(pending: Sequence[Pending], rule: UpdateRule, update: Callable[..., None]) -> None:
    """Update parameters that are DTensors, and their state.

    Args:
        pending: of this step, the same on every rank.
        rule: that is run.
        update: changes parameters and state of tensors that are whole, or, given a `total`, shards.
    """
    together: dict[tuple[dist.ProcessGroup, torch.device], list[Pending]] = defaultdict(list)
    alike: dict[tuple[dist.ProcessGroup, torch.device, Hashable], list[Pending]] = defaultdict(list)
    replicated = []
    for entry in pending:
        group = _sharding(entry).group
        if group is None:
            replicated.append(replace(entry, param=_local(entry.param), sharding=None))
        elif isinstance(rule, TensorwiseRule) and rule.updates_shards(entry.spec) and not entry.is_stack:
            alike[group, entry.param.device, (_sharding(entry).placements, entry.axes)].append(entry)
        else:
            together[group, entry.param.device].append(entry)
    if replicated:
        update(replicated)
    for (group, *_), entries in alike.items():
        _update_shards(group, entries, update)
    for (group, _), entries in together.items():
        for batch in shares(entries, group.size()):
            _update_batch(group, batch, update)


def _update_shards(group: dist.ProcessGroup, entries: Sequence[Pending], update: Callable[..., None]) -> None:
    """Update this rank's shards of tensors that are divided alike."""
    shards = [
        replace(
            entry,
            param=_local(entry.param),
            state={kind: _local(x) if isinstance(x, DTensor) else x for kind, x in entry.state.items()},
            sharding=None,
        )
        for entry in entries
    ]
    update(shards, total=partial(_total, group))
    for entry, shard in zip(entries, shards, strict=True):
        for kind, new in shard.state.items():  # the rule may have put new tensors there
            if isinstance(old := entry.state[kind], DTensor):
                _local(old).copy_(new)
            else:
                entry.state[kind] = new


def _total(group: dist.ProcessGroup, sums: Tensor) -> Tensor:
    """Sums over all shards, added in the order of ranks: replicas of a model find the same bits."""
    gathered = sums.new_empty(group.size() * sums.numel())
    dist.all_gather_into_tensor(gathered, sums.flatten(), group)
    return gathered.view(group.size(), *sums.shape).sum(0)


def shares(entries: Sequence[Pending], num_ranks: int) -> Iterator[list[tuple[int, Pending]]]:
    """Batches of tensors, each with the rank that updates it: large ones first, to the rank that has least to do."""
    if not entries:
        return
    entries = sorted(entries, key=lambda entry: entry.param.numel(), reverse=True)
    limit = max(MAX_SHARE_NUMEL, entries[0].param.numel())
    batch: list[tuple[int, Pending]] = []
    loads = [0] * num_ranks
    for entry in entries:
        if min(loads) + entry.param.numel() > limit:
            yield batch
            batch, loads = [], [0] * num_ranks
        owner = loads.index(min(loads))
        loads[owner] += entry.param.numel()
        batch.append((owner, entry))
    yield batch


def _update_batch(group: dist.ProcessGroup, batch: Sequence[tuple[int, Pending]], update: Callable[..., None]) -> None:
    """Gather the tensors of a batch at their owners, update them there, and send the shards back."""
    ranks = range(group.size())
    owned = [[entry for owner, entry in batch if owner == rank] for rank in ranks]
    own = [(entry, _empty_whole(entry)) for entry in owned[group.rank()]]
    parts = [_parts_by_rank(*pair) for pair in own]
    grads = [[cast(Tensor, whole.param.grad)[part] for part in _sharding(entry).parts] for entry, whole in own]
    _exchange(
        group,
        outgoing=[[x for entry in owned[r] for x in (*_shards(entry), _local_gradient(entry))] for r in ranks],
        incoming=[[x for part, grad in zip(parts, grads, strict=True) for x in (*part[r], grad[r])] for r in ranks],
    )
    if own:
        update([whole for _, whole in own])
    copies = [_copies(*pair) for pair in own]
    parts = [_parts_by_rank(*pair) for pair in own]  # the rule may have put new tensors into the state
    _exchange(
        group,
        outgoing=[[x for part, copy in zip(parts, copies, strict=True) for x in (*part[r], *copy)] for r in ranks],
        incoming=[[x for entry in owned[r] for x in (*_shards(entry), *_copies(entry, entry))] for r in ranks],
    )


def _exchange(
    group: dist.ProcessGroup, *, outgoing: Sequence[Sequence[Tensor]], incoming: Sequence[Sequence[Tensor]]
) -> None:
    """Fill the tensors `incoming[r]` with those that rank r calls `outgoing[this rank]`."""
    dense = torch.contiguous_format
    sent = [x.clone(memory_format=dense).view(-1).view(torch.uint8) for tensors in outgoing for x in tensors]
    places = [x for tensors in incoming for x in tensors]
    received_sizes = [sum(x.nbytes for x in tensors) for tensors in incoming]
    device = (sent or places)[0].device
    received = torch.empty(sum(received_sizes), dtype=torch.uint8, device=device)
    dist.all_to_all_single(
        received,
        torch.cat(sent) if sent else received[:0],
        received_sizes,
        [sum(x.nbytes for x in tensors) for tensors in outgoing],
        group=group,
    )
    chunks = received.split([x.nbytes for x in places])
    for place, chunk in zip(places, chunks, strict=True):
        place.copy_(chunk.clone().view(place.dtype).view(place.shape))  # numbers begin at multiples of their size


def _empty_whole(entry: Pending) -> Pending:
    """Room for a whole tensor, its gradient and its state."""
    kept = {k: x for k, x in entry.state.items() if k != AVERAGE}  # no rule sees averages
    state = {k: x.to_local().new_empty(x.shape) if isinstance(x, DTensor) else x for k, x in kept.items()}
    param = _local(entry.param).new_empty(entry.param.shape)
    param.grad = torch.empty_like(param)
    return replace(entry, param=param, grad=matrix_view(param.grad, entry.axes), state=state, sharding=None)


def _sharded_kinds(entry: Pending) -> list[str]:
    return [kind for kind, tensor in entry.state.items() if isinstance(tensor, DTensor) and kind != AVERAGE]


def _shards(entry: Pending) -> list[Tensor]:
    """This rank's shards of a parameter and its state."""
    return [_local(entry.param), *(_local(entry.state[kind]) for kind in _sharded_kinds(entry))]


def _parts_by_rank(entry: Pending, whole: Pending) -> list[list[Tensor]]:
    """What `_shards` is on each rank, as views of the whole."""
    kinds = _sharded_kinds(entry)
    parts = zip(_sharding(entry).parts, *(Sharding.of(entry.state[kind]).parts for kind in kinds), strict=True)
    wholes = (whole.param, *(whole.state[kind] for kind in kinds))
    return [[tensor[part] for tensor, part in zip(wholes, of_rank, strict=True)] for of_rank in parts]


def _local_gradient(entry: Pending) -> Tensor:
    return sharded_gradient(entry.param)[0].to(entry.param.dtype)


def _copies(entry: Pending, whole: Pending) -> list[Tensor]:
    """The state of a tensor that every rank has."""
    return [tensor for kind, tensor in whole.state.items() if not isinstance(entry.state[kind], DTensor)]


def _sharding(entry: Pending) -> Sharding:
    return cast(Sharding, entry.sharding)


def _local(tensor: Tensor) -> Tensor:
    return cast(DTensor, tensor).to_local()


def _state_placements(sharding: Sharding, shape: tuple[int, ...]) -> tuple[Placement, ...]:
    """Those of the parameter; in state of another shape along the last dim of equal size, else along the largest."""
    if shape == sharding.shape:
        return sharding.placements

    def moved(placement: Placement) -> Placement:
        if isinstance(placement, Replicate):
            return placement
        size = sharding.shape[cast(Shard, placement).dim]
        return Shard(max((i for i, length in enumerate(shape) if length == size), default=shape.index(max(shape))))

    return tuple(moved(placement) for placement in sharding.placements)
