"""One training step's losses: noise the targets, run the model, score its prediction.

Legend: B pairs, P numbers of one network, V samples per pair (2 with the energy score, else 1), E examples.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from generator.model.context import NetworkContext
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
from generator.tokens.tokenizer import CHUNKS, ChunkTokenizer
from generator.tokens.windows import to_windows
from generator.training.pairs import PairBatch


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
    device, size = batch.target.device, len(batch.target)
    num_samples = 2 if config.energy_score else 1
    options = model.config
    clean = context.scale.normalize(batch.target)  # (B, P)
    start = context.scale.normalize(batch.start) if options["use_start"] else None

    def gaussians(copies: int) -> Tensor:
        return torch.randn(copies * size, clean.shape[1], generator=rng).to(device, non_blocking=True)

    # What is drawn, on the CPU, so that it is the same on every device; nothing here waits for the device.
    timestep = torch.rand(size, generator=rng).to(device, non_blocking=True)
    gaussian = gaussians(1)
    latent = gaussians(num_samples) if options["use_latent"] else None
    windows = _draw_windows(model, context, config, rng) if config.windows_per_step else None
    examples = of_start = None
    if options["num_fingerprints"]:
        assert context.task is not None
        examples = context.task.draw_examples(NUM_EXAMPLES, rng)
        of_start = None if options["noisy_as_start"] else context.fingerprints(batch.start, examples)

    def predict(noisy: Tensor, timestep: Tensor, latent: Tensor | None) -> Tensor:
        copies = len(noisy) // size
        fingerprints = of_start or {}
        if examples is not None and of_start is None:
            as_start = context.scale.denormalize(noisy[:size])
            seen = torch.where(batch.has_start[:, None] > 0, batch.start, as_start)
            fingerprints = context.fingerprints(seen, examples)
        with precision:
            return model(
                context.tokenizer,
                batch.prompt.repeat(copies),
                noisy=noisy if options["diffusion"] else None,
                timestep=timestep if options["diffusion"] else None,
                latent=latent,
                start=None if start is None else start.repeat(copies, 1),
                has_start=batch.has_start.repeat(copies),
                fingerprints={name: values.repeat(copies, 1, 1) for name, values in fingerprints.items()},
                windows=windows,
            )

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
    elif config.energy_score:
        first, second = output.chunk(2)
        losses = {"params": energy_score(first, second, wanted).mean()}
    else:
        losses = {"params": F.mse_loss(output, wanted)}
    if config.uses_functions:
        predicted = context.scale.denormalize(clean_of(config.prediction, output, noisy, timesteps))
        losses |= _function_losses(context, batch, predicted, config, rng)
    weights = {
        "params": config.params_weight,
        "function": config.function_weight,
        "function_energy": config.function_energy_weight,
    }
    return losses | {"total": torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()}


def _function_losses(
    context: NetworkContext, batch: PairBatch, predicted: Tensor, config: ObjectiveConfig, rng: torch.Generator
) -> dict[str, Tensor]:
    """Function-space losses of predicted parameters (V * B, P) against those of the real targets."""
    assert context.task is not None
    num_samples = len(predicted) // len(batch.target)
    task = context.task.for_runs(batch.runs.tolist())
    tasks = context.task.for_runs(batch.runs.repeat(num_samples).tolist())
    examples = tasks.draw_examples(config.function_examples, rng, config.function_splits)
    real_examples = tasks.part_of(examples, slice(len(batch.target)))  # copies of a network see the same
    outputs = context.outputs(tasks, predicted, examples.inputs).contiguous()  # (V * B, E, ..., K)
    with torch.no_grad():
        real_outputs = context.outputs(
            task, batch.target, real_examples.inputs
        ).contiguous()  # softmax is slow on views
    losses: dict[str, Tensor] = {}
    if config.function_weight:
        if task.plays_episodes:
            one_each = predicted[: len(batch.target)]  # of the samples; episodes are slow to play
            gap = return_gap(task, one_each, batch.target, config.function_episodes, rng)
        else:
            achieved = task.objective.loss(outputs, examples.targets)
            reference = task.objective.loss(real_outputs, real_examples.targets)
            gap = log_loss_gap(achieved, reference.repeat(num_samples))
        asks = (~batch.prompt.is_null).float().repeat(len(gap) // len(batch.target))  # of networks asked for something
        losses["function"] = (gap * asks).sum() / asks.sum().clamp(min=1)
    if config.function_energy_weight:
        first, second = comparable_outputs(task, outputs).chunk(2)
        losses["function_energy"] = energy_score(first, second, comparable_outputs(task, real_outputs)).mean()
    return losses


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
