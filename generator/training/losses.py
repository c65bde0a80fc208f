"""One training step's losses: noise the targets, run the model, score its prediction.

Legend: B pairs, P numbers of one network, V samples per pair (2 with the energy score, else 1), E examples.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import replace

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
from zoo.tasks.task import Task


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
    device, size, options = batch.target.device, len(batch.target), model.config
    num_samples = 2 if config.energy_score else 1
    clean = context.scale.normalize(batch.target)  # (B, P)
    start = context.scale.normalize(batch.start) if options["use_start"] else None

    def gaussians(copies: int) -> Tensor:
        return torch.randn(copies * size, clean.shape[1], generator=rng).to(device, non_blocking=True)

    # What is drawn, on the CPU, so that it is the same on every device; nothing here waits for the device.
    timestep = torch.rand(size, generator=rng).to(device, non_blocking=True)
    gaussian = gaussians(1)
    latent = gaussians(num_samples) if options["use_latent"] else None
    windows = _draw_windows(model, context, config, rng) if config.windows_per_step else None
    task = None if context.task is None else context.task.for_runs(batch.runs.tolist())
    observed = None
    if batch.num_examples:
        batch = replace(batch, prompt=replace(batch.prompt, examples=_drawn_examples(task, batch, rng)))
        observed = _observed(model, context, batch)
    examples = of_start = None
    if options["num_fingerprints"]:
        assert context.task is not None
        examples = context.task.draw_examples(NUM_EXAMPLES, rng)
        of_start = None if options["noisy_as_start"] else context.fingerprints(batch.start, examples)

    def predict(noisy: Tensor, timestep: Tensor, latent: Tensor | None) -> Tensor:
        fingerprints = of_start or {}
        if examples is not None and of_start is None:
            as_start = context.scale.denormalize(noisy[:size])
            seen = torch.where(batch.has_start[:, None] > 0, batch.start, as_start)
            fingerprints = context.fingerprints(seen, examples)
        with precision:
            reading = model.read(
                context.tokenizer,
                batch.prompt,
                noisy=noisy[:size],
                start=start,
                has_start=batch.has_start,
                fingerprints=fingerprints,
                examples=observed,
            )
            answer = model(
                context.tokenizer,
                batch.prompt,
                noisy=noisy if options["diffusion"] else None,
                timestep=timestep if options["diffusion"] else None,
                latent=latent,
                reading=reading.repeat(len(noisy) // size),
                windows=windows,
            )
            return corrected(model, context, batch.prompt, reading, answer)

    # The noisy input: the target with noise, or what the model made of a noisier one.
    signal, noise = signal_and_noise(config.prediction, timestep[:, None])
    noisy = signal * clean + noise * gaussian
    if config.self_fed_share and float(torch.rand((), generator=rng)) < config.self_fed_share:
        before = timestep + (1 - timestep) * torch.rand(size, generator=rng).to(device, non_blocking=True)
        signal, noise = signal_and_noise(config.prediction, before[:, None])
        noisier = signal * clean + noise * gaussian
        with torch.no_grad():
            guess = predict(noisier, before, gaussians(1) if options["use_latent"] else None).float()
        noisy = deterministic_step(config.prediction, noisier, guess, before, timestep)
    noisy, timesteps = noisy.repeat(num_samples, 1), timestep.repeat(num_samples)

    # The prediction, and what it is worth in parameter space and in function space.
    output = predict(noisy, timesteps, latent)
    wanted = prediction_target(config.prediction, clean, gaussian, timestep)
    if windows is not None:
        losses = {"params": _window_loss(output, wanted, context, windows)}
    else:
        losses = {"params": _mean(_params_scores(output, wanted, context, config), batch.has_target)}
    if config.uses_functions:
        assert task is not None
        predicted = context.scale.denormalize(clean_of(config.prediction, output, noisy, timesteps))
        losses |= _function_losses(context, task, batch, predicted, config=config, rng=rng)
    weights = {
        "params": config.params_weight,
        "function": config.function_weight,
        "function_energy": config.function_energy_weight,
    }
    return losses | {"total": torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()}


def _params_scores(output: Tensor, wanted: Tensor, context: NetworkContext, config: ObjectiveConfig) -> Tensor:
    """Losses (B,) in parameter space of predictions (V * B, P)."""
    if not config.energy_score:
        return context.distance(output, wanted).square()
    first, second = output.chunk(2)
    return energy_score(first, second, wanted, context.distance)


def _drawn_examples(task: Task | None, batch: PairBatch, rng: torch.Generator) -> Examples:
    """Examples for the prompts of a batch, others than those on which networks are scored but for chance."""
    assert task is not None
    drawn = task.draw_examples(batch.num_examples, rng)
    size = len(batch.target)
    one = drawn.targets.ndim - task.dataset.train.targets.ndim  # 1 if each network has its own
    inputs = drawn.inputs if task.has_own_inputs else drawn.inputs.expand(size, *drawn.inputs.shape)
    targets = drawn.targets if one else drawn.targets.expand(size, *drawn.targets.shape)
    has_labels = batch.has_labels.view(-1, *[1] * (targets.ndim - 1))
    return Examples(inputs, torch.where(has_labels, targets, NO_LABEL), batch.has_examples)


def _observed(model: RecurrentDiffusionTransformer, context: NetworkContext, batch: PairBatch) -> ObservedExamples:
    """The examples of a batch's prompts as the model reads them."""
    assert batch.prompt.examples is not None
    assert model.example_kind is not None
    start = batch.start if model.config["use_start"] else None
    return context.observed(batch.prompt.examples, model.example_kind, start=start, has_start=batch.has_start)


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

    Where there is no target, and where examples alone are asked for, it is the loss itself.
    """
    size = len(batch.target)
    num_samples = len(predicted) // size
    examples = task.draw_examples(config.function_examples, rng, config.function_splits)
    copies = task.repeated(examples, num_samples)  # copies of a network see the same
    outputs = context.outputs(task, predicted, copies.inputs).contiguous()  # (V * B, E, ..., K)
    with torch.no_grad():  # softmax is slow on views
        real_outputs = context.outputs(task, batch.target, examples.inputs).contiguous()
    losses: dict[str, Tensor] = {}
    if config.function_weight:
        if task.plays_episodes:
            one_each = predicted[:size]  # of the samples; episodes are slow to play
            gap = return_gap(task, one_each, batch.target, config.function_episodes, rng)
        else:
            achieved = task.objective.loss(outputs, copies.targets)
            reference = task.objective.loss(real_outputs, examples.targets)
            gap = log_loss_gap(achieved, reference.repeat(num_samples))
            asks_for_best = ~batch.prompt.asks_metric & batch.has_examples
            gap = torch.where(asks_for_best.repeat(num_samples), achieved, gap)
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
