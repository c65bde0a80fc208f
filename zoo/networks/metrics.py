"""What trained and generated networks are compared by: distances without symmetries, behaviour, prompts met.

Functions of two populations take `others=None` for the pairs within one population; `mean_over_pairs` then averages
the matrix off its diagonal.

Legend: N and M networks of two populations, P numbers of one network, E examples, K classes, U units of a group.
"""

from __future__ import annotations

import math
import warnings
from typing import Final, NamedTuple

import torch
from scipy.stats import ConstantInputWarning, spearmanr
from torch import Tensor

from zoo.devices import widened
from zoo.networks.alignment import align, assign, groups_are_independent, unit_blocks
from zoo.networks.layout import ParamLayout
from zoo.networks.symmetry import numbers_outside

LOSS_FLOOR: Final = 1e-3  # nats; keeps examples of vanishing loss from deciding a correlation of logarithms
_LOG_PROB_FLOOR: Final = -12.0  # nats; probabilities below e^-12 count as that
LOG_RANGE: Final = (-8.0, 4.0)  # natural logarithms of a metric outside count as the bound, NaN as the upper one
_MAX_BLOCK_BYTES: Final = 2**26


class EnsembleGain(NamedTuple):
    """What an ensemble has over its members' mean; positive is better."""

    accuracy: Tensor
    loss: Tensor


# --- Distances between weights ---


def euclidean_distances(values: Tensor, others: Tensor | None = None) -> Tensor:
    """Euclidean distances (N, M) from differences, so that equal rows have distance zero on every processor.

    `torch.cdist` by itself takes matrix products for more than 25 rows, whose rounding leaves equal rows of norm r
    apart by about 1e-3 r in float32.

    Args:
        values: (N, P).
        others: (M, P); default `values`.
    """
    return torch.cdist(values, values if others is None else others, compute_mode="donot_use_mm_for_euclid_dist")


def matched_distances(layout: ParamLayout, params: Tensor, others: Tensor | None = None) -> Tensor:
    """Euclidean distances (N, M) over trainable parameters, each pair with its units matched.

    Exact where no slot belongs to two groups; otherwise an upper bound by `align`.

    Args:
        layout: layout of all networks.
        params: (N, P).
        others: (M, P); default `params`, whose diagonal is then zero.

    Raises:
        LayoutMismatchError: if vectors do not fit the layout.

    Source: Zeng et al. 2025 (arXiv 2506.07998), who match the hidden units of one layer.
    """
    layout.check_vector(params)
    layout.check_vector(params if others is None else others)
    if groups_are_independent(layout):
        return _separable_distances(layout, params, others)
    trainable = slice(0, layout.num_trainable)
    if others is not None:
        columns = [(align(layout, params, other).params - other)[:, trainable].norm(dim=1) for other in others]
        return torch.stack(columns, 1) if columns else params.new_zeros(len(params), 0)
    distances = params.new_zeros(len(params), len(params))
    for j in range(1, len(params)):
        aligned = align(layout, params[:j], params[j]).params
        distances[:j, j] = distances[j, :j] = (aligned - params[j])[:, trainable].norm(dim=1)
    return distances


def mean_delta_share(deltas: Tensor) -> Tensor:
    """Share of the updates' energy that is common to all networks: |mean delta|^2 / mean |delta|^2, in [0, 1].

    Independent updates have 1 / N; a generator that adds one template to every network has 1.

    Args:
        deltas: (N, P) update of each network.
    """
    deltas = widened(deltas)
    return deltas.mean(0).square().sum() / deltas.square().sum(1).mean()


# --- Differences in behaviour ---


