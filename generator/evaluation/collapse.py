"""Do generated networks differ from each other as real ones do?

A generator that adds one template to every start, or whose samples all err on the same examples, can meet every prompt.
Each measure therefore stands beside its value for real runs: what the same starts became, at equal loss.

Legend: N networks, E examples, K classes, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from generator.evaluation.testbed import Testbed
from generator.evaluation.verdict import Estimate, Verdict
from zoo.devices import widened
from zoo.networks.metrics import (
    ensemble_gain,
    euclidean_distances,
    log_prob_distance,
    loss_correlation,
    mean_delta_share,
    wrong_prediction_iou,
)
from zoo.tasks.task import Task

IOU_MARGIN: Final = 0.03
LOG_PROB_RATIO: Final = 0.85
CORRELATION_MARGIN: Final = 0.05
SHARE_RATIO: Final = 1.5


@dataclass(frozen=True)
class Compared:
    """One measure of generated networks beside that of real ones."""

    generated: float
    real: float


@dataclass(frozen=True)
class CollapseReport:
    """All measures at one prompt.

    Attributes:
        prompt: what was asked for.
        measures: by name, see MEASURES.
        cosine_to_real: cosine of the generated and the real update of one start.
        distance_to_real: distance of the generated network from what its start became.
        verdicts: by claim.
    """

    prompt: float
    measures: dict[str, Compared]
    cosine_to_real: Estimate
    distance_to_real: Estimate
    verdicts: dict[str, Verdict]


@dataclass(frozen=True)
class Behaviour:
    """What networks do on data of a classification task.

    Attributes:
        log_probs: (N, E, K).
        targets: (E,).
    """

    log_probs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, task: Task, params: Tensor, splits: Sequence[str] = ("test",)) -> Behaviour:
        """Behaviour of networks (N, P) on one or several splits.

        Raises:
            ValueError: if the task's outputs are no logits of several classes.
        """
        data = [task.dataset.split(name) for name in splits]
        if data[0].targets.ndim != 1 or not task.dataset.num_classes:
            raise ValueError(f"behaviour is compared for classification tasks, {task.name!r} is none")
        outputs = [task.predict(params.to(task.device), one.inputs).detach() for one in data]
        if outputs[0].shape[-1] != task.dataset.num_classes:
            raise ValueError(f"expected {task.dataset.num_classes} logits, got outputs {tuple(outputs[0].shape)}")
        targets = torch.cat([one.targets for one in data])
        return cls(F.log_softmax(torch.cat(outputs, dim=1), -1).cpu(), targets.cpu())

    @property
    def predictions(self) -> Tensor:
        return self.log_probs.argmax(-1)  # (N, E)

    @property
    def losses(self) -> Tensor:
        index = self.targets.expand(self.log_probs.shape[:2]).unsqueeze(-1)
        return -self.log_probs.gather(-1, index).squeeze(-1)  # (N, E)

    @property
    def accuracy(self) -> Tensor:
        return widened(self.predictions == self.targets).mean(1)  # (N,)


MEASURES: Final = {
    "test accuracy": "mean over networks",
    "val loss": "geometric mean over networks, nats",
    "mean-update share": "share of the updates' energy common to all starts",
    "raw distance": "mean Euclidean distance of two networks, units as they are",
    "norm": "mean Euclidean norm",
    "wrong-prediction IoU": "mean over pairs: overlap of the sets of wrongly classified test examples",
    "loss correlation": "mean over pairs: correlation of log per-example losses",
    "log-prob distance": "mean over pairs: RMS difference of log-probabilities, nats",
    "ensemble gain": "test accuracy of all networks' mean probability above the mean network's",
}


def collapse_report(testbed: Testbed, starts: Tensor, generated: Tensor, prompt: float) -> CollapseReport:
    """Measures of generated networks beside those of real runs at equal loss.

    Args:
        testbed: unseen runs.
        starts: (N, P) initial networks of the first N unseen runs.
        generated: (N, P) one network per start, all prompted with the same loss.
        prompt: that loss.
    """
    starts, generated = starts.cpu(), generated.cpu()
    real = testbed.real_at(testbed.val_loss(generated).nan_to_num(nan=float("inf")))
    used = slice(0, testbed.task.layout.num_trainable)
    deltas = [(params - starts)[:, used] for params in (generated, real)]
    ours, theirs = (_measures(testbed, params, delta) for params, delta in zip((generated, real), deltas, strict=True))
    return CollapseReport(
        prompt,
        {name: Compared(ours[name].mean().item(), theirs[name].mean().item()) for name in MEASURES},
        Estimate.of(F.cosine_similarity(deltas[0], deltas[1])),
        Estimate.of((generated - real)[:, used].norm(dim=1)),
        _verdicts(ours, theirs),
    )


def _measures(testbed: Testbed, networks: Tensor, deltas: Tensor) -> dict[str, Tensor]:
    """Each of MEASURES by name, () or (N,); those of pairs as each network's mean over the others.

    Args:
        testbed: task.
        networks: (N, P).
        deltas: (N, T) what their trainable numbers are ahead of their starts.
    """
    params, does = networks[:, : deltas.shape[1]], Behaviour.of(testbed.task, networks)
    matrices = {
        "raw distance": euclidean_distances(params),
        "wrong-prediction IoU": wrong_prediction_iou(does.predictions, does.targets),
        "loss correlation": loss_correlation(does.losses),
        "log-prob distance": log_prob_distance(does.log_probs),
    }
    return {
        "test accuracy": does.accuracy,
        "val loss": testbed.val_loss(networks).log().mean().exp(),
        "mean-update share": mean_delta_share(deltas),
        "norm": params.norm(dim=1),
        "ensemble gain": ensemble_gain(does.log_probs, does.targets).accuracy,
        **{name: widened(one.sum(1) - one.diagonal()) / (len(one) - 1) for name, one in matrices.items()},
    }


def _verdicts(generated: dict[str, Tensor], real: dict[str, Tensor]) -> dict[str, Verdict]:
    """Claims on diversity; each network's mean over the others counts as one unit of the bootstrap."""
    shares = generated["mean-update share"].item(), real["mean-update share"].item()
    iou = Estimate.of(generated["wrong-prediction IoU"] - real["wrong-prediction IoU"])
    ratio = Estimate.of(generated["log-prob distance"] / real["log-prob distance"].mean())
    correlation = Estimate.of(generated["loss correlation"] - real["loss correlation"])
    return {
        "no template": Verdict(
            shares[0] <= SHARE_RATIO * shares[1],
            f"share of the updates' energy common to all starts is {shares[0]:.3f}, "
            f"real {shares[1]:.3f} (at most {SHARE_RATIO:g}x)",
        ),
        "errors differ": Verdict(
            iou.high <= IOU_MARGIN,
            f"wrong-prediction IoU between networks exceeds that of real ones by {iou:.3f} (at most {IOU_MARGIN:g})",
        ),
        "outputs differ": Verdict(
            ratio.low >= LOG_PROB_RATIO,
            f"log-prob distance between networks is {ratio:.2f} of that of real ones (at least {LOG_PROB_RATIO:g})",
        ),
        "same examples are hard": Verdict(
            max(abs(correlation.low), abs(correlation.high)) <= CORRELATION_MARGIN,
            f"correlation of per-example losses differs from that of real ones by {correlation:+.3f} "
            f"(at most {CORRELATION_MARGIN:g})",
        ),
    }
