"""The whole evaluation of a generator in one call.

    evaluation = evaluate(PipelineSampler(pipe, task), Testbed.from_zoo(zoo))

The protocol is described in docs/evaluation.md; `scripts.evaluate_generator` adds rivals that are trained or fitted.

Legend: N unseen starts, K prompts, P numbers of one network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from generator.alignment import Alignment, alignment_of, measured
from generator.evaluation.baselines import (
    MatchedAverage,
    MeanDelta,
    NearestNeighbours,
    NoisyCopy,
    Retrieval,
)
from generator.evaluation.collapse import CollapseReport, collapse_report
from generator.evaluation.generalization import MAX_GAP, Generalization
from generator.evaluation.novelty import Foretelling, NoveltyReport, novelty_report, retrieval_verdict
from generator.evaluation.testbed import METRIC, Sampler, Testbed
from generator.evaluation.verdict import Estimate, Verdict
from generator.trajectories import Trajectories, log_gap
from zoo.ambient import torch_defaults
from zoo.networks.metrics import LOG_RANGE
from zoo.settings import check_options

GENERATOR: Final = "generator"
BELOW_FLOOR: Final = (0.25, 0.4, 0.63)  # of the floor
DIVERSITY_LOSS: Final = 0.3  # nats; beside the floor, where collapse is measured
MAX_GROWTH: Final = 0.22  # of log val loss, when less than the floor is asked for
_FORETELLING: Final = ("retrieval", "mean of 8 nearest", "ridge", "matched ridge")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Sizes of an evaluation.

    Attributes:
        num_starts: N, at most as many as there are unseen runs.
        num_novelty_starts: of them, for the tests (A) and (B), which match every pair.
        num_prompts: K from the floor upwards.
        uses_start: whether the generator looks at starts; otherwise nothing is fed back, and (D) does not apply.
        num_updates: how often networks are fed back.
        baselines: whether to evaluate the simple baselines too.
        seed: of all noise.
    """

    num_starts: int = 128
    num_novelty_starts: int = 64
    num_prompts: int = 16
    uses_start: bool = True
    num_updates: int = 4
    baselines: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(vars(self), type(self), positive=("num_updates",))
        for name in ("num_starts", "num_novelty_starts", "num_prompts"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")


@dataclass(frozen=True)
class SamplerResult:
    """One sampler on all starts and prompts.

    Attributes:
        alignment: at the K prompts from the floor upwards.
        below: at the prompts below the floor.
        collapse: at the lowest prompt, and at the one nearest to DIVERSITY_LOSS.
        foretelling: errors of prompts, and cosines with the starts' real updates.
        generalization: test accuracy against real runs of equal training loss, at the K prompts.
        seconds: wall time for one network.
    """

    alignment: Alignment
    below: Alignment
    collapse: tuple[CollapseReport, ...]
    foretelling: Foretelling
    generalization: Generalization
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Everything that is reported.

    Attributes:
        floor: lowest prompt.
        final_accuracy: (N,) test accuracy of the unseen runs' last snapshots.
        results: by sampler, the generator first.
        recursion: the generator's alignment after one, two ... updates.
        novelty: tests (A) and (B), at the prompts of the generator's `collapse`.
        verdicts: by claim.
    """

    floor: float
    final_accuracy: Tensor
    results: dict[str, SamplerResult]
    recursion: list[Alignment]
    novelty: tuple[NoveltyReport, ...]
    verdicts: dict[str, Verdict]


@torch_defaults()
def evaluate(
    generator: Sampler,
    testbed: Testbed,
    *,
    others: Mapping[str, Sampler] | None = None,
    config: EvaluationConfig | None = None,
    report: Callable[[str], None] = print,
) -> Evaluation:
    """Evaluate a generator on starts that it has not seen.

    Args:
        generator: to evaluate.
        testbed: task, its training runs, unseen runs.
        others: more samplers by name for the same tables, such as fitted baselines, a deterministic twin or a
            generator that was trained with the function-space loss alone.
        config: sizes.
        report: told what is done next.
    """
    config = config or EvaluationConfig()
    starts = testbed.starts(config.num_starts)
    report(f"sampling for {len(starts)} starts")
    own_result, generated = evaluate_sampler(generator, testbed, starts, config)
    results = {GENERATOR: own_result}
    for name, rival in ((simple_baselines(testbed.train) if config.baselines else {}) | dict(others or {})).items():
        report(f"sampling by {name}")
        results[name] = evaluate_sampler(rival, testbed, starts, config)[0]
    last = testbed.unseen.read(torch.arange(len(starts)), testbed.unseen.counts[: len(starts)] - 1)
    novelty = []
    for k in diversity_places(own_result.alignment.prompts):
        prompt = own_result.alignment.prompts[k].item()
        report(f"looking for copies at the prompt {prompt:.3g}")
        rng = torch.Generator().manual_seed(config.seed)
        novelty.append(novelty_report(testbed, generated[: config.num_novelty_starts, k], prompt, rng))
    if config.uses_start:
        report("feeding networks back")
    return Evaluation(
        testbed.floor,
        1 - measured(testbed.task, last, "test")["error"],
        results,
        recursion(generator, testbed, generated, own_result.alignment, config),
        tuple(novelty),
        _verdicts(results, novelty, uses_start=config.uses_start),
    )


def simple_baselines(train: Trajectories) -> dict[str, Sampler]:
    """Copies and averages of training runs, by the names that they have in tables."""
    return {
        "retrieval": Retrieval(train),
        "mean of 8 nearest": NearestNeighbours(train, 8),
        "start + mean update": MeanDelta(train),
        "matched average of 4": MatchedAverage(train, 4),
        "noisy copy": NoisyCopy(train, 0.1),
    }


def evaluate_sampler(
    sampler: Sampler, testbed: Testbed, starts: Tensor, config: EvaluationConfig
) -> tuple[SamplerResult, Tensor]:
    """Result of a sampler on starts (N, P) of the first N unseen runs, and its networks (N, K, P) from the floor up."""
    usual = testbed.prompts(config.num_prompts)
    prompts = torch.cat((testbed.floor * torch.tensor(BELOW_FLOOR), usual))
    num_below = len(BELOW_FLOOR)
    began = time.perf_counter()
    networks = _sample_grid(sampler, starts.repeat_interleave(len(prompts), dim=0), prompts, config.seed)
    seconds = (time.perf_counter() - began) / len(networks)
    whole = alignment_of(networks, testbed.task, prompts)
    grid = networks.view(len(starts), len(prompts), -1)[:, num_below:]
    places = diversity_places(usual)
    collapse = tuple(collapse_report(testbed, starts, grid[:, k], usual[k].item()) for k in places)
    achieved = whole.val["loss"][:, num_below:].nan_to_num(nan=torch.inf).log().clamp(*LOG_RANGE)
    gaps = (achieved - usual.log()).abs()
    used = slice(0, testbed.task.layout.num_trainable)
    became = testbed.real_at(usual[:1].expand(len(starts)))
    alignment = whole.at(slice(num_below, None))
    train_loss = measured(testbed.task, grid.flatten(0, 1), "train")["loss"].view(grid.shape[:2])
    result = SamplerResult(
        alignment,
        whole.at(slice(num_below)),
        collapse,
        Foretelling(gaps.mean(1), F.cosine_similarity((grid[:, 0] - starts)[:, used], (became - starts)[:, used])),
        Generalization.of(testbed.real_curves, train_loss, alignment.test["error"]),
        seconds,
    )
    return result, grid


def diversity_places(prompts: Tensor) -> list[int]:
    """Where diversity and novelty are measured: the lowest of the prompts (K,), and the one nearest DIVERSITY_LOSS."""
    return list(dict.fromkeys((0, int(log_gap(prompts, torch.tensor(DIVERSITY_LOSS)).argmin()))))


def recursion(
    sampler: Sampler, testbed: Testbed, generated: Tensor, first: Alignment, config: EvaluationConfig
) -> list[Alignment]:
    """The first alignment, and that after each further update of the networks (N, K, P) with the same prompts."""
    results = [first]
    networks = generated.flatten(0, 1)
    for update in range(1, config.num_updates if config.uses_start else 1):
        networks = _sample_grid(sampler, networks, first.prompts, config.seed + update)
        results.append(alignment_of(networks, testbed.task, first.prompts))
    return results


def _sample_grid(sampler: Sampler, starts: Tensor, prompts: Tensor, seed: int) -> Tensor:
    """Networks (N * K, P) for starts (N * K, P) that each are repeated for the K prompts."""
    asked = {METRIC: prompts.repeat(len(starts) // len(prompts))}
    return sampler(starts, asked, torch.Generator().manual_seed(seed)).cpu()


def _verdicts(
    results: Mapping[str, SamplerResult], novelty: Sequence[NoveltyReport], *, uses_start: bool
) -> dict[str, Verdict]:
    generator = results[GENERATOR]
    verdicts = {
        "below the floor": saturation_verdict(generator),
        "generalization": generalization_verdict(generator.generalization),
        **generator.collapse[0].verdicts,
    }
    for report in novelty:
        verdicts |= {
            f"novelty A at {report.prompt:.2f}": report.distance,
            f"novelty B at {report.prompt:.2f}": report.overlap,
        }
    rivals = {name: results[name].foretelling for name in _FORETELLING if name in results}
    if rivals and uses_start:
        verdicts["novelty D"] = retrieval_verdict(generator.foretelling, rivals)
    return verdicts


def saturation_verdict(result: SamplerResult) -> Verdict:
    """Asked for less than runs reach, the generator stays near the floor and gives no overconfident networks."""
    at_floor = result.alignment.val["loss"][:, 0]
    growth = (result.below.val["loss"].amax(1) / at_floor).log()
    change = Estimate.of(growth)
    accuracy = Estimate.of(result.alignment.test["error"][:, 0] - result.below.test["error"][:, 0])
    return Verdict(
        change.high <= MAX_GROWTH,
        f"asked for less than the floor, log val loss changes by {change:+.2f} at worst (at most {MAX_GROWTH:+g}), "
        f"test accuracy by {accuracy:+.1%}",
    )


def generalization_verdict(result: Generalization) -> Verdict:
    """At the lowest prompt, test accuracy is that of real runs of equal training loss."""
    gap = Estimate.of(result.gap[:, 0])
    return Verdict(
        gap.high <= MAX_GAP,
        f"at the lowest prompt (training loss {result.train_loss[:, 0].log().mean().exp():.3f}) test accuracy is "
        f"{gap:+.2%} below that of real runs of equal training loss (at most {MAX_GAP:+.1%})",
    )
