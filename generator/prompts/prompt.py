"""Prompts: what the generated network should be like, and how the model reads it.

A prompt gives target values for any subset of metrics, values of the start for any subset, and optionally says which
task: by its bits, by examples, or in words. What is not given is NaN inside the batch, so that one model answers every
combination.

Legend: B prompts, M metrics, T task bits, W numbers of a description.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from generator.prompts.descriptions import Embedder, embedded
from generator.prompts.examples import ExampleKind, Examples

PromptValue = float | Sequence[float] | np.ndarray | Tensor  # one number, or one for each network
EXAMPLES: Final = "examples"  # beside the metrics of a prompt
TASK_BITS: Final = "task_bits"
DESCRIPTION: Final = "description"
ALIASES: Final = {"loss": "val_loss", "error": "val_error", "return": "val_return"}
_NUM_FREQUENCIES: Final = 4  # from 1/2 on, each twice the one before
_LOG_FLOORS: Final = {"loss": 1e-4, "error": 5e-3}


@dataclass(frozen=True)
class MetricRange:
    """Values of a metric that the networks of the training runs have."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts; NaN where nothing is asked or known.

    Attributes:
        target: (B, M) asked values, in the unit of the metric.
        start: (B, M) values of the start network.
        task_bits: (B, T) zeros and ones; T may be 0.
        examples: a set for each prompt; None for a batch without.
        description: (B, W) vectors of sentences; None for a batch without.
    """

    target: Tensor
    start: Tensor
    task_bits: Tensor
    examples: Examples | None = None
    description: Tensor | None = None

    @classmethod
    def of(
        cls,
        values: Mapping[str, Any] | None,
        metrics: Sequence[str],
        batch_size: int,
        *,
        start: Mapping[str, PromptValue] | None = None,
        num_task_bits: int = 0,
        kind: ExampleKind | None = None,
        embed: Embedder | None = None,
    ) -> Prompt:
        """Prompts from values by metric name; "loss" means "val_loss", and so on by ALIASES.

        Args:
            values: of metrics; "examples" as `Examples.read` takes them, "task_bits" (T,) or (B, T), "description" one
                sentence or B.
            metrics: that can be asked for.
            batch_size: B.
            start: values of the start by metric name.
            num_task_bits: T.
            kind: of the examples that can be given; None for none.
            embed: reads descriptions; None for none.

        Raises:
            ValueError: for a metric the model does not know, NaN, a wrong number of values or bits, examples that do
                not fit, or a description that is none.
        """
        for given in (values, start):
            if not isinstance(given, Mapping | None):
                raise ValueError(f"values must be given by metric, as in {{'loss': 0.2}}, got {given!r}")
        numbers = dict(values or {})
        task_bits, shown, said = (numbers.pop(name, None) for name in (TASK_BITS, EXAMPLES, DESCRIPTION))
        examples = None if shown is None else Examples.read(shown, kind, batch_size)
        description = None if said is None else _description(said, batch_size, embed)
        bits = torch.full((batch_size, num_task_bits), math.nan)
        if task_bits is not None:
            if not num_task_bits:
                raise ValueError("the generator was not trained on task_bits; leave them out of the prompt")
            asked = torch.as_tensor(task_bits, dtype=torch.float32).cpu()
            if asked.shape not in ((num_task_bits,), (1, num_task_bits), (batch_size, num_task_bits)):
                raise ValueError(
                    f"task_bits must have {num_task_bits} entries for each of {batch_size} networks, or for all of "
                    f"them, got shape {tuple(asked.shape)}"
                )
            if not ((asked == 0) | (asked == 1)).all():
                raise ValueError(f"task_bits must be zeros and ones, got {asked.unique().tolist()[:4]}")
            bits = asked.expand(batch_size, num_task_bits)
        target, known = (_table(some, metrics, batch_size) for some in (numbers, start))
        return cls(target, known, bits, examples, description)

    def __len__(self) -> int:
        return self.target.shape[0]

    def __getitem__(self, chosen: Tensor) -> Prompt:
        parts = {name: part[chosen] for name, part in vars(self).items() if part is not None}
        return Prompt(**parts)

    @property
    def is_null(self) -> Tensor:
        """(B,) bool: whether nothing is asked."""
        return ~self.asks_metric & self.task_bits.isnan().all(1) & ~self.shows_task

    @property
    def shows_task(self) -> Tensor:
        """(B,) bool: whether examples or words say what the task is; alone they ask for the best network there is."""
        shows = torch.zeros(len(self), dtype=torch.bool, device=self.target.device)
        if self.examples is not None:
            shows = shows | self.examples.is_given
        return shows if self.description is None else shows | ~self.description.isnan().any(1)

    @property
    def asks_metric(self) -> Tensor:
        """(B,) bool: whether the value of a metric is asked for."""
        return ~self.target.isnan().all(1)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Prompt:
        parts = {name: part for name, part in vars(self).items() if part is not None}
        return Prompt(**{name: part.to(device, non_blocking=non_blocking) for name, part in parts.items()})

    def empty(self) -> Prompt:
        """The null prompt: only what is known of the start stays."""
        examples = None if self.examples is None else self.examples.left_out()
        description = None if self.description is None else self.description * math.nan
        return Prompt(self.target * math.nan, self.start, self.task_bits * math.nan, examples, description)

    def clamped(self, ranges: Mapping[str, MetricRange]) -> Prompt:
        """Targets outside the ranges replaced by the nearest value inside; what is not given stays so."""
        bounds = torch.tensor([(known.low, known.high) for known in ranges.values()]).view(-1, 2)  # (M, 2)
        return replace(self, target=self.target.clamp(bounds[:, 0], bounds[:, 1]))

    def warn_outside(self, ranges: Mapping[str, MetricRange]) -> None:
        """Warn where a target lies outside what the training runs reached."""
        for (name, known), values in zip(ranges.items(), self.target.unbind(1), strict=True):
            asked = [value for value in values.unique().tolist() if not math.isnan(value) and value not in known]
            if asked:
                shown = ", ".join(f"{value:.4g}" for value in asked[:4])
                warnings.warn(
                    f"prompt {name} = {shown} is outside the range of the training runs, "
                    f"{known.low:.4g} to {known.high:.4g}; it is answered as the nearest value of that range",
                    stacklevel=4,
                )


class PromptEncoder(nn.Module):
    """Prompt features (B, width): values, Fourier features of the targets, and a bit for each that is given.

    Losses and errors are read as logarithms, other metrics (returns) on a scale of -2 to 2 over their range.

    Args:
        ranges: known metrics in the order of the prompt's columns.
        num_task_bits: T.
    """

    def __init__(self, ranges: Mapping[str, MetricRange], num_task_bits: int = 0) -> None:
        super().__init__()
        self.ranges = dict(ranges)
        self.width = len(self.ranges) * (2 * _NUM_FREQUENCIES + 4) + 2 * num_task_bits

    def forward(self, prompt: Prompt) -> Tensor:
        parts = []
        for i, (name, known) in enumerate(self.ranges.items()):
            target, has_target = _present(readable(name, known, prompt.target[:, i]))
            start, has_start = _present(readable(name, known, prompt.start[:, i]))
            waves = target[:, None] * 2.0 ** torch.arange(-1, _NUM_FREQUENCIES - 1, device=target.device)  # (B, 4)
            fourier = torch.cat((waves.sin(), waves.cos()), dim=1) * has_target[:, None]
            parts += [torch.stack((target / 2, has_target, start, has_start), dim=1), fourier]
        bits, has_bits = _present(prompt.task_bits * 2 - 1)
        return torch.cat((*parts, bits, has_bits), dim=1)  # (B, width)


def log_floor(metric: str) -> float:
    """What losses and errors, which are compared by their logarithms, are told apart above; NaN for other metrics."""
    return next((floor for kind, floor in _LOG_FLOORS.items() if metric.endswith(kind)), math.nan)


def is_lower_better(metric: str) -> bool:
    """Whether a metric is a loss or an error; of others, such as returns, more is better."""
    return not math.isnan(log_floor(metric))


def canonical_metric(name: str, metrics: Sequence[str]) -> str:
    """Full name of a metric; ValueError with the known ones otherwise."""
    full = ALIASES.get(name, name)
    if full not in metrics:
        known = f"it knows {list(metrics)}" if metrics else "it is unconditional, leave the prompt out"
        raise ValueError(f"the generator was not trained on metric {name!r}; {known}")
    return full


def _description(said: object, batch_size: int, embed: Embedder | None) -> Tensor:
    """(B, W) of one sentence for all prompts, or one for each."""
    if embed is None:
        raise ValueError("the generator was not trained on descriptions; leave the description out of the prompt")
    texts = [said] if isinstance(said, str) else list(said) if isinstance(said, Sequence) else []
    if len(texts) not in (1, batch_size) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"description must be a sentence, or {batch_size}, one for each network, got {said!r}")
    return embedded(texts, embed).expand(batch_size, -1)


def _table(values: Mapping[str, PromptValue] | None, metrics: Sequence[str], batch_size: int) -> Tensor:
    """(B, M) values by metric, NaN where none is given."""
    table = torch.full((batch_size, len(metrics)), math.nan)
    names = [canonical_metric(name, metrics) for name in values or {}]
    if len(set(names)) < len(names):
        raise ValueError(f"each metric may be given once, got {list(values or {})}")
    for full, (name, value) in zip(names, (values or {}).items(), strict=True):
        try:
            column = torch.as_tensor(value, dtype=torch.float32).cpu()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name} must be a number or {batch_size} numbers, got {value!r}") from None
        if column.isnan().any():
            raise ValueError(f"{name} must be a number, got NaN; leave a metric out to ask nothing of it")
        if column.ndim > 1 or (column.ndim == 1 and len(column) not in (1, batch_size)):
            raise ValueError(
                f"{name} must be one value or {batch_size}, one for each network, got shape {tuple(column.shape)}"
            )
        table[:, list(metrics).index(full)] = column
    return table


def _present(values: Tensor) -> tuple[Tensor, Tensor]:
    missing = values.isnan()
    return values.masked_fill(missing, 0.0), (~missing).float()


def readable(name: str, known: MetricRange, values: Tensor) -> Tensor:
    """Values of a metric on the scale on which the model reads them."""
    floor = log_floor(name)
    if not math.isnan(floor):
        return (values.clamp(min=0) + floor).log().clamp(max=3)
    return 4 * (values - known.low) / max(known.high - known.low, 1e-6) - 2
