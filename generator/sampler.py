"""Sampling: from noise to parameters with a diffusers scheduler, or in one pass with a deterministic model.

Legend: B networks, P numbers of one network.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from generator.model.context import NetworkContext
from generator.model.corrections import direction_of, gradient_on_examples
from generator.model.examples import ObservedExamples
from generator.model.objectives import signal_and_noise
from generator.model.transformer import Reading, RecurrentDiffusionTransformer
from generator.prompts.examples import Examples
from generator.prompts.prompt import Prompt

NETWORKS_PER_PASS: Final = 256
NUM_TRAIN_TIMESTEPS: Final = 5040  # divisible by most numbers of sampling steps, which DDIM's spacing assumes
_FEW_STEPS: Final = 100  # up to here, steps that are not evenly spaced differ by less than two per cent
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


def check_sampling(
    scheduler: Scheduler, num_inference_steps: int, *, eta: float = 0.0, rng: torch.Generator | None = None
) -> None:
    """Refuse what a scheduler cannot do, and random numbers that are none."""
    number, most = num_inference_steps, NUM_TRAIN_TIMESTEPS
    if number > most:
        raise ValueError(f"num_inference_steps must be from 1 to {most}, got {number}")
    is_ddim = isinstance(scheduler, DDIMScheduler)
    if is_ddim and number > _FEW_STEPS and most % number:
        raise ValueError(f"above {_FEW_STEPS}, num_inference_steps must divide {most}, got {number}")
    if eta and not is_ddim:
        raise ValueError(f"eta must be 0 for a generator trained with prediction='flow', got {eta}")
    if rng is not None and not isinstance(rng, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, got {rng!r}; use torch.Generator().manual_seed(0)")


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
    latent_scale: float = 1.0,
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
        latent_scale: deviation of the latents; above 1 networks differ more.
        generator: random numbers.
    """
    if len(prompt) > NETWORKS_PER_PASS:
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
                latent_scale=latent_scale,
                generator=generator,
            )
            for chosen in torch.arange(len(prompt)).split(NETWORKS_PER_PASS)
        ]
        return torch.cat(parts)

    predict = Predictor.of(
        model, context, prompt, start, guidance_scale=guidance_scale, latent_scale=latent_scale, rng=generator
    )
    if not model.config["diffusion"]:
        return context.generated(predict(None, 0.0))
    noise = randn_tensor((len(prompt), context.layout.num_params), generator=generator, device=context.device)
    if isinstance(scheduler, DDIMScheduler):
        return context.generated(_by_ddim(predict, scheduler, noise, num_inference_steps, eta))
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    return context.generated(_by_flow(predict, scheduler, noise, num_inference_steps))


@dataclass(frozen=True)
class Predictor:
    """What the model makes of noisy networks.

    Attributes:
        prompts: that of the call; with guidance the null prompt, too.
        readings: of what the model is told and stays the same from step to step, by prompt.
        noisy_as_start: whether the model reads the noisy network in place of a start, anew in each step.
    """

    model: RecurrentDiffusionTransformer
    context: NetworkContext
    prompts: list[Prompt]
    readings: list[Any]
    noisy_as_start: bool
    guidance_scale: float
    latent_scale: float
    rng: torch.Generator | None

    @classmethod
    def of(
        cls,
        model: RecurrentDiffusionTransformer,
        context: NetworkContext,
        prompt: Prompt,
        start: Tensor | None,
        *,
        guidance_scale: float = 1.0,
        latent_scale: float = 1.0,
        rng: torch.Generator | None = None,
    ) -> Predictor:
        """For prompts (B) and starts (B, P), as `sample_params` takes them."""
        prompt = prompt.to(context.device)
        prompts = [prompt] if guidance_scale == 1 else [prompt, prompt.empty()]
        noisy_as_start = start is None and bool(model.config["noisy_as_start"])
        fingerprints = normalised = None
        if start is not None:
            start = start.to(context.device)
            fingerprints = context.fingerprints(start) if model.config["num_fingerprints"] else None
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
        return cls(model, context, prompts, readings, noisy_as_start, guidance_scale, latent_scale, rng)

    def __call__(self, noisy: Tensor | None, time: float) -> Tensor:
        """Output (B, P) for noisy networks (B, P) at a time, and one draw of the latent."""
        model, context, size = self.model, self.context, len(self.prompts[0])
        shape, device = (size, context.layout.num_params), context.device
        latent = None
        if model.config["use_latent"]:
            latent = self.latent_scale * randn_tensor(shape, generator=self.rng, device=device)
        seen = None
        if self.noisy_as_start and model.config["num_fingerprints"] and noisy is not None:
            seen = context.fingerprints(context.scale.denormalize(noisy))
        timestep = torch.full((size,), time, device=device)
        outputs = [
            model(
                context.tokenizer,
                asked,
                noisy=noisy,
                timestep=timestep,
                latent=latent,
                fingerprints=seen,
                examples=observed_examples(model, context, asked, None) if reading is None else None,
                reading=reading,
            )
            for asked, reading in zip(self.prompts, self.readings, strict=True)
        ]
        told = zip(self.prompts, self.readings, outputs, strict=True)
        outputs = [
            corrected(model, context, asked, reading, output, timestep=timestep) for asked, reading, output in told
        ]
        return outputs[0] if len(outputs) == 1 else outputs[1].lerp(outputs[0], self.guidance_scale)


