"""Are generated networks new? Tests that copying and interpolation of the training set cannot pass.

(A) distance to the training set without symmetries, (B) accuracy against overlap of errors, (D) retrieval and
regression. (C) and (E) need further trainings, see `scripts.studies.generator.controls`.

Source: what is to be shown, and the measures of (A) and (B): Zeng et al. 2025 (arXiv 2506.07998), who found that
earlier generators copy or interpolate.

Legend: N networks, M networks of the pool, R runs, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from generator.evaluation.baselines import MatchedAverage, NoisyCopy
from generator.evaluation.collapse import Behaviour
from generator.evaluation.neighbours import nearest
from generator.evaluation.testbed import METRIC, Testbed
from generator.evaluation.verdict import Estimate, Verdict
from generator.trajectories import Trajectories, nearest_snapshots
from zoo.networks.metrics import wrong_prediction_iou

GENERATED: Final = "generated"
HELD_OUT: Final = "held-out runs"
COPIES: Final = "exact copies"
NOISE_LEVELS: Final = (0.05, 0.1, 0.2, 0.4)
AVERAGED_COUNTS: Final = (2, 4, 8)
DISTANCE_MARGIN: Final = 0.05  # relative to held-out runs
IOU_MARGIN: Final = 0.03
ACCURACY_MARGIN: Final = 0.005
OVERLAP_SPLITS: Final = ("val", "test")


@dataclass(frozen=True)
class NetworkSet:
    """One kind of networks against the training set.

    Attributes:
        distances: (N,) matched distance to the nearest network of the pool.
        overlaps: (N,) largest wrong-prediction IoU with a network of the pool, on val and test data: where networks err
            rarely, the test split alone has too few errors to tell them apart.
        accuracies: (N,) on test data.
    """

    distances: Tensor
    overlaps: Tensor
    accuracies: Tensor


@dataclass(frozen=True)
class NoveltyReport:
    """Tests (A) and (B) at one prompt.

    Attributes:
        prompt: what was asked for.
        sets: kinds of networks by name.
        distance: verdict of (A).
        overlap: verdict of (B).
    """

    prompt: float
    sets: dict[str, NetworkSet]
    distance: Verdict
    overlap: Verdict


def novelty_report(testbed: Testbed, generated: Tensor, prompt: float, rng: torch.Generator) -> NoveltyReport:
    """Tests (A) and (B) at one prompt.

    The pool holds each training run's snapshot that is nearest to the generated networks' mean loss: a copy has the
    loss of what it copies.

    Args:
        testbed: training and unseen runs.
        generated: (N, P) one network per start of the first N unseen runs.
        prompt: loss that they were prompted with.
        rng: of the noise and of what is copied.
    """
    generated = generated.cpu()
    losses = testbed.val_loss(generated)
    level = losses.log().mean().exp()
    pool = pool_at(testbed.train, level)
    asked = {METRIC: level.expand(len(generated))}
    sets = {
        GENERATED: generated,
        HELD_OUT: testbed.real_at(losses),
        COPIES: NoisyCopy(testbed.train, 0.0)(None, asked, rng),
    }
    sets |= {f"noise {noise:g}": NoisyCopy(testbed.train, noise)(None, asked, rng) for noise in NOISE_LEVELS}
    sets |= {f"average of {n}": MatchedAverage(testbed.train, n)(None, asked, rng) for n in AVERAGED_COUNTS}
    known = Behaviour.of(testbed.task, pool, OVERLAP_SPLITS)
    measured = {name: against(testbed, params, pool, known) for name, params in sets.items()}
    return NoveltyReport(prompt, measured, distance_verdict(measured), overlap_verdict(measured))


def pool_at(train: Trajectories, level: Tensor) -> Tensor:
    """Networks (R, P): of each training run the snapshot whose loss is nearest to a level ()."""
    rows = torch.arange(len(train))
    return train.read(rows, nearest_snapshots(train.metrics[METRIC], level))


def distance_verdict(sets: Mapping[str, NetworkSet]) -> Verdict:
    """(A): generated networks are not nearer to the training set than unseen real runs."""
    held_out = sets[HELD_OUT].distances
    relative = Estimate.of((sets[GENERATED].distances - held_out) / held_out.mean())
    nearer = [
        float(name.split()[-1])
        for name, one in sets.items()
        if name.startswith("noise") and one.distances.mean() < sets[GENERATED].distances.mean()
    ]
    return Verdict(
        relative.low >= -DISTANCE_MARGIN,
        f"matched distance to the nearest training network differs from held-out runs' by {relative:+.1%} (at least "
        f"{-DISTANCE_MARGIN:.0%}); copies with relative noise up to {max(nearer, default=0):g} are nearer",
    )


def overlap_verdict(sets: Mapping[str, NetworkSet]) -> Verdict:
    """(B): errors overlap with the training set's no more than those of unseen real runs, at the accuracy that noise
    and averaging have not at such an overlap."""
    generated = sets[GENERATED]
    overlap = Estimate.of(generated.overlaps - sets[HELD_OUT].overlaps)
    gains = {
        kind: Estimate.of(generated.accuracies - _frontier(sets, kind, generated.overlaps))
        for kind in ("noise", "average")
    }
    return Verdict(
        overlap.high <= IOU_MARGIN and all(gain.low > -ACCURACY_MARGIN for gain in gains.values()),
        f"largest IoU of errors with a training network differs from held-out runs' by {overlap:+.3f} (at most "
        f"{IOU_MARGIN:g}); accuracy at equal IoU against the frontier of noise {gains['noise']:+.1%}, of averages "
        f"{gains['average']:+.1%} (at least {-ACCURACY_MARGIN:.1%})",
    )


@dataclass(frozen=True)
class Foretelling:
    """Test (D): what one sampler knows of prompts and starts.

    Attributes:
        errors: (N,) mean over prompts of |log achieved - log prompted loss|.
        cosines: (N,) of its update and the start's real update at the lowest prompt.
    """

    errors: Tensor
    cosines: Tensor


def retrieval_verdict(generator: Foretelling, rivals: Mapping[str, Foretelling]) -> Verdict:
    """(D): no rival both meets prompts as well as the generator and foretells as well where a start goes.

    Retrieval meets prompts and knows nothing of the start; regression foretells directions and meets no prompt.
    """
    parts, passed = [], True
    for name, rival in rivals.items():
        error = Estimate.of(rival.errors - generator.errors)
        cosine = Estimate.of(generator.cosines - rival.cosines)
        passed &= error.low > 0 or cosine.low > 0
        parts.append(f"{name} {error:+.2f}, {cosine:+.2f}")
    return Verdict(
        passed,
        f"log error of prompts {Estimate.of(generator.errors):.3f}, cosine with real updates "
        f"{Estimate.of(generator.cosines):.2f}; ahead of rivals in error, cosine: {'; '.join(parts)}",
    )


def against(testbed: Testbed, params: Tensor, pool: Tensor, known: Behaviour) -> NetworkSet:
    """Networks (N, P) against those of a pool (M, P), of which the behaviour on OVERLAP_SPLITS is known."""
    does = Behaviour.of(testbed.task, params, OVERLAP_SPLITS)
    overlaps = wrong_prediction_iou(does.predictions, does.targets, known.predictions).max(1).values
    distances = nearest(testbed.task.layout, params, pool).distances[:, 0]
    return NetworkSet(distances, overlaps, Behaviour.of(testbed.task, params).accuracy)


def _frontier(sets: Mapping[str, NetworkSet], kind: str, overlaps: Tensor) -> Tensor:
    """Accuracy (N,) that copies with noise, or averages, have at such an overlap; beyond them that of their ends."""
    points = [(one.overlaps.mean(), one.accuracies.mean()) for name, one in sets.items() if name.startswith(kind)]
    points.append((sets[COPIES].overlaps.mean(), sets[COPIES].accuracies.mean()))
    table = torch.tensor(sorted((x.item(), y.item()) for x, y in points))  # (points, 2)
    right = torch.searchsorted(table[:, 0].contiguous(), overlaps.float()).clamp(1, len(table) - 1)
    (x0, y0), (x1, y1) = table[right - 1].T, table[right].T
    share = ((overlaps - x0) / (x1 - x0).clamp(min=1e-9)).clamp(0, 1)
    return y0.lerp(y1, share.float()).double()
