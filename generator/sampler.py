"""Sampling: from noise to parameters with a diffusers scheduler, or in one pass with a deterministic model.

Legend: B networks, P numbers of one network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from generator.model.batch_norm import recompute_batch_norm
from generator.model.context import NetworkContext
from generator.model.fingerprints import fixed_examples, unit_fingerprints
from generator.model.objectives import signal_and_noise
from generator.model.transformer import RecurrentDiffusionTransformer
from generator.prompts.prompt import Prompt

_NETWORKS_PER_PASS: Final = 256
NUM_TRAIN_TIMESTEPS: Final = 5040  # divisible by most numbers of sampling steps, which DDIM's spacing assumes
Scheduler = DDIMScheduler | FlowMatchEulerDiscreteScheduler


def make_scheduler(prediction: str) -> Scheduler:
    """Scheduler whose noise levels are those of training, without clipping.

    Timestep k of N stands for time (k + 1) / N on the cosine path, k / N on straight paths.
    """
    if prediction == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS)
    times = torch.arange(1, NUM_TRAIN_TIMESTEPS + 1, dtype=torch.float64) / NUM_TRAIN_TIMESTEPS
    kept = signal_and_noise(prediction, times)[0].square()
    betas = 1 - kept / torch.cat((torch.ones(1, dtype=torch.float64), kept[:-1]))
    return DDIMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        trained_betas=betas.tolist(),
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type=prediction,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def sample_params(
    model: RecurrentDiffusionTransformer,
    context: NetworkContext,
    scheduler: Scheduler,
    prompt: Prompt,
    *,
    start: Tensor | None = None,
    num_inference_steps: int = 8,
    guidance_scale: float = 1.0,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Generated parameters (B, P).

    Args:
        model: the generator.
        context: of the layout to generate.
        scheduler: from `make_scheduler`, or another one with the same noise levels.
        prompt: B prompts.
        start: (B, P) parameters to start from.
        num_inference_steps: denoising steps; a model without diffusion takes one.
        guidance_scale: 1 for none; above, predictions move away from those for the null prompt.
        eta: 0 for the deterministic sampler, 1 for ancestral sampling (DDIM only).
        generator: random numbers.
    """
    device = context.scale.mean.device
    options = _Options(num_inference_steps, guidance_scale, eta, generator)
    parts = []
    for chosen in torch.arange(len(prompt)).split(_NETWORKS_PER_PASS):
        asked = prompt[chosen].to(device)
        known = None if start is None else start[chosen.to(start.device)].to(device)
        values = _sample_normalised(model, context, scheduler, asked, options, start=known)
        params = context.scale.denormalize(values)
        parts.append(_with_batch_norm(context, params) if context.recompute_batch_norm else params)
    return torch.cat(parts)


@dataclass(frozen=True)
class _Options:
    num_inference_steps: int
    guidance_scale: float
    eta: float
    generator: torch.Generator | None


def _sample_normalised(
    model: RecurrentDiffusionTransformer,
    context: NetworkContext,
    scheduler: Scheduler,
    prompt: Prompt,
    options: _Options,
    *,
    start: Tensor | None,
) -> Tensor:
    """Normalised values (B, P) of one pass from a start (B, P)."""
    generator = options.generator
    known = None if start is None else _fingerprints(model, context, start)
    start = None if start is None else context.scale.normalize(start)
    shape = (len(prompt), context.layout.num_params)
    device = context.scale.mean.device
    prompts = [prompt] if options.guidance_scale == 1 else [prompt, prompt.empty()]
    reads_noisy = start is None and bool(model.config["noisy_as_start"])
    prototypes = [
        None if reads_noisy else model.prototypes(context.tokenizer, asked, start=start, fingerprints=known)
        for asked in prompts
    ]

    def predict(noisy: Tensor | None, time: float) -> Tensor:
        latent = randn_tensor(shape, generator=generator, device=device) if model.config["use_latent"] else None
        fingerprints = known
        if reads_noisy and noisy is not None:
            fingerprints = _fingerprints(model, context, context.scale.denormalize(noisy))
        outputs = [
            model(
                context.tokenizer,
                asked,
                noisy=noisy,
                timestep=torch.full((shape[0],), time, device=device),
                latent=latent,
                start=start,
                fingerprints=fingerprints,
                prototypes=prototype,
            )
            for asked, prototype in zip(prompts, prototypes, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else outputs[1].lerp(outputs[0], options.guidance_scale)

    if not model.config["diffusion"]:
        return predict(None, 0.0)
    is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    _set_timesteps(scheduler, options.num_inference_steps, device)
    values = randn_tensor(shape, generator=generator, device=device)
    for timestep in scheduler.timesteps:
        time = (float(timestep) + (not is_flow)) / NUM_TRAIN_TIMESTEPS
        values = _advance(scheduler, predict(values, time), timestep, values, options)
    return values


def _fingerprints(
    model: RecurrentDiffusionTransformer, context: NetworkContext, start: Tensor
) -> dict[str, Tensor] | None:
    if not model.config["num_fingerprints"]:
        return None
    if context.task is None:
        raise ValueError(
            "this generator looks at what networks compute on labelled training examples; "
            "pass task=get_task(...), on the command line zoo=PATH"
        )
    return unit_fingerprints(context.task, start, fixed_examples(context.task))


def _with_batch_norm(context: NetworkContext, params: Tensor) -> Tensor:
    if context.task is None:
        raise ValueError(
            "this generator recomputes BatchNorm's running statistics on training images; "
            "pass task=get_task(...), on the command line zoo=PATH"
        )
    return recompute_batch_norm(context.task, params)


def _set_timesteps(scheduler: Scheduler, num_steps: int, device: torch.device) -> None:
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / num_steps, num_steps).tolist(), device=device)
    else:
        scheduler.set_timesteps(num_steps, device=device)


def _advance(scheduler: Scheduler, output: Tensor, timestep: Tensor, values: Tensor, options: _Options) -> Tensor:
    rng = options.generator
    if isinstance(scheduler, DDIMScheduler):
        step = cast("int", timestep)
        return scheduler.step(output, step, values, eta=options.eta, generator=rng, return_dict=False)[0]
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    flow_time, velocity, noisy = (cast("torch.FloatTensor", value) for value in (timestep, output, values))
    return scheduler.step(velocity, flow_time, noisy, generator=rng, return_dict=False)[0]