def _by_ddim(predict: Predictor, scheduler: DDIMScheduler, values: Tensor, num_steps: int, eta: float) -> Tensor:
    scheduler.set_timesteps(num_steps, device=values.device)
    for timestep in scheduler.timesteps:
        output, step = predict(values, (float(timestep) + 1) / NUM_TRAIN_TIMESTEPS), cast("int", timestep)
        values = scheduler.step(output, step, values, eta=eta, generator=predict.rng, return_dict=False)[0]
    return values


def _by_flow(predict: Predictor, scheduler: FlowMatchEulerDiscreteScheduler, values: Tensor, num_steps: int) -> Tensor:
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / num_steps, num_steps).tolist(), device=values.device)
    for timestep in scheduler.timesteps:
        output = predict(values, float(timestep) / NUM_TRAIN_TIMESTEPS)
        velocity, flow_time, noisy = (cast("torch.FloatTensor", value) for value in (output, timestep, values))
        values = scheduler.step(velocity, flow_time, noisy, generator=predict.rng, return_dict=False)[0]
    return values


def observed_examples(
    model: RecurrentDiffusionTransformer, context: NetworkContext, prompt: Prompt, start: Tensor | None
) -> ObservedExamples | None:
    """What the model sees of the examples of B prompts, and what starts (B, P) compute on them; None without any."""
    if prompt.examples is None:
        return None
    assert model.example_kind is not None
    observed = partial(context.observed, prompt.examples, model.example_kind)
    if not model.config["use_start"]:
        return observed()
    has_start = torch.full((len(prompt),), float(start is not None), device=context.device)
    start = torch.zeros(len(prompt), context.layout.num_params, device=context.device) if start is None else start
    return observed(start=start, has_start=has_start)


def corrected(
    model: RecurrentDiffusionTransformer,
    context: NetworkContext,
    prompt: Prompt,
    reading: Reading,
    answer: Tensor,
    *,
    timestep: Tensor | None = None,
) -> Tensor:
    """Answers (V * B, P) after all corrections of the model.

    Args:
        model, context: as for `sample_params`.
        prompt: B prompts.
        reading: of these, V times over.
        answer: (V * B, P), V to each prompt.
        timestep: (V * B,) noise times, for a diffusion model.
    """
    task, examples, turns = context.task, prompt.examples, count()

    def gradient() -> Tensor:
        """(V * B, P) of the loss on the next part of the examples, by the answers."""
        if examples is None:
            return torch.zeros_like(answer)
        assert task is not None
        part, several = examples.part(next(turns), model.config["step_examples"]), context.scale.denormalize(answer)
        options = {"unlabelled": not model.config["correction_rate"]}
        slopes = [gradient_on_examples(task, params, part, **options) for params in several.split(len(prompt))]
        return torch.cat(slopes) * context.scale.std

    for number in range(model.config["num_corrections"]):
        slope = gradient()
        answer, rates = model.correct(context.tokenizer, reading, number, answer, slope, timestep=timestep)
        if rates is None:
            continue
        for step in range(_num_steps(model, examples)):
            slope = gradient() if step else slope
            answer = answer - rates * context.tokenizer.decode(direction_of(context.tokenizer, slope))
    return answer


def _num_steps(model: RecurrentDiffusionTransformer, examples: Examples | None) -> int:
    """Steps along the gradient that follow each correction."""
    passes = model.config["correction_passes"]
    if model.training or not passes or examples is None:
        return model.config["correction_steps"]
    return max(1, round(passes * examples.num_parts(model.config["step_examples"])))
