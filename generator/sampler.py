"""Sampling: from noise to parameters with a diffusers scheduler, or in one pass with a deterministic model.

Legend: B networks, P numbers of one network.
"""

from __future__ import annotations

from typing import Final, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from generator.model.context import NetworkContext
from generator.model.examples import ObservedExamples
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
    if len(prompt) > _NETWORKS_PER_PASS:
        parts = [
            sample_params(
                model,
                context,
                scheduler,
                prompt[chosen],
                start=None if start is None else start[chosen.to(start.device)],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                eta=eta,
                generator=generator,
            )
            for chosen in torch.arange(len(prompt)).split(_NETWORKS_PER_PASS)
        ]
        return torch.cat(parts)

    # What the model is told, which stays the same from step to step.
    device, options = context.device, model.config
    shape = (len(prompt), context.layout.num_params)
    prompts = [prompt.to(device)] if guidance_scale == 1 else [prompt.to(device), prompt.to(device).empty()]
    uses_fingerprints, noisy_as_start = bool(options["num_fingerprints"]), start is None and options["noisy_as_start"]
    fingerprints = normalised = None
    if start is not None:
        start = start.to(device)
        fingerprints = context.fingerprints(start) if uses_fingerprints else None
        normalised = context.scale.normalize(start)
    readings = [
        None
        if noisy_as_start
        else model.read(
            context.tokenizer,
            asked,
            start=normalised,
            fingerprints=fingerprints,
            examples=observed_examples(model, context, asked, start),
        )
        for asked in prompts
    ]

    def predict(noisy: Tensor | None, time: float) -> Tensor:
        latent = randn_tensor(shape, generator=generator, device=device) if options["use_latent"] else None
        seen = None
        if noisy_as_start and uses_fingerprints and noisy is not None:
            seen = context.fingerprints(context.scale.denormalize(noisy))
        outputs = [
            model(
                context.tokenizer,
                asked,
                noisy=noisy,
                timestep=torch.full(shape[:1], time, device=device),
                latent=latent,
                fingerprints=seen,
                examples=observed_examples(model, context, asked, None) if reading is None else None,
                reading=reading,
            )
            for asked, reading in zip(prompts, readings, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else outputs[1].lerp(outputs[0], guidance_scale)

    # From noise to parameters, or to them at once.
    if not options["diffusion"]:
        return context.generated(predict(None, 0.0))
    values = randn_tensor(shape, generator=generator, device=device)
    if isinstance(scheduler, DDIMScheduler):
        scheduler.set_timesteps(num_inference_steps, device=device)
        for timestep in scheduler.timesteps:
            output, step = predict(values, (float(timestep) + 1) / NUM_TRAIN_TIMESTEPS), cast("int", timestep)
            values = scheduler.step(output, step, values, eta=eta, generator=generator, return_dict=False)[0]
    else:
        assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
        sigmas = torch.linspace(1, 1 / num_inference_steps, num_inference_steps).tolist()
        scheduler.set_timesteps(sigmas=sigmas, device=device)
        for timestep in scheduler.timesteps:
            output = predict(values, float(timestep) / NUM_TRAIN_TIMESTEPS)
            velocity, flow_time, noisy = (cast("torch.FloatTensor", value) for value in (output, timestep, values))
            values = scheduler.step(velocity, flow_time, noisy, generator=generator, return_dict=False)[0]
    return context.generated(values)


def observed_examples(
    model: RecurrentDiffusionTransformer, context: NetworkContext, prompt: Prompt, start: Tensor | None
) -> ObservedExamples | None:
    """What the model sees of the examples of B prompts, and what starts (B, P) compute on them; None without any."""
    if prompt.examples is None:
        return None
    assert model.example_kind is not None
    if not model.config["use_start"]:
        return context.observed(prompt.examples, model.example_kind)
    has_start = torch.full((len(prompt),), float(start is not None), device=context.device)
    start = torch.zeros(len(prompt), context.layout.num_params, device=context.device) if start is None else start
    return context.observed(prompt.examples, model.example_kind, start=start, has_start=has_start)