def wrong_prediction_iou(predictions: Tensor, targets: Tensor, others: Tensor | None = None) -> Tensor:
    """Intersection over union (N, M) of the sets of examples that two networks get wrong; 1 if neither errs.

    Args:
        predictions: (N, E) predicted classes.
        targets: (E,) true classes.
        others: (M, E); default `predictions`.

    Source: Zeng et al. 2025 (arXiv 2506.07998).
    """
    wrong = widened(predictions != targets)
    others_wrong = wrong if others is None else widened(others != targets)
    both = wrong @ others_wrong.T
    either = wrong.sum(1, keepdim=True) + others_wrong.sum(1) - both
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def loss_correlation(losses: Tensor, others: Tensor | None = None) -> Tensor:
    """Pearson correlation (N, M) of log(loss + LOSS_FLOOR) over examples.

    High between networks that find the same examples hard, as trained networks do; low for defective networks.

    Args:
        losses: (N, E) per-example losses in nats.
        others: (M, E); default `losses`.
    """
    mine = _standardised((widened(losses) + LOSS_FLOOR).log())
    theirs = mine if others is None else _standardised((widened(others) + LOSS_FLOOR).log())
    return mine @ theirs.T / mine.shape[1]


def log_prob_distance(log_probs: Tensor, others: Tensor | None = None) -> Tensor:
    """Root mean square difference (N, M) in nats between log-probabilities, floored at -12.

    Args:
        log_probs: (N, E, K).
        others: (M, E, K); default `log_probs`.
    """
    mine = widened(log_probs).clamp(min=_LOG_PROB_FLOOR).flatten(1)
    theirs = mine if others is None else widened(others).clamp(min=_LOG_PROB_FLOOR).flatten(1)
    return euclidean_distances(mine, theirs) / mine.shape[1] ** 0.5


def ensemble_gain(log_probs: Tensor, targets: Tensor) -> EnsembleGain:
    """Accuracy and mean loss (nats) that averaging the networks' probabilities gains over the mean network.

    Args:
        log_probs: (N, E, K).
        targets: (E,).
    """
    log_probs = widened(log_probs)
    mixture = log_probs.logsumexp(0) - math.log(len(log_probs))  # (E, K)
    member_accuracy = widened(log_probs.argmax(-1) == targets).mean()
    accuracy = widened(mixture.argmax(-1) == targets).mean() - member_accuracy
    index = targets.unsqueeze(-1)
    member_loss = -log_probs.gather(-1, index.expand(len(log_probs), -1, 1)).mean()
    return EnsembleGain(accuracy, member_loss + mixture.gather(-1, index).mean())


