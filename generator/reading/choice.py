"""Of several networks that were generated for one prompt, the one that reads best: no data is looked at.

Legend: B prompts, N networks of a prompt, M metrics, Q quantities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from generator.prompts.prompt import Prompt, is_lower_better
from generator.reading.reader import WeightReader, WeightReading


def best_of(reader: WeightReader, reading: WeightReading, prompt: Prompt, metrics: list[str]) -> Tensor:
    """Index (B,) into B * N networks, those of a prompt together: of the one that reads nearest to what was asked.

    Where no metric was asked for, it is the one of which the first metric reads best.

    Args:
        reader: that read the networks.
        reading: of B * N networks.
        prompt: B prompts.
        metrics: M, the columns of the prompt.

    Raises:
        ValueError: if the reader does not read what was asked for.
    """
    asked = [name for name, column in zip(metrics, prompt.target.unbind(1), strict=True) if not column.isnan().all()]
    if not metrics:
        raise ValueError("the generator knows no metric by which to choose; leave best_of at 1")
    if unread := [name for name in asked or metrics[:1] if name not in reader.quantities]:
        raise ValueError(f"the reader does not read {unread}, only {list(reader.quantities)}; leave best_of at 1")
    read = reader.standardised(reading.values).unflatten(0, (len(prompt), -1))  # (B, N, Q)
    wanted = dict(zip(metrics, prompt.target.to(read.device).unbind(1), strict=True))
    gaps = (read - reader.standardised(wanted)[:, None]).abs().nansum(2)  # (B, N)
    sign = 1 if is_lower_better(metrics[0]) else -1
    best = sign * read[..., reader.quantities.index(metrics[0])]
    chosen = torch.where(prompt.asks_metric.to(read.device)[:, None], gaps, best).argmin(1)
    return torch.arange(len(chosen), device=read.device) * read.shape[1] + chosen
