"""ParameterPipeline: networks from a prompt, and optionally from a start, in one call.

    pipe = ParameterPipeline.from_pretrained("out/generator")
    out = pipe(start=module, prompt={"loss": 0.2}, num_samples=8)
    module.load_state_dict(out.state_dicts()[0])

Legend: B networks generated, P numbers of one network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from generator.model.context import NetworkContext
from generator.model.transformer import RecurrentDiffusionTransformer
from generator.prompts.calibration import Calibration
from generator.prompts.prompt import Prompt
from generator.sampler import Scheduler, sample_params
from generator.tokens.normalizer import ParamNormalizer
from generator.tokens.tokenizer import is_generated
from zoo.networks.layout import LayoutMismatchError, ParamLayout
from zoo.storage.splits import SplitRule
from zoo.tasks.task import Task

Start = nn.Module | Mapping[str, Tensor] | Tensor


@dataclass(frozen=True)
class GeneratedParams:
    """Networks from the pipeline.

    Attributes:
        params: (B, P) on the pipeline's device, de-normalised.
        layout: names and shapes of the vector's parts.
    """

    params: Tensor
    layout: ParamLayout

    def __len__(self) -> int:
        return len(self.params)

    def state_dicts(self) -> list[dict[str, Tensor]]:
        """One dict for each network, ready for `load_state_dict`."""
        return [self.layout.unflatten(vector) for vector in self.params]


class ParameterPipeline(DiffusionPipeline):
    """Generates parameters of a network, or the update of a start that reaches a prompted loss.

    Args:
        model: predicts clean parameters.
        normalizer: layouts, tokens and normalisation.
        scheduler: noise levels and the sampling rule.
        splits: which runs the training saw and held out, as `SplitRule.to_dict` has it; None for the zoo's own splits.
        task_bits_column: column of the zoo's runs that holds the task bits; None without a family of tasks.
        calibrations: of prompts of one metric, by mode ("start", "noise") for each of the normalizer's layouts;
            None to ask the model for the very values of a prompt.
    """

    def __init__(
        self,
        model: RecurrentDiffusionTransformer,
        normalizer: ParamNormalizer,
        scheduler: Scheduler,
        *,
        splits: dict[str, Any] | None = None,
        task_bits_column: str | None = None,
        calibrations: list[dict[str, dict[str, Any]]] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(model=model, normalizer=normalizer, scheduler=scheduler)
        self.register_to_config(splits=splits, task_bits_column=task_bits_column, calibrations=calibrations)
        self.model: RecurrentDiffusionTransformer
        self.normalizer: ParamNormalizer
        self.scheduler: Scheduler
        self._contexts: dict[tuple[ParamLayout, torch.device], NetworkContext] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> ParameterPipeline:
        """Pipeline saved by `save_pretrained`."""
        return super().from_pretrained(pretrained_model_name_or_path, **{"low_cpu_mem_usage": False, **kwargs})

    @property
    def metrics(self) -> list[str]:
        """Names that a prompt may use; "loss" is short for "val_loss", and so on."""
        return list(self.model.ranges)

    @property
    def splits(self) -> SplitRule | None:
        """Splits of the training; None for the zoo's own."""
        known = self.config["splits"]
        return None if known is None else SplitRule.from_dict(known)

    @torch.no_grad()
    def __call__(
        self,
        start: Start | None = None,
        prompt: Mapping[str, float | Tensor] | None = None,
        *,
        num_samples: int | None = None,
        num_inference_steps: int = 8,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        start_metrics: Mapping[str, float | Tensor] | None = None,
        task_bits: Tensor | Sequence[float] | None = None,
        layout: ParamLayout | None = None,
        task: Task | None = None,
        generator: torch.Generator | None = None,
    ) -> GeneratedParams:
        """Generate networks.

        Args:
            start: a module, a state dict, or vectors (P,) or (B, P); None for a network from noise.
            prompt: asked values by metric, one or B each; None asks for any network of the training runs. A value
                outside what the training runs reached is answered as the nearest one inside, with a warning.
            num_samples: networks to generate; with a single start, samples of its update. Default: one per start.
            num_inference_steps: denoising steps.
            guidance_scale: 1 for none.
            eta: 0 for the deterministic sampler, 1 for ancestral sampling.
            start_metrics: what is known of the start, as `prompt`.
            task_bits: (T,) or (B, T), for a generator trained on a family of tasks.
            layout: to generate; default that of the start module, or the only one seen in training.
            task: of the network; only generators with fingerprints or recomputed running statistics need it, see
                `generator.model.fingerprints` and `generator.model.batch_norm`.
            generator: random numbers, on the CPU or the pipeline's device.

        Raises:
            ValueError: for an unknown metric, NaN, or numbers of networks that do not fit together.
            LayoutMismatchError: if the start is of another architecture.
        """
        layout = self._layout_of(start, layout)
        starts = None if start is None else self._start_vectors(start, layout)
        batch_size = _batch_size(starts, num_samples)
        asked = Prompt.of(
            prompt,
            self.metrics,
            batch_size,
            start=start_metrics,
            task_bits=task_bits,
            num_task_bits=self.model.config["num_task_bits"],
        )
        asked.warn_outside(self.model.ranges)
        asked = self._calibrated(asked.clamped(self.model.ranges), layout, "noise" if start is None else "start")
        if starts is not None:
            starts = starts.expand(batch_size, -1)
        generated = sample_params(
            self.model,
            self._context(layout, task),
            self.scheduler,
            asked,
            start=starts,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            generator=generator,
        )
        if starts is not None:
            _copy_integers(layout, starts.to(generated.device), generated)
        return GeneratedParams(generated, layout)

    def improve(
        self,
        start: Start,
        prompt: Mapping[str, float | Tensor],
        *,
        num_updates: int,
        num_inference_steps: int = 8,
        task: Task | None = None,
        generator: torch.Generator | None = None,
    ) -> list[GeneratedParams]:
        """Networks after each of `num_updates` updates, each of which starts from the last with the same prompt."""
        results: list[GeneratedParams] = []
        layout = self._layout_of(start, None)
        for _ in range(num_updates):
            results.append(
                self(
                    results[-1].params if results else start,
                    prompt,
                    num_inference_steps=num_inference_steps,
                    layout=layout,
                    task=task,
                    generator=generator,
                )
            )
        return results

    def _layout_of(self, start: Start | None, layout: ParamLayout | None) -> ParamLayout:
        """The layout asked for, else that of a module, else the only trained one that fits."""
        if layout is not None:
            return layout
        if isinstance(start, nn.Module):
            return ParamLayout.of(start)
        known = self.normalizer.layouts
        if isinstance(start, Tensor):
            known = tuple(one for one in known if one.num_params == start.shape[-1]) or known
        elif start is not None:
            known = tuple(one for one in known if one.slots and _has_shapes_of(one, start)) or known
        if len(known) > 1:
            raise ValueError(f"the generator knows {len(known)} layouts; pass layout=ParamLayout.of(module)")
        return known[0]

    def _calibrated(self, prompt: Prompt, layout: ParamLayout, mode: str) -> Prompt:
        """What to ask the model for; a layout or a mode that it was not trained on is asked as it is."""
        if self.config["calibrations"] is None or layout not in self.normalizer.layouts:
            return prompt
        by_mode = self.config["calibrations"][self.normalizer.layouts.index(layout)]
        if mode not in by_mode:
            return prompt
        calibration = Calibration(**by_mode[mode])
        target, column = prompt.target.clone(), self.metrics.index(calibration.metric)
        target[:, column] = calibration(target[:, column])
        return replace(prompt, target=target)

    def _start_vectors(self, start: Start, layout: ParamLayout) -> Tensor:
        vectors = start if isinstance(start, Tensor) else layout.flatten(start)
        layout.check_vector(vectors)
        vectors = vectors.detach().reshape(-1, layout.num_params).float()
        if not bool(vectors.isfinite().all()):
            raise ValueError("start must be finite, got NaN or infinity in its parameters; did its training diverge?")
        return vectors

    def _context(self, layout: ParamLayout, task: Task | None) -> NetworkContext:
        key = (layout, self.device)
        if key not in self._contexts:
            self._contexts[key] = NetworkContext.of(self.normalizer, layout).to(self.device)
        context = self._contexts[key]
        return context if task is None else replace(context, task=task.to(self.device))


def _batch_size(starts: Tensor | None, num_samples: int | None) -> int:
    if starts is None or len(starts) == 1:
        size = 1 if num_samples is None else num_samples
        if size < 1:
            raise ValueError(f"num_samples must be at least 1, got {size}")
        return size
    if num_samples not in (None, len(starts)):
        raise ValueError(f"num_samples must be {len(starts)} for as many starts, got {num_samples}")
    return len(starts)


def _has_shapes_of(layout: ParamLayout, tensors: Mapping[str, Tensor]) -> bool:
    try:
        layout.flatten(tensors)
    except LayoutMismatchError:
        return False
    return True


def _copy_integers(layout: ParamLayout, source: Tensor, target: Tensor) -> None:
    for slot in layout:
        if not is_generated(slot):
            target[:, slot.span] = source[:, slot.span]
