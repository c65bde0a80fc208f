"""Tables without end: functions, causal graphs, clusters and trees at random, for networks that read tables.

A member draws what kind it is. Of a *function*, features are root variables, often strongly correlated, and the class
is the largest output of a random network; of *trees*, that of a few random decision trees. Of a *graph*, features and
target are nodes of a random network of causes, so that features may cause the target, be caused by it, or share a cause
with it; classes are intervals of the target. Of *clusters*, the class is the cause: its clusters give the features.
What decides the class sees the roots, or what they were before common factors correlated them. Features are then left
as they are, bent, made ordinal, categorical (shuffled codes) or binary, and some labels are wrong.

Source: the priors of TabPFN (Hollmann et al. 2023, arXiv 2207.01848: structural causal models and random networks,
transformed features, classes from intervals), on which MotherNet trains, too (Müller et al. 2025, arXiv 2312.08598);
trees: den Breejen et al. 2024 (arXiv 2405.13396).

Legend: T members, n rows, D features, H nodes of a layer, K classes, R common factors, C codes, E trees.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from zoo.tasks.dataset import SPLIT_NAMES, Dataset, Split
from zoo.tasks.families.family import member_draws
from zoo.tasks.task import Batch

_NUM_NODES: Final = 24
_NUM_FACTORS: Final = 3
_NUM_CODES: Final = 8
_MEMBERS_AT_ONCE: Final = 32  # whose tables fit the caches of a CPU
_MAX_VALUE: Final = 10.0  # deviations
_NUM_TREES: Final = 4
_DEPTH: Final = 4  # all nodes of a level ask the same question, as in oblivious trees
_FUNCTION, _GRAPH, _CLUSTERS, _TREES = range(4)
_KIND_BOUNDS: Final = (0.3, 0.6, 0.75)
_UNCHANGED: Final = 0.5  # share of the features that are left as they are
_ACTIVATIONS: Final[tuple[Callable[[Tensor], Tensor], ...]] = (
    torch.tanh,
    torch.relu,
    torch.abs,
    torch.sin,
    torch.sign,
    torch.clone,
)
# Of features (F, n), a number in [0, 1) for each (F, 1), and C normal ones (F, C).
_TRANSFORMS: Final[tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...]] = (
    lambda x, level, codes: torch.sinh(x.clamp(-3, 3)),
    lambda x, level, codes: x.clamp(max=3).exp(),
    lambda x, level, codes: (x * (1 + 2 * level)).round(),  # ordinal
    lambda x, level, codes: codes.gather(1, (torch.special.ndtr(x) * (2 + level * (_NUM_CODES - 2)).floor()).long()),
    lambda x, level, codes: (x > codes[:, :1].clamp(-1, 1)).float(),
)


class TabularPrior:
    """A family without end: member m is a table drawn from (seed, m).

    It has 2 to D features, standardised by its training rows, the others zero; and 2 to K classes.

    Args:
        num_features: D.
        num_classes: K.
        num_train, num_val, num_test: rows of each member.
        seed: of all tables.

    Raises:
        ValueError: for settings out of range.
    """

    objective: Final = "cross_entropy"
    split_key: Final = "member"
    num_members: Final = None

    def __init__(
        self,
        *,
        num_features: int = 20,
        num_classes: int = 10,
        num_train: int = 128,
        num_val: int = 64,
        num_test: int = 64,
        seed: int = 0,
    ) -> None:
        if num_features < 2 or num_classes < 2 or min(num_train, num_val, num_test) < 2:
            raise ValueError(
                "expected two or more features, classes and rows of each split, got "
                f"{num_features}, {num_classes} and {(num_train, num_val, num_test)}"
            )
        self.num_features, self.num_classes, self.seed = num_features, num_classes, seed
        self.sizes = (num_train, num_val, num_test)
        self.device = torch.device("cpu")
        first = self.bind(torch.zeros(1, dtype=torch.int64))
        train, val, test = (Split(first.inputs[split][0], first.targets[split][0]) for split in SPLIT_NAMES)
        self.dataset = Dataset("tabular_prior", train, val, test, num_classes, f"tabular_prior-2 of seed {seed}")

    def attributes(self, members: Tensor) -> dict[str, Tensor]:
        """Number, features, classes, and kind: 0 a function, 1 a graph, 2 clusters, 3 trees."""
        return {"member": members, **self._choices(members)._asdict()}

    def describe(self, members: Tensor) -> Tensor:
        """Nothing short describes a table: (N, 0)."""
        return torch.zeros(len(members), 0)

    def bind(self, members: Tensor) -> _Tables:
        parts = [self._tables(some) for some in members.split(_MEMBERS_AT_ONCE)]
        inputs, targets = (torch.cat(values).split(self.sizes, dim=1) for values in zip(*parts, strict=True))
        return _Tables(dict(zip(SPLIT_NAMES, inputs, strict=True)), dict(zip(SPLIT_NAMES, targets, strict=True)))

    def to(self, device: torch.device | str) -> TabularPrior:
        moved = copy.copy(self)
        moved.dataset = self.dataset.to(device)
        moved.device = moved.dataset.train.inputs.device
        return moved

    def _choices(self, members: Tensor) -> _Choices:
        size, classes, kind = member_draws(self.seed, members, 3, stream="choices").unbind(1)
        kinds = (kind[:, None] >= torch.tensor(_KIND_BOUNDS)).sum(1)
        more = (self.num_features - 1, self.num_classes - 1)
        return _Choices((2 + size * more[0]).long(), (2 + classes.square() * more[1]).long(), kinds)

    def _tables(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (T, n, D) and classes (T, n), the rows of all splits one after another."""
        num_train, num_rows, width = self.sizes[0], sum(self.sizes), self.num_features
        drawn = self._drawn(members, num_rows)
        groups = _groups(drawn["activation"][:, 0], len(_ACTIVATIONS), self.device)
        changed = (drawn["transform"].flatten() - _UNCHANGED) / (1 - _UNCHANGED)  # below 0 for those left as they are
        transforms = _groups(changed, len(_TRANSFORMS), self.device)
        u = {name: values.to(self.device, non_blocking=True) for name, values in drawn.items()}
        choices = (values.to(self.device, non_blocking=True) for values in self._choices(members))
        features, classes, kind = (values[:, None] for values in choices)  # (T, 1)
        exists = (torch.arange(width, device=self.device) < features).float()  # (T, D)
        level = u["level"][..., None, None].unbind(1)  # each (T, 1, 1)

        # Roots share factors; where clusters are the cause, roots lie around their centres.
        num_clusters = classes * (1 + (level[0][:, 0] > 0.5))
        cluster = (u["row"].pow(0.5 + 1.5 * level[1][:, 0]) * num_clusters).long().minimum(num_clusters - 1)  # (T, n)
        centres = u["centres"].gather(2, cluster[:, None].expand(-1, width, -1)) * (0.5 + 2.5 * level[2])
        own = u["roots"] + centres * (kind == _CLUSTERS)[..., None]
        roots = (1 - 0.95 * level[3]) * own + 3 * level[3].square() * (u["loadings"] @ u["factors"])
        roots = _standardised(roots, num_train)
        causes = torch.where(level[10] < 0.5, roots, _standardised(own, num_train))  # of the class

        # A random network of two layers; each root that exists enters with a weight of its own.
        weight = (u["importance"].pow(3) * exists)[:, None]  # (T, 1, D)
        gain = 0.5 + 3 * level[4]
        weight = weight / weight.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-3)
        bias = u["bias"][..., None].split(_NUM_NODES, dim=1)
        one = _applied(_ACTIVATIONS, groups, gain * (u["weights_in"] * weight) @ causes + bias[0])  # (T, H, n)
        two = gain / _NUM_NODES**0.5 * u["weights_between"] @ one + bias[1]
        two = _applied(_ACTIVATIONS, groups, two)

        # Features are the roots or, in a graph, any nodes but the target, which is the first of the last layer.
        nodes = torch.cat((roots, one, two), 1)
        others = u["node_order"].argsort(1)[:, :width]
        others = others + (others >= width + _NUM_NODES)
        chosen = torch.where(kind == _GRAPH, others, torch.arange(width, device=self.device))
        columns = nodes.gather(1, chosen[..., None].expand(-1, -1, num_rows))
        columns = _standardised(columns + level[5].square() * u["noise"], num_train).flatten(0, 1)  # (T * D, n)
        codes = (u["transform_level"].flatten()[:, None], u["codes"].flatten(0, 1))
        columns = _applied(_TRANSFORMS, transforms, columns, *codes).view(-1, width, num_rows)
        inputs = _standardised(columns, num_train).clamp(-_MAX_VALUE, _MAX_VALUE) * exists[..., None]

        target = two[:, 0] + 0.3 * level[6][:, 0].square() * u["noise"][:, 0]
        scores = u["weights_out"] @ two / _NUM_NODES**0.5 + level[7] * (u["weights_direct"] * weight) @ causes
        scores = torch.where((kind == _TREES)[..., None], self._trees(u, weight[:, 0], causes), scores)
        noise = -(-u["gumbel"].clamp(1e-9).log()).log() * 0.7 * level[8].square()
        scores = _standardised(scores, num_train) + 0.3 * u["class_bias"][..., None] + noise
        is_class = torch.arange(self.num_classes, device=self.device) < classes  # (T, K)
        scores = scores.masked_fill(~is_class[..., None], -math.inf)
        number = torch.arange(self.num_classes, device=self.device)[:, None]
        largest = torch.where(scores == scores.amax(1, keepdim=True), number, 0).amax(1)  # argmax is slower there
        names = u["class_order"].masked_fill(~is_class, math.inf).argsort(1)  # a permutation of the classes
        interval = names.gather(1, _intervals(target, u["bounds"], classes, num_train))
        labels = torch.where(kind == _GRAPH, interval, torch.where(kind == _CLUSTERS, cluster % classes, largest))
        is_wrong = u["row_noise"] < 0.3 * level[9][:, 0].pow(3)
        labels = torch.where(is_wrong, (u["row_label"] * classes).long().minimum(classes - 1), labels)
        return inputs.transpose(1, 2).contiguous(), labels

    def _trees(self, u: Mapping[str, Tensor], weight: Tensor, causes: Tensor) -> Tensor:
        """Scores (T, K, n) of the classes: sums over the leaves that rows fall into, by causes (T, D, n)."""
        num_tables, _, num_rows = causes.shape
        chance = (weight / weight.sum(1, keepdim=True).clamp(min=1e-6)).cumsum(1)  # (T, D)
        asked = torch.searchsorted(chance, u["tree_feature"].contiguous()).clamp(
            max=self.num_features - 1
        )  # (T, E * depth)
        above = causes.gather(1, asked[..., None].expand(-1, -1, num_rows)) > 0.7 * u["tree_threshold"][..., None]
        bits = above.view(num_tables, _NUM_TREES, _DEPTH, num_rows)
        leaf = (bits * 2 ** torch.arange(_DEPTH, device=causes.device)[:, None]).sum(2)  # (T, E, n)
        values = u["leaves"].gather(3, leaf[:, None].expand(-1, self.num_classes, -1, -1))  # (T, K, E, n)
        return values.sum(2)

    def _drawn(self, members: Tensor, num_rows: int) -> dict[str, Tensor]:
        """All random numbers (T, ...) of members but their choices, on the CPU."""
        width, classes = self.num_features, self.num_classes
        uniform = {
            "activation": (1,),
            "level": (11,),
            "row": (num_rows,),
            "row_noise": (num_rows,),
            "row_label": (num_rows,),
            "gumbel": (classes, num_rows),
            "importance": (width,),
            "transform": (width,),
            "transform_level": (width,),
            "node_order": (width + 2 * _NUM_NODES - 1,),
            "class_order": (classes,),
            "bounds": (classes - 1,),
            "tree_feature": (_NUM_TREES * _DEPTH,),
        }
        normal = {
            "roots": (width, num_rows),
            "factors": (_NUM_FACTORS, num_rows),
            "noise": (width, num_rows),
            "loadings": (width, _NUM_FACTORS),
            "centres": (width, 2 * classes),
            "weights_in": (_NUM_NODES, width),
            "weights_between": (_NUM_NODES, _NUM_NODES),
            "weights_out": (classes, _NUM_NODES),
            "weights_direct": (classes, width),
            "bias": (2 * _NUM_NODES,),
            "class_bias": (classes,),
            "codes": (width, _NUM_CODES),
            "tree_threshold": (_NUM_TREES * _DEPTH,),
            "leaves": (classes, _NUM_TREES, 2**_DEPTH),
        }
        sizes = {name: math.prod(shape) for name, shape in (uniform | normal).items()}
        counts = (sum(sizes[name] for name in shapes) for shapes in (uniform, normal))
        parts = member_draws(self.seed, members, *counts).split(list(sizes.values()), dim=1)
        shapes = uniform | normal
        return {name: part.unflatten(1, shapes[name]) for name, part in zip(shapes, parts, strict=True)}


