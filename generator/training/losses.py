"""One training step's losses: noise the targets, run the model, score its prediction.

Legend: B pairs, P numbers of one network, V samples per pair (2 with the energy score, else 1), E examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from generator.model.context import NetworkContext
from generator.model.examples import ObservedExamples
from generator.model.fingerprints import NUM_EXAMPLES
from generator.model.objectives import (
    ObjectiveConfig,
    clean_of,
    comparable_outputs,
    deterministic_step,
    energy_score,
    log_loss_gap,
    prediction_target,
    return_gap,
    signal_and_noise,
)
from generator.model.transformer import RecurrentDiffusionTransformer
from generator.prompts.examples import NO_LABEL, Examples
from generator.sampler import corrected
from generator.tokens.tokenizer import CHUNKS, ChunkTokenizer
from generator.tokens.windows import to_windows
from generator.training.pairs import PairBatch
from zoo.tasks.task import Batch, Task


def training_losses(
    model: RecurrentDiffusionTransformer,
    context: NetworkContext,
    batch: PairBatch,
    config: ObjectiveConfig,
    *,
    rng: torch.Generator,
    precision: AbstractContextManager,
) -> dict[str, Tensor]:
    """Scalar losses by name; "total" is their weighted sum.

    Args:
        model: the generator.
        context: of the layout of the batch.
        batch: pairs.
        config: which losses.
        rng: noise, timesteps and examples are drawn from it, on the CPU.
        precision: autocast for the model alone; losses are computed in float32.
    """
    size, options = len(batch.target), model.config
    num_samples = 2 if config.energy_score else 1
    clean = context.scale.normalize(batch.target)  # (B, P)

    # What is drawn, on the CPU, so that it is the same on every device; nothing here waits for the device.
    timestep = torch.rand(size, generator=rng).to(clean.device, non_blocking=True)
    gaussian = _gaussians(clean, rng)
    latent = _gaussians(clean, rng, num_samples) if options["use_latent"] else None
    windows = _draw_windows(model, context, config, rng) if config.windows_per_step else None
    task = None if context.task is None else context.task.for_runs(batch.runs.tolist())
    if batch.num_examples:
        batch = replace(batch, prompt=replace(batch.prompt, examples=_drawn_examples(task, batch, rng)))
    observed = _observed(model, context, batch) if batch.num_examples else None
    fingerprinted_on = None
    if options["num_fingerprints"]:
        assert context.task is not None
        fingerprinted_on = context.task.draw_examples(NUM_EXAMPLES, rng)

    predict = _Predictor(model, context, batch, precision, windows, observed, fingerprinted_on)
    noisy = _noised(config.prediction, clean, gaussian, timestep)
    if config.self_fed_share and float(torch.rand((), generator=rng)) < config.self_fed_share:
        noisy = _self_fed(predict, config.prediction, clean, gaussian, timestep, rng=rng)
    noisy, timesteps = noisy.repeat(num_samples, 1), timestep.repeat(num_samples)
    output = predict(noisy, timesteps, latent)

    # What the prediction is worth in parameter space and in function space.
    wanted = prediction_target(config.prediction, clean, gaussian, timestep)
    if windows is not None:
        losses = {"params": _window_loss(output, wanted, context, windows)}
    else:
        losses = {"params": _mean(_params_scores(output, wanted, context, config), batch.has_target)}
    if config.uses_functions:
        assert task is not None
        predicted = context.scale.denormalize(clean_of(config.prediction, output, noisy, timesteps))
        losses |= _function_losses(context, task, batch, predicted, config=config, rng=rng)
    if config.description_weight and observed is not None:
        assert task is not None
        described = task.describe(batch.runs.tolist()).to(clean.device, non_blocking=True)
        losses["description"] = _description_loss(model, observed, described)
    weights = {
        "params": config.params_weight,
        "function": config.function_weight,
        "function_energy": config.function_energy_weight,
        "description": config.description_weight,
    }
    return losses | {"total": torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()}


@dataclass(frozen=True)
class _Predictor:
    """The model, given all of a batch but noise.

    Attributes:
        model, context, batch, precision: as for `training_losses`.
        windows: (K,) numbers of those to denoise; None for all.
        observed: the examples of the prompts; None for none.
        fingerprinted_on: examples on which units of the start, or of the noisy network, are seen; None for no
            fingerprints.
    """

    model: RecurrentDiffusionTransformer
    context: NetworkContext
    batch: PairBatch
    precision: AbstractContextManager
    windows: Tensor | None
    observed: ObservedExamples | None
    fingerprinted_on: Batch | None

    def __call__(self, noisy: Tensor, timestep: Tensor, latent: Tensor | None) -> Tensor:
        """Outputs (V * B, P), or windows of them, for noisy networks (V * B, P), which may stand for missing starts."""
        model, tokenizer, prompt = self.model, self.context.tokenizer, self.batch.prompt
        is_diffusion = model.config["diffusion"]
        some = noisy[: len(self.batch.target)]
        start = self.context.scale.normalize(self.batch.start) if model.config["use_start"] else None
        fingerprints = self._fingerprints(some)
        with self.precision:
            reading = model.read(
                tokenizer,
                prompt,
                noisy=some,
                start=start,
                has_start=self.batch.has_start,
                fingerprints=fingerprints,
                examples=self.observed,
            )
            reading = reading.repeat(len(noisy) // len(some))
            answer = model(
                tokenizer,
                prompt,
                noisy=noisy if is_diffusion else None,
                timestep=timestep if is_diffusion else None,
                latent=latent,
                reading=reading,
                windows=self.windows,
            )
            return corrected(model, self.context, prompt, reading, answer, timestep=timestep)

    @cached_property
    def _fingerprints_of_start(self) -> Mapping[str, Tensor]:
        return self.context.fingerprints(self.batch.start, self.fingerprinted_on)

    def _fingerprints(self, noisy: Tensor) -> Mapping[str, Tensor]:
        """Of starts, or of noisy networks (B, P) that stand for missing ones."""
        if self.fingerprinted_on is None:
            return {}
        if not self.model.config["noisy_as_start"]:
            return self._fingerprints_of_start
        as_start = self.context.scale.denormalize(noisy)
        seen = torch.where(self.batch.has_start[:, None] > 0, self.batch.start, as_start)
        return self.context.fingerprints(seen, self.fingerprinted_on)


def _gaussians(clean: Tensor, rng: torch.Generator, copies: int = 1) -> Tensor:
    """Standard normal numbers (copies * B, P), drawn on the CPU."""
    size, num_params = clean.shape
    return torch.randn(copies * size, num_params, generator=rng).to(clean.device, non_blocking=True)


def _noised(prediction: str, clean: Tensor, gaussian: Tensor, timestep: Tensor) -> Tensor:
    signal, noise = signal_and_noise(prediction, timestep[:, None])
    return signal * clean + noise * gaussian


def _self_fed(
    predict: _Predictor, prediction: str, clean: Tensor, gaussian: Tensor, timestep: Tensor, *, rng: torch.Generator
) -> Tensor:
    """Noisy networks (B, P) at `timestep` as sampling would make them, from noisier ones."""
    fraction = torch.rand(len(timestep), generator=rng).to(timestep.device, non_blocking=True)
    before = timestep + (1 - timestep) * fraction
    noisier = _noised(prediction, clean, gaussian, before)
    latent = _gaussians(clean, rng) if predict.model.config["use_latent"] else None
    with torch.no_grad():
        guess = predict(noisier, before, latent).float()
    return deterministic_step(prediction, noisier, guess, before, timestep)


def _params_scores(output: Tensor, wanted: Tensor, context: NetworkContext, config: ObjectiveConfig) -> Tensor:
    """Losses (B,) in parameter space of predictions (V * B, P)."""
    if not config.energy_score:
        return context.distance(output, wanted).square()
    first, second = output.chunk(2)
    return energy_score(first, second, wanted, context.distance)


def _drawn_examples(task: Task | None, batch: PairBatch, rng: torch.Generator) -> Examples:
    """Training examples for the prompts of a batch, each others, and others than those on which networks are scored."""
    assert task is not None
    size = len(batch.target)
    drawn = torch.randint(len(task.dataset.train), (size, batch.num_examples), generator=rng)
    inputs, targets, _ = task.batch(drawn.to(batch.target.device, non_blocking=True), size)
    has_labels = batch.has_labels.view(-1, *[1] * (targets.ndim - 1))
    return Examples(inputs, torch.where(has_labels, targets, NO_LABEL), batch.has_examples)


def _observed(model: RecurrentDiffusionTransformer, context: NetworkContext, batch: PairBatch) -> ObservedExamples:
    """The examples of a batch's prompts as the model reads them."""
    assert batch.prompt.examples is not None
    assert model.example_kind is not None
    start = batch.start if model.config["use_start"] else None
    return context.observed(batch.prompt.examples, model.example_kind, start=start, has_start=batch.has_start)


