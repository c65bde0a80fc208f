"""Novelty tests that need generators trained on a part of the zoo. Each costs a whole training.

(C) Two generators of disjoint halves of the training runs agree. (E) One that never saw a band of losses meets them.
Both are asked for by Zeng et al. 2025 (arXiv 2506.07998).

Legend: N starts, K prompts, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from generator import GeneratorConfig, PipelineSampler, Testbed, train_generator
from generator.evaluation.neighbours import nearest, paired_distances
from generator.evaluation.novelty import pool_at
from generator.evaluation.testbed import METRIC, Sampler
from generator.evaluation.verdict import Estimate, Verdict
from generator.trajectories import Trajectories, log_gap
from zoo import Zoo
from zoo.devices import resolve_device
from zoo.storage.selection import SelectedZoo

_NUM_STARTS: Final = 64
_NUM_BAND_PROMPTS: Final = 8
_SMALLEST: Final = 1e-12  # divides what is zero for equal networks


@dataclass(frozen=True)
class HalvesReport:
    """Test (C).

    Attributes:
        mutual: (N,) matched distances between the two generators' networks from one start and one noise.
        to_training: (N,) mean of both networks' distances to the nearest network of their own training half.
        across: (N,) as `mutual`, but with the second generator's network from another start: what a template gives.
        verdict: whether the generators agree, start by start.
    """

    mutual: Tensor
    to_training: Tensor
    across: Tensor
    verdict: Verdict


@dataclass(frozen=True)
class BandReport:
    """Test (E).

    Attributes:
        band: losses withheld in training.
        prompts: (K,) inside the band.
        achieved: (N, K) val losses.
        outside: (K,) the error of answering every prompt with the nearest loss outside the band.
        verdict: whether the generator meets the withheld losses better than that.
    """

    band: tuple[float, float]
    prompts: Tensor
    achieved: Tensor
    outside: Tensor
    verdict: Verdict


def control_reports(
    testbed: Testbed,
    zoo: Zoo,
    sampler: PipelineSampler,
    config: GeneratorConfig,
    *,
    out: Path,
    device: str | torch.device = "auto",
    trainer_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> tuple[HalvesReport, BandReport]:
    """Tests (C) and (E), with generators trained on parts of the zoo; those that are in `out` already are only read.

    Both halves have every second training run, and all runs of other splits, on which models are selected. The band is
    the middle third of the range of prompts. Prompts of the controls are not calibrated: that would measure the answers
    inside the withheld band.

    Args:
        testbed: of the zoo.
        zoo: that the evaluated generator was trained on.
        sampler: of the evaluated generator; controls are sampled as it is.
        config: settings of its training.
        out: folder of the controls.
        device, trainer_options: see `train_generator`.
        seed: of the noise.
        report: told which control is trained.
    """
    train, losses = zoo.split("train"), zoo.metric(METRIC)
    band = middle_band(testbed.prompts(2))
    parts = {
        "first_half": SelectedZoo(zoo, runs=np.setdiff1d(np.arange(zoo.num_runs), train[1::2])),
        "second_half": SelectedZoo(zoo, runs=np.setdiff1d(np.arange(zoo.num_runs), train[0::2])),
        "without_band": SelectedZoo(zoo, keep=~((losses > band[0]) & (losses < band[1]))),
    }
    samplers = []
    for name, part in parts.items():
        report(f"training the control {name!r}")
        settings = replace(config, calibrate_prompts=False)
        pipe = train_generator([part], settings, out=out / name, device=device, trainer_options=trainer_options)
        samplers.append(replace(sampler, pipeline=pipe.to(resolve_device(device))))
    first, second, without_band = samplers
    halves = [Trajectories.from_zoo(parts[name], "train", (METRIC,)) for name in ("first_half", "second_half")]
    starts = testbed.starts(_NUM_STARTS)
    return (
        halves_report((first, second), (halves[0], halves[1]), starts=starts, prompt=testbed.floor, seed=seed),
        withheld_band_report(testbed, without_band, band, starts=starts, num_prompts=_NUM_BAND_PROMPTS, seed=seed),
    )


def halves_report(
    samplers: tuple[Sampler, Sampler],
    halves: tuple[Trajectories, Trajectories],
    *,
    starts: Tensor,
    prompt: float,
    seed: int,
) -> HalvesReport:
    """Test (C): two generators that share no training run agree with each other more than with their training sets.

    They must agree start by start: networks from different starts must differ more.

    Args:
        samplers: two, each trained on the half of the same place.
        halves: disjoint runs.
        starts: (N, P) unseen starts.
        prompt: loss that both are asked for.
        seed: of the noise, the same for both.

    Raises:
        ValueError: if the halves share a run.
    """
    shared = set(halves[0].runs.tolist()) & set(halves[1].runs.tolist())
    if shared:
        raise ValueError(f"halves must be disjoint, they share {len(shared)} runs")
    layout = halves[0].layout
    asked = {METRIC: torch.full((len(starts),), prompt)}
    first, second = (sampler(starts, asked, torch.Generator().manual_seed(seed)).cpu() for sampler in samplers)
    mutual = paired_distances(layout, first, second)
    own = [
        nearest(layout, networks, pool_at(half, torch.tensor(prompt))).distances[:, 0]
        for networks, half in zip((first, second), halves, strict=True)
    ]
    to_training = (own[0] + own[1]) / 2
    across = paired_distances(layout, first, second.roll(1, dims=0))
    nearer = Estimate.of((to_training - mutual) / to_training.mean())
    alike = Estimate.of((across - mutual) / across.mean().clamp(min=_SMALLEST))
    verdict = Verdict(
        nearer.low > 0 and alike.low > 0,
        f"networks of two generators from disjoint halves are {nearer:.0%} nearer to each other than to their training "
        f"sets, and {alike:.0%} nearer than networks from different starts",
    )
    return HalvesReport(mutual, to_training, across, verdict)


def withheld_band_report(
    testbed: Testbed, sampler: Sampler, band: tuple[float, float], *, starts: Tensor, num_prompts: int, seed: int
) -> BandReport:
    """Test (E): a generator trained without networks of a band of losses still meets prompts inside it.

    Args:
        testbed: task.
        sampler: trained without the band.
        band: lowest and highest withheld val loss.
        starts: (N, P) unseen starts.
        num_prompts: K, log-spaced inside the band.
        seed: of the noise.
    """
    low, high = torch.tensor(band).log()
    prompts = torch.linspace(low.item(), high.item(), num_prompts + 2)[1:-1].exp()
    asked = {METRIC: prompts.repeat(len(starts))}
    rng = torch.Generator().manual_seed(seed)
    networks = sampler(starts.repeat_interleave(num_prompts, dim=0), asked, rng).cpu()
    achieved = testbed.val_loss(networks).view(len(starts), num_prompts)
    outside = torch.minimum(prompts.log() - low, high - prompts.log())
    errors = torch.stack([log_gap(column, prompt) for column, prompt in zip(achieved.T, prompts, strict=True)])
    ratio = Estimate.of(errors.mean(0) / outside.mean())
    verdict = Verdict(
        ratio.high < 1,
        f"errors of log loss inside the withheld band {band[0]:.2g} to {band[1]:.2g} are {ratio:.2f} times those of "
        "the best answer from outside it",
    )
    return BandReport(band, prompts, achieved, outside, verdict)


def middle_band(prompts: Tensor) -> tuple[float, float]:
    """The middle third of the range of prompts (K,), on a logarithmic scale."""
    low, high = prompts.min().log(), prompts.max().log()
    return low.lerp(high, 1 / 3).exp().item(), low.lerp(high, 2 / 3).exp().item()
