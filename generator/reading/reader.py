"""WeightReader: loss, error and hyperparameters of a network from its weights alone, each with an interval.

    reader = WeightReader.from_pretrained("out/reader")
    reading = reader.read(module)
    reading.values["test_error"], reading.low["test_error"], reading.high["test_error"]

A network is described by its outputs on a few inputs, which are learned as the reader is trained, and by statistics of
its weights. Neither depends on the order of its units, and outputs mean the same at every width. No data is needed to
read. An interval is the reader's own guess of its error, scaled so that it held for as many networks of validation runs
as it promises.

Source: learned inputs: Kahana et al. 2024 (arXiv 2410.10811); intervals: Lei et al. 2018 (arXiv 1604.04173),
section 5.2, locally weighted split conformal.

Legend: B networks, P numbers of one network, I learned inputs, K outputs, S statistics, Q quantities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from generator.from_folder import FromFolder
from generator.networks import Start, in_one_form, read_start
from generator.reading.statistics import QUANTILES, described_slots, weight_statistics
from zoo.ambient import torch_defaults
from zoo.networks.layout import LayoutMismatchError, ParamLayout
from zoo.tasks.objectives import Probabilistic
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task

_NETWORKS_PER_PASS: Final = 512
_MIN_SPREAD: Final = 1e-6


@dataclass(frozen=True)
class WeightReading:
    """What a reader says of B networks, by quantity.

    Attributes:
        values: (B,) what it expects.
        low, high: (B,) ends of the interval that holds the true value as often as the reader promises.
    """

    values: dict[str, Tensor]
    low: dict[str, Tensor]
    high: dict[str, Tensor]


class WeightReader(FromFolder, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Reads quantities of networks of some layouts.

    Args:
        layouts: JSON texts of the layouts seen in training.
        quantities: names of metrics and hyperparameters, and what is added before a logarithm is taken; None where a
            quantity is read as it is.
        tasks: of each layout, as `get_task` takes them; None for those that it cannot make.
        input_shape: of one input of the tasks; None for a reader of statistics alone.
        num_outputs: K numbers that a network computes of one input.
        num_inputs: I.
        width: of the hidden layers.
        coverage: share of intervals that hold the true value.
        shares: quantities that lie between 0 and 1, as the errors of classifiers do.
    """

    __module__ = "generator"  # what saved pipelines name: the public surface, not this file

    @register_to_config
    def __init__(
        self,
        layouts: list[str],
        quantities: dict[str, float | None],
        tasks: list[dict[str, Any] | None] | None = None,
        *,
        input_shape: Sequence[int] | None = None,
        num_outputs: int = 0,
        num_inputs: int = 128,
        width: int = 256,
        coverage: float = 0.9,
        shares: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.layouts = tuple(ParamLayout.from_json(text) for text in layouts)
        self.quantities = tuple(sorted(quantities))
        self.shares = frozenset(shares)
        self.slots = [slot.name for slot in described_slots(self.layouts[0])]
        num_statistics, num_quantities = (2 + len(QUANTILES)) * len(self.slots), len(quantities)
        floors = [quantities[name] for name in self.quantities]
        self.is_log = [floor is not None for floor in floors]
        self.floors = [floor or 0.0 for floor in floors]

        self.inputs = nn.Parameter(torch.zeros(num_inputs, *input_shape)) if input_shape is not None else None
        self.of_statistics = nn.Linear(num_statistics, width)
        if self.inputs is not None:
            self.of_outputs = nn.Sequential(
                nn.LayerNorm(num_inputs * num_outputs), nn.Linear(num_inputs * num_outputs, width)
            )
        self.head = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2 * num_quantities))
        for name, size in (("statistics", num_statistics), ("quantity", num_quantities)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.register_buffer("interval", torch.ones(num_quantities))  # half widths in units of the expected error
        self.statistics_mean: Tensor
        self.statistics_std: Tensor
        self.quantity_mean: Tensor
        self.quantity_std: Tensor
        self.interval: Tensor
        self._tasks: dict[ParamLayout, Task | None] = {}

    @torch_defaults()
    @torch.no_grad()
    def read(self, networks: Start, *, layout: ParamLayout | None = None, task: Task | None = None) -> WeightReading:
        """Read networks.

        Args:
            networks: a module, a state dict, vectors (P,) or (B, P), networks that were generated, or a list of these.
            layout: of the networks; default that of the task, or the one seen in training that fits.
            task: that runs them, for widths that were not seen in training, and where the reader has not recorded one.

        Raises:
            LayoutMismatchError: for another architecture.
            ValueError: if nothing is there to run the networks.
        """
        layout = layout or (None if task is None else task.layout)
        layout, params = read_start(networks, self.layouts, layout)
        params = in_one_form(layout, params).to(self.device)
        task = self._task(layout) if task is None else task.to(self.device)
        parts = [self(some, layout, task) for some in params.split(_NETWORKS_PER_PASS)]
        expected, spread = (torch.cat(part).float() for part in zip(*parts, strict=True))  # (B, Q)
        half = self.interval * spread
        return WeightReading(*map(self._in_units, (expected, expected - half, expected + half)))

    def forward(self, params: Tensor, layout: ParamLayout, task: Task | None) -> tuple[Tensor, Tensor]:
        """Expected standardised quantities (B, Q) of networks (B, P), and how far off they are expected to be (B, Q).

        Args: as for `read`; `task` is not looked at by a reader of statistics alone.
        """
        if [slot.name for slot in described_slots(layout)] != self.slots:
            raise LayoutMismatchError(
                f"the reader knows networks of the tensors {self.slots}, these have "
                f"{[slot.name for slot in described_slots(layout)]}"
            )
        statistics = (weight_statistics(layout, params) - self.statistics_mean) / self.statistics_std
        hidden = self.of_statistics(statistics.to(self.dtype))
        if self.inputs is not None:
            if task is None:
                raise ValueError(
                    "the reader runs networks, and has recorded no task for these; pass task=get_task(...)"
                )
            hidden = hidden + self.of_outputs(told_outputs(task, params.to(self.dtype), self.inputs).flatten(1))
        expected, spread = self.head(hidden).chunk(2, dim=1)
        return expected, nn.functional.softplus(spread) + _MIN_SPREAD

    def standardised(self, values: Mapping[str, Tensor]) -> Tensor:
        """Quantities (B, Q), standardised by training networks, of values (B,) by name; NaN where one is missing."""
        size = len(next(iter(values.values())))
        columns = []
        for name, is_log, floor in zip(self.quantities, self.is_log, self.floors, strict=True):
            column = torch.as_tensor(values.get(name, torch.full((size,), torch.nan))).float()
            columns.append((column + floor).log() if is_log else column)
        return (torch.stack(columns, 1).to(self.device) - self.quantity_mean) / self.quantity_std

    def _in_units(self, standardised: Tensor) -> dict[str, Tensor]:
        columns = (standardised * self.quantity_std + self.quantity_mean).float().unbind(1)
        values = {}
        for name, is_log, floor, column in zip(self.quantities, self.is_log, self.floors, columns, strict=True):
            value = column.exp() - floor if is_log else column
            is_positive = is_log or name.endswith("_error")
            values[name] = value.clamp(0 if is_positive else -torch.inf, 1 if name in self.shares else torch.inf)
        return values

    def _task(self, layout: ParamLayout) -> Task | None:
        """The recorded task of a layout, if there is one."""
        if layout not in self._tasks:
            known = self.config["tasks"] if layout in self.layouts else None
            options = known[self.layouts.index(layout)] if known else None
            self._tasks[layout] = None if options is None else get_task(**options)
        task = self._tasks[layout]
        return None if task is None else task.to(self.device)


def told_outputs(task: Task, params: Tensor, inputs: Tensor) -> Tensor:
    """What networks (B, P) say of inputs (I, ...): log-probabilities where they mean such, else outputs (B, I, ..., K).

    Those of a single output would all be zero if it were taken for the only class.
    """
    outputs, objective = task.predict(params, inputs), task.objective
    return objective.log_probs(outputs) if isinstance(objective, Probabilistic) else outputs