def _description_loss(model: RecurrentDiffusionTransformer, observed: ObservedExamples, described: Tensor) -> Tensor:
    """Mean squared error of what examples tell of the numbers (B, T) that describe their tasks."""
    assert model.example_describer is not None
    errors = model.example_describer(observed).values - described
    return _mean(errors.square().mean(1), observed.is_given)


def _function_losses(
    context: NetworkContext,
    task: Task,
    batch: PairBatch,
    predicted: Tensor,
    *,
    config: ObjectiveConfig,
    rng: torch.Generator,
) -> dict[str, Tensor]:
    """Function-space losses of predicted parameters (V * B, P) against those of the real targets.

    Where there is no target it is the loss itself, and so it is, unless that is to be the target's, where only examples
    or words are given.
    """
    size = len(batch.target)
    num_samples = len(predicted) // size
    examples = task.draw_examples(config.function_examples, rng, config.function_splits)
    copies = task.repeated(examples, num_samples)  # copies of a network see the same
    outputs = context.outputs(task, predicted, copies.inputs).contiguous()  # (V * B, E, ..., K)
    can_ask_otherwise = bool(batch.prompt.target.shape[1] or batch.prompt.task_bits.shape[1])  # than for the best
    is_compared = can_ask_otherwise or config.function_aim == "target"
    if is_compared or config.function_energy_weight:
        with torch.no_grad():  # softmax is slow on views
            real_outputs = context.outputs(task, batch.target, examples.inputs).contiguous()
    losses: dict[str, Tensor] = {}
    if config.function_weight:
        if task.plays_episodes:
            one_each = predicted[:size]  # of the samples; episodes are slow to play
            gap = return_gap(task, one_each, batch.target, config.function_episodes, rng)
        else:
            gap = achieved = task.objective.loss(outputs, copies.targets)
            if is_compared:
                reference = task.objective.loss(real_outputs, examples.targets)
                compared = log_loss_gap(achieved, reference.repeat(num_samples))
                asks_for_best = ~batch.prompt.asks_metric & batch.prompt.shows_task
                is_least = asks_for_best if config.function_aim == "least" else batch.has_target == 0
                gap = torch.where(is_least.repeat(num_samples), achieved, compared)
        asks = (~batch.prompt.is_null).repeat(len(gap) // size)  # of networks asked for something
        losses["function"] = _mean(gap, asks)
    if config.function_energy_weight:
        first, second = comparable_outputs(task, outputs).chunk(2)
        score = energy_score(first, second, comparable_outputs(task, real_outputs))
        losses["function_energy"] = _mean(score, batch.has_target)
    return losses


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of the values (B,) that count (B,)."""
    counts = counts.to(values.dtype)
    return (values * counts).sum() / counts.sum().clamp(min=1)


def _draw_windows(
    model: RecurrentDiffusionTransformer, context: NetworkContext, config: ObjectiveConfig, rng: torch.Generator
) -> Tensor:
    """Numbers (K,) of the windows that are denoised in this step."""
    if config.uses_functions or config.energy_score or config.self_fed_share or not model.window:
        raise ValueError(
            "windows_per_step needs a model with window > 0, energy_score=False, self_fed_share=0 and both function "
            "weights 0: a part of a network can neither be run on examples nor be fed back"
        )
    total = math.ceil(context.tokenizer.groups[0].size / model.window)
    return torch.randperm(total, generator=rng)[: config.windows_per_step].to(model.device, non_blocking=True)


def _window_loss(chunks: Tensor, wanted: Tensor, context: NetworkContext, windows: Tensor) -> Tensor:
    """Mean squared error over the numbers in sampled windows (B * K, window, W), padding left out."""
    assert isinstance(context.tokenizer, ChunkTokenizer)
    window = chunks.shape[1]
    targets = to_windows(context.tokenizer.encode(wanted)[CHUNKS], window, windows)
    mask = to_windows(
        context.tokenizer.mask[None].float().to(chunks.device, non_blocking=True), window, windows
    )  # (K, window, W)
    counted = mask.repeat(len(chunks) // len(windows), 1, 1)
    return ((chunks - targets).square() * counted).sum() / counted.sum().clamp(min=1)