def mean_over_pairs(matrix: Tensor) -> Tensor:
    """Mean of an (N, N) matrix of pairs, without its diagonal.

    Raises:
        ValueError: if the matrix is not square or has no pair.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"matrix must be (N, N) with N >= 2, got {tuple(matrix.shape)}")
    return (matrix.sum() - matrix.diagonal().sum()) / (len(matrix) * (len(matrix) - 1))


# --- Prompts met, and how sure that is ---


def r2(achieved: Tensor, prompted: Tensor) -> Tensor:
    """R^2 of achieved values against the identity with prompted ones: 1 if every prompt is met.

    1 - sum (a - p)^2 / sum (p - mean p)^2, which is negative if ignoring the prompts were better.

    Args:
        achieved: values of the generated networks, any shape.
        prompted: the prompts, broadcastable to `achieved`.
    """
    achieved, prompted = torch.broadcast_tensors(widened(achieved), widened(prompted))
    return 1 - (achieved - prompted).square().sum() / (prompted - prompted.mean()).square().sum()


def r2_log(achieved: Tensor, prompted: Tensor) -> Tensor:
    """`r2` of logarithms. Achieved values outside LOG_RANGE count as its bounds, NaN as the upper one.

    Args:
        achieved, prompted: as for `r2`; prompts are positive.
    """
    return r2(*_logs(achieved, prompted))


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Rank correlation of two tensors of equal numel, ties at their mean rank; NaN if one of them is constant."""
    if first.numel() != second.numel():
        raise ValueError(f"rank correlation needs two tensors of one size, got {first.numel()} and {second.numel()}")
    values = [value.detach().cpu().flatten().numpy() for value in (first, second)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return torch.tensor(spearmanr(*values).statistic, dtype=torch.float64)


def bootstrap_interval(
    values: Tensor,
    rng: torch.Generator,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    nested: bool = False,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over independent units.

    Args:
        values: (N, ...) one row per independent unit (seed, run, task).
        rng: generator on the CPU.
        level: coverage, in (0, 1).
        num_resamples: number of resamples.
        nested: values are (N, S, ...), and the S entries of each drawn row (seeds of a task, say) are drawn again too.

    Raises:
        ValueError: if there is no value, or `level` is outside (0, 1).

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
    """
    if not len(values) or not 0 < level < 1:
        raise ValueError(f"need values and a level in (0, 1), got {len(values)} values and level {level}")
    rows = torch.randint(len(values), (num_resamples, len(values)), generator=rng).to(values.device)
    if nested:
        entries = torch.randint(values.shape[1], (num_resamples, *values.shape[:2]), generator=rng).to(values.device)
        samples = values[rows.unsqueeze(-1), entries]
    else:
        samples = values[rows]
    results = widened(samples.flatten(1).mean(1))  # (num_resamples,)
    tail = (1 - level) / 2
    low, high = results.quantile(torch.tensor([tail, 1 - tail], dtype=results.dtype, device=values.device)).tolist()
    return low, high


def _separable_distances(layout: ParamLayout, params: Tensor, others: Tensor | None) -> Tensor:
    """Matched distances from inner products: |a|^2 + |b|^2 - 2 (fixed part + each group's best assignment)."""
    theirs = params if others is None else others
    fixed = numbers_outside(layout, layout.groups)
    norms = [widened(value[:, : layout.num_trainable]).square().sum(1) for value in (params, theirs)]
    products = widened(params[:, fixed]) @ widened(theirs[:, fixed]).T  # (N, M)
    for group in layout.groups:
        mine = widened(torch.cat(list(unit_blocks(layout, group, params)), -1))  # (N, U, K)
        columns = widened(torch.cat(list(unit_blocks(layout, group, theirs)), -1))
        num_rows = max(1, _MAX_BLOCK_BYTES // max(1, 8 * len(theirs) * group.size**2))
        for start in range(0, len(params), num_rows):
            first = start if others is None else 0  # pairs of one population are needed once
            products[start : start + num_rows, first:] += _best_products(
                mine[start : start + num_rows], columns[first:]
            )
    squared = norms[0].unsqueeze(1) + norms[1] - 2 * products
    distances = squared.clamp(min=0).sqrt()
    if others is None:
        distances = distances.triu(1)
        distances += distances.T.clone()
    return distances.to(params.dtype)


def _best_products(mine: Tensor, theirs: Tensor) -> Tensor:
    """Largest sum (n, m) of inner products over one-to-one assignments of units (n, U, K) to units (m, U, K)."""
    size = mine.shape[1]
    similarity = (mine.flatten(0, 1) @ theirs.flatten(0, 1).T).view(len(mine), size, len(theirs), size)
    similarity = similarity.transpose(1, 2).flatten(0, 1)  # (n * m, U, U)
    chosen = similarity.gather(1, assign(similarity).unsqueeze(1))
    return chosen.sum((1, 2)).view(len(mine), len(theirs))


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True, correction=0)


def _logs(achieved: Tensor, prompted: Tensor) -> tuple[Tensor, Tensor]:
    achieved, prompted = torch.broadcast_tensors(widened(achieved), widened(prompted))
    if not bool((prompted > 0).all()):
        raise ValueError("prompts must be positive to be compared on a logarithmic scale")
    return achieved.nan_to_num(nan=torch.inf, posinf=torch.inf).log().clamp(*LOG_RANGE), prompted.log()
