"""One layout as the generator sees it: tokens, normalisation, and the task that its networks are run on.

Legend: B networks, P numbers of one network, E examples, n units of a group, F features of a unit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from generator.model.batch_norm import has_batch_norm, recompute_batch_norm, run_in_batch_mode
from generator.model.fingerprints import fixed_examples, unit_fingerprints
from generator.tokens.normalizer import ParamNormalizer, Scale
from generator.tokens.tokenizer import ParamTokenizer
from zoo.networks.layout import ParamLayout
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
    """

    tokenizer: ParamTokenizer
    scale: Scale
    task: Task | None = None
    recompute_batch_norm: bool = False

    @classmethod
    def of(cls, normalizer: ParamNormalizer, layout: ParamLayout, task: Task | None = None) -> NetworkContext:
        """Context of a layout that is made of features the normalizer knows."""
        tokenizer = normalizer.make_tokenizer(layout)
        recomputes = bool(normalizer.config["recompute_batch_norm"]) and has_batch_norm(layout)
        return cls(tokenizer, normalizer.scale(tokenizer), task, recomputes)

    @property
    def layout(self) -> ParamLayout:
        return self.tokenizer.layout

    @property
    def device(self) -> torch.device:
        return self.scale.mean.device

    def to(self, device: torch.device | str) -> NetworkContext:
        task = None if self.task is None else self.task.to(device)
        return replace(self, scale=self.scale.to(device), task=task)

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
