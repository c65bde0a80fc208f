"""Parameters that are not float32: a rule works on float32 copies of a portion of them at a time.

A weight in bfloat16 has eight bits, so that an update smaller than a 512th of it is lost in rounding, at every step
again. What is lost is therefore kept beside the weight and added before the next update (compensated summation), which
draws no random numbers: all ranks round alike, and a resumed run is the uninterrupted one.

Source: Kahan 1965; Zamirai et al. 2020 (arXiv 2010.06192) for weights in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from learned_opt.optimizer.gradients import Pending

REMAINDER: Final = "remainder"  # its name in the state of a parameter
MAX_PORTION_NUMEL: Final = 2**23  # copies made at once, unless one parameter is larger


def loses_updates(param: Tensor) -> bool:
    """Whether a parameter is coarser than the float32 that rules compute in."""
    return torch.finfo(param.dtype).bits < torch.finfo(torch.float32).bits


def portions(pending: Sequence[Pending]) -> Iterator[list[Pending]]:
    """What is updated together: at once what is changed in place, the rest so that few copies live at a time."""
    if in_place := [entry for entry in pending if not entry.is_copied]:
        yield in_place
    portion: list[Pending] = []
    numel = 0
    for entry in pending:
        if not entry.is_copied:
            continue
        if portion and numel + entry.numel > MAX_PORTION_NUMEL:
            yield portion
            portion, numel = [], 0
        portion.append(entry)
        numel += entry.numel
    if portion:
        yield portion


def to_float32(part: Tensor, remainder: Tensor | None) -> Tensor:
    """A parameter with what rounding has taken from it; itself if it is float32."""
    exact = part.to(torch.float32)
    return exact if remainder is None else exact + remainder


def write_back(part: Tensor, remainder: Tensor | None, new: Tensor) -> None:
    """Give a parameter its new float32 numbers, rounded to its dtype; of what did not change no bit does."""
    before = to_float32(part, remainder)
    if remainder is None:
        part.add_((new - before).to(part.dtype))  # float64 keeps what float32 has no bits for
        return
    rounded, is_changed = new.to(part.dtype), new != before
    remainder.copy_(torch.where(is_changed, (new - rounded).to(remainder.dtype), remainder))
    part.copy_(torch.where(is_changed, rounded, part))