class _Choices(NamedTuple):
    """What is known of members (T,) before their tables are made."""

    features: Tensor
    classes: Tensor
    kind: Tensor


@dataclass(frozen=True)
class _Tables:
    inputs: dict[str, Tensor]  # (N, n, D) by split
    targets: dict[str, Tensor]  # (N, n)

    def __getitem__(self, some: slice) -> _Tables:
        return _Tables(
            *({split: values[some] for split, values in part.items()} for part in (self.inputs, self.targets))
        )

    def examples(self, indices: Tensor, split: str = "train") -> Batch:
        inputs, targets = self.inputs[split], self.targets[split]
        if indices.ndim == 1:
            return Batch(inputs[:, indices], targets[:, indices])
        rows = torch.arange(len(inputs), device=inputs.device)[:, None]
        return Batch(inputs[rows, indices], targets[rows, indices])


def _standardised(rows: Tensor, num_train: int) -> Tensor:
    """Values (..., n) less the mean of the first, divided by their deviation; constant ones are zero."""
    rows = rows - rows[..., :num_train].mean(-1, keepdim=True)
    std = rows[..., :num_train].square().mean(-1, keepdim=True).sqrt()  # torch.std is many times slower
    return rows * torch.where(std > 1e-4, 1 / std, 0.0)


