"""One training step's losses: noise the targets, run the model, score its prediction.

Legend: B pairs, P numbers of one network, V samples per pair (2 with the energy score, else 1), E examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from generator.model.batch_norm import run_in_batch_mode
from generator.model.context import NetworkContext
from generator.model.fingerprints import NUM_EXAMPLES, unit_fingerprints
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
    task_losses,
)
from generator.model.transformer import RecurrentDiffusionTransformer
from generator.prompts.prompt import Prompt
from generator.tokens.tokenizer import CHUNKS, ChunkTokenizer
from generator.tokens.windows import to_windows
from generator.trajectories import PairBatch
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
    device, size = batch.target.device, len(batch.target)
    num_samples = 2 if config.energy_score else 1
    clean = context.scale.normalize(batch.target)
    timestep = torch.rand(size, generator=rng).to(device)
    gaussian = torch.randn(clean.shape, generator=rng).to(device)
    latent = None
    if model.config["use_latent"]:
        latent = torch.randn(num_samples * size, clean.shape[1], generator=rng).to(device)
    windows = _draw_windows(model, context, config, rng)
    predict = _predictor(model, context, batch, windows=windows, rng=rng, precision=precision)

    noisy = _mixed(config.prediction, clean, gaussian, timestep)
    if config.self_fed_share and float(torch.rand((), generator=rng)) < config.self_fed_share:
        before = timestep + (1 - timestep) * torch.rand(size, generator=rng).to(device)
        noisier = _mixed(config.prediction, clean, gaussian, before)
        other = None if latent is None else torch.randn(clean.shape, generator=rng).to(device)
        with torch.no_grad():
            first = predict(noisier, before, other).float()
        noisy = deterministic_step(config.prediction, noisier, first, before, timestep)
    noisy, timesteps = noisy.repeat(num_samples, 1), timestep.repeat(num_samples)
    output = predict(noisy, timesteps, latent)

    wanted = prediction_target(config.prediction, clean, gaussian, timestep)
    if windows is not None:
        losses = {"params": _window_loss(output, wanted, context, windows)}
    else:
        losses = {"params": _score(output, wanted, config)}
    if config.uses_functions:
        predicted = clean_of(config.prediction, output, noisy, timesteps)
        losses |= _function_losses(context, batch, context.scale.denormalize(predicted), config, rng)
    return losses | {"total": _weighted(losses, config)}


_Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # noisy (V * B, P), timestep (V * B,), latent -> output


def _predictor(
    model: RecurrentDiffusionTransformer,
    context: NetworkContext,
    batch: PairBatch,
    *,
    windows: Tensor | None,
    rng: torch.Generator,
    precision: AbstractContextManager,
) -> _Predict:
    """The model on a batch, whose starts, prompts and examples for fingerprints stay the same from call to call."""
    start = context.scale.normalize(batch.start) if model.config["use_start"] else None
    is_diffusion = bool(model.config["diffusion"])
    fingerprints_of = _fingerprinting(model, context, batch, rng)

    def predict(noisy: Tensor, timestep: Tensor, latent: Tensor | None) -> Tensor:
        copies = len(noisy) // len(batch.target)
        fingerprints = fingerprints_of(noisy[: len(batch.target)])
        with precision:
            return model(
                context.tokenizer,
                batch.prompt.repeat(copies),
                noisy=noisy if is_diffusion else None,
                timestep=timestep if is_diffusion else None,
                latent=latent,
                start=None if start is None else start.repeat(copies, 1),
                has_start=batch.has_start.repeat(copies),
                fingerprints={name: values.repeat(copies, 1, 1) for name, values in fingerprints.items()},
                windows=windows,
            )

    return predict


def _mixed(prediction: str, clean: Tensor, gaussian: Tensor, timestep: Tensor) -> Tensor:
    signal, noise = signal_and_noise(prediction, timestep[:, None])
    return signal * clean + noise * gaussian


def _weighted(losses: dict[str, Tensor], config: ObjectiveConfig) -> Tensor:
    total = config.params_weight * losses["params"]
    if "function" in losses:
        total = total + config.function_weight * losses["function"]
    if "function_energy" in losses:
        total = total + config.function_energy_weight * losses["function_energy"]
    return total


def _fingerprinting(
    model: RecurrentDiffusionTransformer, context: NetworkContext, batch: PairBatch, rng: torch.Generator
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Function from noisy normalised networks (B, P) to the fingerprints of what the model is given."""
    if not model.config["num_fingerprints"]:
        return lambda noisy: {}
    task = context.task
    if task is None:
        raise ValueError("fingerprints need a task to run networks on; give one or switch them off")
    examples = task.draw_examples(NUM_EXAMPLES, rng)
    if not model.config["noisy_as_start"]:
        of_start = unit_fingerprints(task, batch.start, examples)
        return lambda noisy: of_start
    is_known = batch.has_start[:, None] > 0
    return lambda noisy: unit_fingerprints(
        task, torch.where(is_known, batch.start, context.scale.denormalize(noisy)), examples
    )


