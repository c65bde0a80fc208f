"""What the generator needs to know of the networks in a batch: tokens, normalisation, and the task to run them on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from generator.model.batch_norm import has_batch_norm
from generator.tokens.normalizer import ParamNormalizer, Scale
from generator.tokens.tokenizer import ChunkTokenizer, NeuronTokenizer
from zoo.networks.layout import ParamLayout
from zoo.tasks.task import Task


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

    tokenizer: NeuronTokenizer | ChunkTokenizer
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

    def to(self, device: torch.device | str) -> NetworkContext:
        task = None if self.task is None else self.task.to(device)
        return replace(self, scale=self.scale.to(device), task=task)
