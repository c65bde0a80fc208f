"""ParameterPipeline: networks from a prompt, and optionally from a start, in one call.

    pipe = ParameterPipeline.from_pretrained("out/generator")
    out = pipe(start=module, prompt={"loss": 0.2}, num_samples=8)
    module.load_state_dict(out.state_dicts()[0])

With a reader (`pipe.reader = train_reader(zoo)`) it reads networks, and may keep the best of several without any data.

Legend: B networks generated, P numbers of one network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generator.inversion import edit_params
from generator.model import transformer
from generator.model.context import NetworkContext
from generator.networks import GeneratedParams, Start, in_one_form, only_layout, read_start
from generator.prompts.calibration import Calibration
from generator.prompts.descriptions import Embedder, embedder_of
from generator.prompts.examples import Examples
from generator.prompts.plausibility import loss_on_prompts, warn_of_unusual
from generator.prompts.prompt import DESCRIPTION, TASK_BITS, Prompt, PromptValue
from generator.reading import reader as readers
from generator.reading.choice import best_of as index_of_best
from generator.recorded_tasks import check_task, made_again
from generator.sampler import Scheduler, check_sampling, sample_params
from generator.saved_pipeline import SavedPipeline
from generator.tokens import normalizer as normalizers
from generator.tokens.tokenizer import is_generated
from zoo.ambient import torch_defaults
from zoo.checkpoints.adapters import save_adapter
from zoo.networks.layout import LayoutMismatchError, ParamLayout
from zoo.networks.low_rank import has_adapters
from zoo.settings import check_options
from zoo.storage.splits import SplitRule
from zoo.tasks.task import Task


class ParameterPipeline(SavedPipeline):
    """Generates parameters of a network, or the update of a start that reaches a prompted loss.

    Args:
        model: predicts clean parameters.
        normalizer: layouts, tokens and normalisation.
        scheduler: noise levels and the sampling rule.
        splits: which runs the training saw and held out, as `SplitRule.to_dict` has it; None for the zoo's own splits.
        task_bits_column: column of the zoo's runs that holds the task bits; None without a family of tasks.
        tasks: of each of the normalizer's layouts, as `get_task` takes them; None for those that it cannot make.
        calibrations: of prompts of one metric and of the latents' scale, by mode ("start", "noise") for each of the
            normalizer's layouts; None to ask the model for the very values of a prompt.
        usual_losses: that networks have at most on the examples of their own prompts, for each of the normalizer's
            layouts, see `generator.prompts.plausibility`; None where that is not known.
        reader: reads networks from their weights; None for a pipeline that only makes them.
        descriptions: what reads descriptions, see `generator.prompts.descriptions`; None for a generator without. A
            function of yours has to be set again, `pipe.embed = ...`, after loading.
    """

    _optional_components = ["reader"]  # noqa: RUF012 (as diffusers declares it)

    def __init__(
        self,
        model: transformer.RecurrentDiffusionTransformer,
        normalizer: normalizers.ParamNormalizer,
        scheduler: Scheduler,
        *,
        splits: dict[str, Any] | None = None,
        task_bits_column: str | None = None,
        tasks: list[Any] | None = None,  # diffusers warns of types that it cannot check, as dict | None
        calibrations: list[dict[str, dict[str, Any]]] | None = None,
        usual_losses: list[Any] | None = None,
        reader: readers.WeightReader | None = None,
        descriptions: str | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(model=model, normalizer=normalizer, scheduler=scheduler, reader=reader)
        self.register_to_config(
            splits=splits,
            task_bits_column=task_bits_column,
            tasks=tasks,
            calibrations=calibrations,
            usual_losses=usual_losses,
            descriptions=descriptions,
        )
        self.embed: Embedder | None = None
        self.base = {}
        self.model: transformer.RecurrentDiffusionTransformer
        self.normalizer: normalizers.ParamNormalizer
        self.scheduler: Scheduler
        self._contexts: dict[tuple[ParamLayout, torch.device], NetworkContext] = {}
        self._last: tuple[GeneratedParams, Task | None] | None = None

    @property
    def metrics(self) -> list[str]:
        """Names of metrics that a prompt may use; "loss" is short for "val_loss", and so on."""
        return list(self.model.ranges)

    @property
    def splits(self) -> SplitRule | None:
        """Splits of the training; None for the zoo's own."""
        known = self.config["splits"]
        return None if known is None else SplitRule.from_dict(known)

    @torch_defaults()
    @torch.no_grad()
    def __call__(
        self,
        start: Start | None = None,
        prompt: Mapping[str, Any] | None = None,
        *,
        num_samples: int | None = None,
        best_of: int = 1,
        num_inference_steps: int = 8,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        start_metrics: Mapping[str, PromptValue] | None = None,
        task_bits: Tensor | Sequence[float] | None = None,
        layout: ParamLayout | None = None,
        task: Task | None = None,
        generator: torch.Generator | None = None,
    ) -> GeneratedParams:
        """Generate networks.

        Args:
            start: a module, a state dict, vectors (P,) or (B, P), networks of another call, or a list of these; None
                for a network from noise.
            prompt: asked values by metric, one or B each; None asks for any network of the training runs. A value
                outside what the training runs reached is answered as the nearest one inside, with a warning. Beside
                metrics, or alone, it may say for which task: `"examples": (inputs, targets)` for a generator trained on
                these, 4 to 512 in any order, inputs (E, ...) for all networks or (B, E, ...), targets None or -1 where
                there is no label; or `"task_bits"`; or in words, `"description": "tell 3 and 5 from the rest"`.
            num_samples: networks to generate; with a single start, samples of its update. Default: one per start.
            best_of: networks to sample for each that is returned, which is the one that the pipeline's reader finds
                nearest to the prompt; without a metric in the prompt, the one of which the first metric reads best.
            num_inference_steps: denoising steps.
            guidance_scale: 1 for none.
            eta: 0 for the deterministic sampler, 1 for ancestral sampling.
            start_metrics: what is known of the start, as `prompt`.
            task_bits: (T,) or (B, T), for a generator trained on a family of tasks; short for these in the prompt.
            layout: to generate; default that of the start, of the task's adapters, or the only one seen in training.
            task: of the network, for generators that run networks: on examples, for fingerprints, for running
                statistics. Default the one that the training recorded, if it was a named one.
            generator: random numbers, on the CPU or the pipeline's device.

        Raises:
            ValueError: for an unknown metric, NaN, a setting out of range, or numbers of networks that do not fit
                together.
            LayoutMismatchError: if the start is of another architecture.
        """
        counts = {"num_samples": num_samples, "best_of": best_of, "num_inference_steps": num_inference_steps}
        options = {**counts, "guidance_scale": guidance_scale, "eta": eta}
        check_options(options, type(self).__call__, positive=counts, shares=("eta",))
        check_sampling(self.scheduler, num_inference_steps, eta=eta, rng=generator)
        if best_of > 1:
            self._require_reader()
        layout, starts = self._starts(start, layout, task)
        context = self._context(layout, task)
        size = _num_networks(1 if starts is None else len(starts), num_samples)
        if task_bits is not None:
            prompt = {**(prompt or {}), TASK_BITS: task_bits}
        asked = self._prompts(prompt, size, start_metrics)
        calibration = self._calibration(layout, "noise" if start is None else "start")
        repeated = torch.arange(size).repeat_interleave(best_of)
        starts = None if starts is None else starts.expand(size, -1)[repeated.to(starts.device)]
        generated = sample_params(
            self.model,
            context,
            self.scheduler,
            self._calibrated(asked, calibration)[repeated],
            start=starts,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            latent_scale=1.0 if calibration is None else calibration.latent_scale,
            generator=generator,
        )
        if starts is not None:
            _copy_counters(layout, starts, generated)
        if best_of > 1:
            read = self.read(generated, layout=layout, task=context.task)
            best = index_of_best(self._require_reader(), read, asked, self.metrics)
            generated = generated[best.to(generated.device)]
        if asked.examples is not None and not bool(asked.asks_metric.any()):
            self._check_fit(context, asked.examples, generated)
        return self._answer(generated, layout, context.task)

    @torch_defaults()
    def edit(
        self,
        network: Start,
        prompt: Mapping[str, Any],
        *,
        own_prompt: Mapping[str, Any] | None = None,
        start: Start | None = None,
        num_inference_steps: int = 24,
        layout: ParamLayout | None = None,
        task: Task | None = None,
        generator: torch.Generator | None = None,
    ) -> GeneratedParams:
        """Networks that answer another prompt, made from the noise into which the given ones are exactly inverted.

        Asked for its own prompt, a network comes back to a few units of float32's last place. See
        `generator.inversion`; docs/findings.md says what of a network survives.

        Args:
            network: one or several, in any form that a start can have.
            prompt: to answer, as for a call.
            own_prompt: what the networks are already, such as the losses that they have, as `prompt`. Without, they
                are taken for any networks of the training runs, and come out farther from what they were.
            start: what they are updates of, perhaps they themselves: for generators that were trained on updates alone.
            num_inference_steps: up into the noise, and as many down again.
            layout, task: as for a call.
            generator: random numbers.

        Raises:
            ValueError: if the generator makes networks in one pass; as for a call otherwise.
            LayoutMismatchError: if a network is of another architecture.
        """
        if not self.model.config["diffusion"]:
            instead = "pipe(start=network)" if self.model.config["use_start"] else "pipe(prompt=...)"
            raise ValueError(
                f"this generator makes networks in one pass, not from noise, so none is edited; use {instead}"
            )
        steps = {"num_inference_steps": num_inference_steps}
        check_options(steps, type(self).edit, positive=steps)
        check_sampling(self.scheduler, num_inference_steps, rng=generator)
        layout, networks = self._starts(network, layout, task)
        if networks is None:
            raise ValueError("edit needs a network, got None; for one from noise call the pipeline: pipe(prompt=...)")
        begun = self._starts(start, layout, task)[1]
        if begun is not None:
            if len(begun) not in (1, len(networks)):
                raise ValueError(f"start must be one start, or {len(networks)}, one for each network, got {len(begun)}")
            begun = begun.expand_as(networks)
        context = self._context(layout, task)
        calibration = self._calibration(layout, "noise" if begun is None else "start")
        own, asked = (self._calibrated(self._prompts(one, len(networks)), calibration) for one in (own_prompt, prompt))
        edited = edit_params(
            self.model,
            context,
            self.scheduler,
            params=networks,
            own=own,
            asked=asked,
            start=begun,
            num_inference_steps=num_inference_steps,
            generator=generator,
        )
        _copy_counters(layout, networks, edited)
        return self._answer(edited, layout, context.task)

    def _answer(self, params: Tensor, layout: ParamLayout, task: Task | None) -> GeneratedParams:
        """Networks (B, P) of a call, kept for `save_adapter`."""
        if not params.isfinite().all():
            raise ValueError("the networks made are not finite: is what was given far larger than the training's?")
        self._last = GeneratedParams(params, layout), task
        return self._last[0]

    def _prompts(
        self, values: Mapping[str, Any] | None, size: int, start: Mapping[str, PromptValue] | None = None
    ) -> Prompt:
        """Prompts of `size` networks, with a warning where they are outside the trained range, brought into it."""
        if isinstance(values, Mapping) and DESCRIPTION in values and self.embed is None and self.config["descriptions"]:
            self.embed = embedder_of(self.config["descriptions"])
        prompts = Prompt.of(
            values,
            self.metrics,
            size,
            start=start,
            num_task_bits=self.model.config["num_task_bits"],
            kind=self.model.example_kind,
            embed=self.embed if self.model.config["description_width"] else None,
        )
        said, width = prompts.description, self.model.config["description_width"]
        if said is not None and said.shape[1] != width:
            raise ValueError(
                f"the generator was trained on descriptions of {width} numbers, got {said.shape[1]}: set pipe.embed to "
                f"what it was trained with ({self.config['descriptions']!r})"
            )
        prompts.warn_outside(self.model.ranges)
        return prompts.clamped(self.model.ranges)

    def read(
        self, networks: Start, *, layout: ParamLayout | None = None, task: Task | None = None
    ) -> readers.WeightReading:
        """What the pipeline's reader says of networks, see `WeightReader.read`.

        Raises:
            ValueError: if the pipeline has no reader.
            LayoutMismatchError: if the networks are of another architecture.
        """
        reader = self._require_reader()
        layout, params = read_start(networks, reader.layouts, layout or (None if task is None else task.layout))
        if task is None and has_adapters(layout):  # whose base is part of the pipeline, not of the reader
            task = self._recorded_task(layout)
        return reader.read(params, layout=layout, task=task)

    def _require_reader(self) -> readers.WeightReader:
        if self.reader is None:
            raise ValueError("the pipeline has no reader; give it one: pipe.reader = train_reader(zoo)")
        return self.reader

    def save_adapter(self, folder: str | os.PathLike, generated: GeneratedParams | None = None, index: int = 0) -> None:
        """Write one generated adapter as a folder that `PeftModel.from_pretrained(base, folder)` loads.

        Args:
            folder: that does not exist or is empty.
            generated: networks of a call; default those of the last one.
            index: which of them.

        Raises:
            ValueError: if there are none, or the pipeline makes no adapters of a model that it knows.
        """
        last, task = self._last or (None, None)
        generated = last if generated is None else generated
        if generated is None or not 0 <= index < len(generated):
            raise ValueError(f"there is no network {index} to save; generate one first, adapter = pipe(prompt=...)")
        if task is None or task.layout != generated.layout:
            task = self._recorded_task(generated.layout)
        if task is None or not has_adapters(generated.layout):
            raise ValueError("only adapters of a model that the pipeline knows can be saved so; see state_dicts()")
        save_adapter(Path(folder), generated.state_dicts()[index], task.make_model())

    def _starts(
        self, start: Start | None, layout: ParamLayout | None, task: Task | None
    ) -> tuple[ParamLayout, Tensor | None]:
        """The layout to generate, and starts (B, P) of it; None for networks from noise."""
        if layout is None and task is not None and has_adapters(task.layout):
            layout = task.layout
        if start is None:
            return layout or only_layout(self.normalizer.layouts), None
        layout, starts = read_start(start, self.normalizer.layouts, layout)
        is_as_trained = self.normalizer.config["statistics_per_number"]
        return layout, starts if is_as_trained else in_one_form(layout, starts)

    def _check_fit(self, context: NetworkContext, examples: Examples, generated: Tensor) -> None:
        """Warn of networks that do not fit the examples by which alone they were asked for."""
        known = dict(zip(self.normalizer.layouts, self.config["usual_losses"] or (), strict=False))
        usual = known.get(context.layout)
        if usual is not None and context.task is not None:
            warn_of_unusual(loss_on_prompts(context.task, generated, examples.to(generated.device)), usual)

    def _calibration(self, layout: ParamLayout, mode: str) -> Calibration | None:
        """How networks of a layout are asked for; None for layouts and modes that the model was not trained on."""
        if self.config["calibrations"] is None or layout not in self.normalizer.layouts:
            return None
        by_mode = self.config["calibrations"][self.normalizer.layouts.index(layout)]
        return Calibration(**by_mode[mode]) if mode in by_mode else None

    def _calibrated(self, prompt: Prompt, calibration: Calibration | None) -> Prompt:
        """What to ask the model for."""
        if calibration is None:
            return prompt
        target, column = prompt.target.clone(), self.metrics.index(calibration.metric)
        target[:, column] = calibration(target[:, column])
        return replace(prompt, target=target)

    def _context(self, layout: ParamLayout, task: Task | None) -> NetworkContext:
        """How the generator sees networks of a layout, which need not be one it was trained on."""
        key = (layout, self.device)
        if key not in self._contexts:
            try:
                context = NetworkContext.of(
                    self.normalizer, layout, self._recorded_task(layout) if task is None else None
                )
            except ValueError as error:
                raise LayoutMismatchError(f"the generator was trained on other architectures: {error}") from error
            self._contexts[key] = context.to(self.device)
        context = self._contexts[key]
        if task is None:
            return context
        check_task(task, layout, base=self.base, records=self.config["tasks"])
        return replace(context, task=task.to(self.device))

    def _recorded_task(self, layout: ParamLayout) -> Task | None:
        """The task that the training recorded for a layout, which only generators that run networks need."""
        runs_networks, known = self.model.example_kind is not None or has_adapters(layout), self.normalizer.layouts
        if not runs_networks or layout not in known or self.config["tasks"] is None:
            return None
        return made_again(self.config["tasks"][known.index(layout)], self.base)


def _copy_counters(layout: ParamLayout, source: Tensor, target: Tensor) -> None:
    """Numbers (B, P) that are not generated, such as counters of batches, from one set of networks into another."""
    for slot in layout:
        if not is_generated(slot):
            target[:, slot.span] = source[:, slot.span].to(target.device)


def _num_networks(num_starts: int, num_samples: int | None) -> int:
    """How many to generate: one for each start, or samples of a single one."""
    if num_samples is None:
        return num_starts
    if num_samples != num_starts > 1:
        raise ValueError(f"num_samples must be {num_starts}, one for each start, got {num_samples}")
    return int(num_samples)