def _score(output: Tensor, wanted: Tensor, config: ObjectiveConfig) -> Tensor:
    if not config.energy_score:
        return F.mse_loss(output, wanted)
    first, second = output.chunk(2)
    return energy_score(first, second, wanted).mean()


def _function_losses(
    context: NetworkContext, batch: PairBatch, predicted: Tensor, config: ObjectiveConfig, rng: torch.Generator
) -> dict[str, Tensor]:
    """Function-space losses of predicted parameters (V * B, P) against those of the real targets."""
    if context.task is None:
        raise ValueError("the function-space loss needs a task to run networks on; give one or set its weights to 0")
    num_samples = len(predicted) // len(batch.target)
    task = context.task.for_runs(batch.runs.tolist())
    tasks = context.task.for_runs(batch.runs.repeat(num_samples).tolist())
    examples = task.draw_examples(config.function_examples, rng, config.function_splits)
    outputs = _outputs(context, tasks, predicted, examples).contiguous()  # (V * B, E, ..., K); softmax is slow on views
    with torch.no_grad():
        real_outputs = _outputs(context, task, batch.target, examples).contiguous()
    losses: dict[str, Tensor] = {}
    if config.function_weight and task.plays_episodes:
        one_each = predicted[: len(batch.target)]  # of the samples; episodes are slow to play
        losses["function"] = _mean_where_asked(
            return_gap(task, one_each, batch.target, config.function_episodes, rng), batch.prompt
        )
    elif config.function_weight:
        reference = task_losses(task, real_outputs, examples)
        gap = log_loss_gap(task_losses(tasks, outputs, examples), reference.repeat(num_samples))
        losses["function"] = _mean_where_asked(gap, batch.prompt)
    if config.function_energy_weight:
        first, second = comparable_outputs(task, outputs).chunk(2)
        losses["function_energy"] = energy_score(first, second, comparable_outputs(task, real_outputs)).mean()
    return losses


def _mean_where_asked(gap: Tensor, prompt: Prompt) -> Tensor:
    """Mean of gaps (V * B,) over the networks of which something was asked."""
    asks = ~(prompt.target.isnan().all(1) & prompt.task_bits.isnan().all(1))
    weight = asks.float().repeat(len(gap) // len(asks))
    return (gap * weight).sum() / weight.sum().clamp(min=1)


def _outputs(context: NetworkContext, task: Task, params: Tensor, examples: Batch) -> Tensor:
    if context.recompute_batch_norm:
        return run_in_batch_mode(task, params, examples.inputs)[0]
    return task.predict(params, examples.inputs)


def _draw_windows(
    model: RecurrentDiffusionTransformer, context: NetworkContext, config: ObjectiveConfig, rng: torch.Generator
) -> Tensor | None:
    if not config.windows_per_step:
        return None
    if config.uses_functions or config.energy_score or config.self_fed_share or not model.window:
        raise ValueError(
            "windows_per_step needs a model with window > 0, energy_score=False, self_fed_share=0 and both function "
            "weights 0: a part of a network can neither be run on examples nor be fed back"
        )
    total = math.ceil(context.tokenizer.groups[0].size / model.window)
    return torch.randperm(total, generator=rng)[: config.windows_per_step].to(model.device)


def _window_loss(chunks: Tensor, wanted: Tensor, context: NetworkContext, windows: Tensor) -> Tensor:
    """Mean squared error over the numbers in sampled windows (B * K, window, W), padding left out."""
    assert isinstance(context.tokenizer, ChunkTokenizer)
    window = chunks.shape[1]
    targets = to_windows(context.tokenizer.encode(wanted)[CHUNKS], window, windows)
    mask = to_windows(context.tokenizer.mask[None].float().to(chunks.device), window, windows)  # (K, window, W)
    counted = mask.repeat(len(chunks) // len(windows), 1, 1)
    return ((chunks - targets).square() * counted).sum() / counted.sum().clamp(min=1)
