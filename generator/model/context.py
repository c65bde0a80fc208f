"""One layout as the generator sees it: tokens, normalisation, and the task that its networks are run on.

Legend: B networks, P numbers of one network, E examples, n units of a group, F features of a unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from generator.model.batch_norm import has_batch_norm, recompute_batch_norm, run_in_batch_mode
from generator.model.examples import (
    FrozenBase,
    ObservedExamples,
    input_features,
    label_shares,
    output_features,
)
from generator.model.fingerprints import fixed_examples, unit_fingerprints
from generator.model.objectives import Distance, product_distance, product_sizes, rms_distance
from generator.prompts.examples import ExampleKind, Examples
from generator.tokens.normalizer import ParamNormalizer, Scale
from generator.tokens.tokenizer import ParamTokenizer
from zoo.networks.layout import ParamLayout
from zoo.networks.low_rank import has_adapters
from zoo.tasks.task import Batch, Task

_HOW_TO_GIVE_A_TASK = "pass task=get_task(...), on the command line zoo=PATH"


@dataclass(frozen=True)
class NetworkContext:
    """One layout as the generator sees it.

    Attributes:
        tokenizer: cuts the layout into feature blocks.
        scale: normalisation of its flat vectors.
        task: on which networks of the layout are run; None if they never are.
        recompute_batch_norm: whether running statistics are recomputed on training images; see
            `generator.model.batch_norm`.
        product_sizes: of training adapters by group, see `product_distance`; empty where there are none.
    """

    tokenizer: ParamTokenizer
    scale: Scale
    task: Task | None = None
    recompute_batch_norm: bool = False
    product_sizes: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, normalizer: ParamNormalizer, layout: ParamLayout, task: Task | None = None, real: Tensor | None = None
    ) -> NetworkContext:
        """Context of a layout that is made of features the normalizer knows; in training with real networks (B, P)."""
        tokenizer = normalizer.make_tokenizer(layout)
        recomputes = bool(normalizer.config["recompute_batch_norm"]) and has_batch_norm(layout)
        sizes = product_sizes(layout, real) if real is not None and has_adapters(layout) else {}
        return cls(tokenizer, normalizer.scale(tokenizer), task, recomputes, sizes)

    @property
    def layout(self) -> ParamLayout:
        return self.tokenizer.layout

    @property
    def device(self) -> torch.device:
        return self.scale.mean.device

    def to(self, device: torch.device | str) -> NetworkContext:
        task = None if self.task is None else self.task.to(device)
        return replace(self, scale=self.scale.to(device), task=task)

    @cached_property
    def distance(self) -> Distance:
        """How far normalised networks (B, P) are from others, (B,): adapters by what they add, not by its factors."""
        if not self.product_sizes:
            return rms_distance
        apart = product_distance(self.layout, self.product_sizes)
        return lambda first, second: apart(self.scale.denormalize(first), self.scale.denormalize(second))

    def fingerprints(self, params: Tensor, examples: Batch | None = None) -> dict[str, Tensor]:
        """Features (B, n, F) by group of what the units of networks (B, P) compute on examples, by default fixed ones.

        Raises:
            ValueError: without a task.
        """
        if self.task is None:
            raise ValueError(
                f"this generator looks at what networks compute on labelled training examples; {_HOW_TO_GIVE_A_TASK}"
            )
        return unit_fingerprints(self.task, params, fixed_examples(self.task) if examples is None else examples)

    @cached_property
    def base(self) -> FrozenBase | None:
        """What computes features of examples beside the networks of the layout; None for other networks."""
        return FrozenBase(self.task) if self.task is not None and has_adapters(self.task.layout) else None

    def observed(
        self,
        examples: Examples,
        kind: ExampleKind,
        *,
        start: Tensor | None = None,
        has_start: Tensor | None = None,
    ) -> ObservedExamples:
        """Examples as the model reads them: with what the base and starts compute on them.

        Args:
            examples: of B prompts.
            kind: of the examples.
            start: (B, P), of which the outputs are read; None for a model that takes no start.
            has_start: (B,) 0 or 1, zeros for outputs that are not to be seen; default all 1.

        Raises:
            ValueError: without a task.
        """
        if self.task is None:
            raise ValueError(f"this generator runs networks on the examples of its prompts; {_HOW_TO_GIVE_A_TASK}")
        parts = [input_features(examples.inputs, kind)]
        if self.base is not None:
            parts.append(self.base(examples.inputs))
        if start is not None:
            outputs = output_features(self.task, start, examples.inputs)
            parts.append(outputs if has_start is None else outputs * has_start[:, None, None])
        labels = label_shares(examples, kind.num_classes) * examples.is_given[:, None, None]
        return ObservedExamples(torch.cat(parts, dim=2), labels, examples.is_given)

    def example_options(self, *, use_start: bool, described: bool = False) -> dict[str, Any]:
        """What a model of this layout has to be told of the examples in its prompts; see `observed`.

        Args:
            use_start: as of the model.
            described: whether they are to tell what describes their task.
        """
        assert self.task is not None
        train, kind = self.task.dataset.train, ExampleKind.of(self.task)
        one = Examples(train.inputs[None, :1], train.targets[None, :1], torch.ones(1, dtype=torch.bool))
        start = torch.zeros(1, self.layout.num_params, device=self.device) if use_start else None
        options = {**asdict(kind), "num_features": self.observed(one, kind, start=start).features.shape[2]}
        return {**options, "num_described": self.task.describe([0]).shape[1]} if described else options

    def outputs(self, task: Task, params: Tensor, inputs: Tensor) -> Tensor:
        """Outputs (B, E, ..., K) of networks (B, P) in the mode in which the generator's networks are meant to run."""
        if self.recompute_batch_norm:
            return run_in_batch_mode(task, params, inputs)[0]
        return task.predict(params, inputs)

    def generated(self, values: Tensor) -> Tensor:
        """Networks (B, P) of normalised values (B, P), running statistics recomputed where they are.

        Raises:
            ValueError: if they are recomputed and there is no task.
        """
        params = self.scale.denormalize(values)
        if not self.recompute_batch_norm:
            return params
        if self.task is None:
            raise ValueError(
                f"this generator recomputes BatchNorm's running statistics on training images; {_HOW_TO_GIVE_A_TASK}"
            )
        return recompute_batch_norm(self.task, params)