def _groups(places: Tensor, count: int, device: torch.device) -> list[Tensor]:
    """Indices of the places (F,) that fall in each of `count` equal parts of [0, 1); of those below 0, in none."""
    number = (places * count).floor().clamp(max=count - 1)
    return [(number == i).nonzero()[:, 0].to(device, non_blocking=True) for i in range(count)]


def _applied(functions: Sequence[Callable[..., Tensor]], groups: Sequence[Tensor], *values: Tensor) -> Tensor:
    """The first of the values, with each function applied to its group of rows of all of them."""
    result = values[0].clone()
    for function, rows in zip(functions, groups, strict=True):
        result[rows] = function(*(value[rows] for value in values))
    return result


def _intervals(target: Tensor, bounds: Tensor, classes: Tensor, num_train: int) -> Tensor:
    """The interval (T, n), 0 to `classes` - 1, of each target (T, n) between quantiles of its training rows.

    Args:
        bounds: (T, K - 1) in [0, 1), by which quantiles differ from those that give classes of equal size.
        classes: (T, 1).
    """
    number = torch.arange(1, bounds.shape[1] + 1, device=bounds.device)
    quantile = ((number + 1.6 * (bounds - 0.5)) / classes).clamp(0, 1)
    ordered = target[:, :num_train].sort(1).values
    bound = ordered.gather(1, (quantile * (num_train - 1)).long())  # (T, K - 1)
    above = (target[:, None] > bound[..., None]) & (number < classes)[..., None]  # (T, K - 1, n)
    return above.sum(1)
