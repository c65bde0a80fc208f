"""Networks inverted into the noise that a generator would make them from, exactly, and made again by another prompt.

Two copies of a network climb through the levels of noise. Each is moved by what the model makes of the other, so that
every move can be taken back, whatever the model is; a coupling pulls them together, lest they part on the way back.

Source: reversible solvers with any base step, McCallum and Foster 2024 (arXiv 2410.11648), here with DDIM's step;
editing by exact inversion, Wallace et al. 2022 (arXiv 2211.12446, EDICT) and Zhang et al. 2023 (2307.10829, BDIA).

Legend: B networks, P numbers of one network, K moves from one level of noise to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from generator.model.context import NetworkContext
from generator.model.objectives import deterministic_step, signal_and_noise
from generator.model.transformer import RecurrentDiffusionTransformer
from generator.prompts.prompt import Prompt
from generator.sampler import NETWORKS_PER_PASS, DDIMScheduler, Predictor, Scheduler
from zoo.devices import widened

_LOWEST: Final = 0.3  # noise over signal that real networks seem to have to a model, which foresees no more of them
_HIGHEST: Final = 30.0
_COUPLING: Final = 0.97  # 1 for none; inversion divides by it in each move
Output = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Inversion:
    """From networks to noise and back, in double precision where the device has it.

    Attributes:
        prediction: what the model predicts, one of `objectives.PREDICTIONS`.
        num_steps: K; in each move the model is asked twice.
    """

    prediction: str
    num_steps: int

    def invert(self, output: Output, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Both copies (B, P) at the highest level of noise.

        Args:
            output: of the model for noisy networks (B, P) at a time in [0, 1]; for the same arguments the same.
            clean: (B, P) normalised networks.
        """
        times = self._times()
        first = second = widened(clean) * self._signal(times[0])
        for before, after in pairwise(times):
            second = second + self._change(output, first, before, after)
            first = first - (1 - _COUPLING) * second - self._change(output, second, after, before)
            first = first / _COUPLING
        return first, second

    def regenerate(self, output: Output, first: Tensor, second: Tensor) -> Tensor:
        """Clean networks (B, P) from both copies: by the output that they were inverted with, the same ones."""
        times = self._times()[::-1]
        for before, after in pairwise(times):
            first = _COUPLING * first + (1 - _COUPLING) * second + self._change(output, second, before, after)
            second = second - self._change(output, first, after, before)
        return first / self._signal(times[-1])

    def _change(self, output: Output, noisy: Tensor, before: float, after: float) -> Tensor:
        """What DDIM's step from one time to another adds to noisy networks (B, P)."""
        times = [torch.full((len(noisy),), time, dtype=noisy.dtype, device=noisy.device) for time in (before, after)]
        predicted = output(noisy.float(), before).to(noisy.dtype)
        return deterministic_step(self.prediction, noisy, predicted, *times) - noisy

    def _times(self) -> list[float]:
        """Of the K + 1 levels from low to high, evenly spaced in the logarithm of noise over signal."""
        ratios = torch.logspace(math.log10(_LOWEST), math.log10(_HIGHEST), self.num_steps + 1, dtype=torch.float64)
        return (ratios / (1 + ratios) if self.prediction == "flow" else ratios.atan() * (2 / math.pi)).tolist()

    def _signal(self, time: float) -> Tensor:
        return signal_and_noise(self.prediction, torch.tensor(time, dtype=torch.float64))[0]


@torch.no_grad()
def edit_params(
    model: RecurrentDiffusionTransformer,
    context: NetworkContext,
    scheduler: Scheduler,
    *,
    params: Tensor,
    own: Prompt,
    asked: Prompt,
    start: Tensor | None = None,
    num_inference_steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Parameters (B, P) that answer the prompts `asked` where `params` answer `own`, from the same noise.

    Args:
        model: with diffusion.
        context: of the layout.
        scheduler: that the model is sampled with.
        params: (B, P) networks to edit.
        own: B prompts that these are answers to.
        asked: B prompts to answer.
        start: (B, P) networks that they are updates of; None for networks from noise.
        num_inference_steps: moves up through the levels of noise, and as many down.
        generator: of the latents: one for each level, the same up and down.
    """
    inversion = Inversion(
        str(scheduler.config["prediction_type"]) if isinstance(scheduler, DDIMScheduler) else "flow",
        num_inference_steps,
    )
    device = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**31, (1,), generator=generator, device=device))
    edited = []
    for chosen in torch.arange(len(params)).split(NETWORKS_PER_PASS):
        networks = params[chosen.to(params.device)].to(context.device)
        begun = None if start is None else start[chosen.to(start.device)]
        was, becomes = (_output(model, context, prompt[chosen], begun, seed=seed) for prompt in (own, asked))
        noise = inversion.invert(was, context.scale.normalize(networks))
        edited.append(context.generated(inversion.regenerate(becomes, *noise).float()))
    return torch.cat(edited)


def _output(
    model: RecurrentDiffusionTransformer, context: NetworkContext, prompt: Prompt, start: Tensor | None, *, seed: int
) -> Output:
    """Of the model for B prompts, with a latent that depends on the time alone."""
    predictor = Predictor.of(model, context, prompt, start)

    def output(noisy: Tensor, time: float) -> Tensor:
        rng = torch.Generator().manual_seed(seed + round(time * 2**31))
        return replace(predictor, rng=rng)(noisy, time)

    return output
