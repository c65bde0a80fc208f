"""Normalisation of network parameters: one mean and deviation per exchangeable feature, shared by several layouts.

Numbers that a symmetry can exchange (the biases of a layer's units, say) must share their statistics, or the
normalised network would depend on the order of its units. Running variances pass through a logarithm, so that what is
generated is positive. Copied integers have deviation zero: they normalise to 0 and come back as recorded.

Legend: N networks, P numbers of one network, S statistics over all keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from generator.from_folder import FromFolder
from generator.tokens.tokenizer import ParamTokenizer, is_generated, make_tokenizer
from zoo.devices import widened
from zoo.networks.layout import LayoutMismatchError, ParamLayout

_MIN_STD: Final = 1e-4
_MIN_STD_OF_NUMBER: Final = 1e-8  # of one number in many networks, which may differ by very little
_MIN_VARIANCE: Final = 1e-8
_FACTOR_SPREAD: Final = 2.5  # of the largest component of adapters over all of them
_NUMBERS_PER_PASS: Final = 2**18  # so that they stay in the cache


@dataclass(frozen=True)
class Scale:
    """Normalisation of the networks of one layout: `normalize` and its inverse, both differentiable.

    Attributes:
        mean, std: (P,) of the numbers, of their logarithm where `is_log`; std is 0 where numbers are copied.
        is_log: (P,) bool, true for running variances.
    """

    mean: Tensor
    std: Tensor
    is_log: Tensor | None

    def normalize(self, params: Tensor) -> Tensor:
        """(..., P) of mean about 0 and variance about 1 from parameters (..., P)."""
        if self.is_log is not None:
            params = torch.where(self.is_log, params.clamp(min=_MIN_VARIANCE).log(), params)
        return (params - self.mean) * torch.where(self.std > 0, 1 / self.std, 0.0)

    def denormalize(self, values: Tensor) -> Tensor:
        """Parameters (..., P) from normalised values (..., P)."""
        params = values * self.std + self.mean
        return params if self.is_log is None else torch.where(self.is_log, params.where(self.is_log, 0.0).exp(), params)

    def to(self, device: torch.device | str) -> Scale:
        is_log = None if self.is_log is None else self.is_log.to(device)
        return Scale(self.mean.to(device), self.std.to(device), is_log)


class ParamNormalizer(FromFolder, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The layouts that a generator knows, how it cuts them into tokens, and the statistics fitted on training runs.

    Build it with `ParamNormalizer.fit`; `save_pretrained` and `from_pretrained` keep it beside the model.

    Args:
        layouts: JSON texts of the layouts seen in training.
        tokenizer: "neuron" or "chunk".
        chunk_width: numbers per chunk; 0 for one chunk.
        statistics: number of statistics by key; `mean` and `std` hold them in sorted order.
        recompute_batch_norm: whether BatchNorm's running statistics are recomputed on training images after sampling.
        statistics_per_number: of chunk tokens, see ChunkTokenizer.
    """

    __module__ = "generator"  # what saved pipelines name: the public surface, not this file

    @register_to_config
    def __init__(
        self,
        layouts: list[str],
        tokenizer: str,
        chunk_width: int = 64,
        statistics: dict[str, int] | None = None,
        recompute_batch_norm: bool = False,
        *,
        statistics_per_number: bool = False,
    ) -> None:
        super().__init__()
        sizes = dict(sorted((statistics or {}).items()))  # saved configs are sorted
        self.sizes = sizes
        self.register_buffer("mean", torch.zeros(sum(sizes.values()), dtype=torch.float32))
        self.register_buffer("std", torch.ones(sum(sizes.values()), dtype=torch.float32))
        self.mean: Tensor
        self.std: Tensor
        self.layouts = tuple(ParamLayout.from_json(text) for text in layouts)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ParamNormalizer:
        """Moves to another device; statistics stay in float32, also beside a model of half precision."""

        def moved(value: Tensor) -> Tensor:
            return value.to(fn(value).device)

        super()._apply(moved, recurse)
        return self

    @classmethod
    def fit(
        cls,
        tokenizer: str,
        layouts: Sequence[ParamLayout],
        params: Sequence[Tensor | Iterable[Tensor]],
        *,
        chunk_width: int = 64,
        recompute_batch_norm: bool = False,
        statistics_per_number: bool = False,
    ) -> ParamNormalizer:
        """Normalizer whose statistics average over the layouts with equal weight.

        Args:
            tokenizer: "neuron" or "chunk".
            layouts: one or several.
            params: for each layout, networks (N, P) of training runs, or parts of them.
            chunk_width: numbers per chunk.
            recompute_batch_norm: whether running statistics are recomputed after sampling.
            statistics_per_number: of chunk tokens, see ChunkTokenizer.
        """
        moments: dict[str, list[Tensor]] = {}
        factors: set[str] = set()
        for layout, networks in zip(layouts, params, strict=True):
            cut = make_tokenizer(
                tokenizer, layout, chunk_width=chunk_width, statistics_per_number=statistics_per_number
            )
            for key, moment in _moments(cut, [networks] if isinstance(networks, Tensor) else networks).items():
                moments.setdefault(key, []).append(moment)
            factors |= cut.factor_keys
        pooled = {key: torch.stack(parts).mean(0) for key, parts in sorted(moments.items())}  # (2, size)
        normalizer = cls(
            layouts=list(dict.fromkeys(layout.to_json() for layout in layouts)),
            tokenizer=tokenizer,
            chunk_width=chunk_width,
            statistics={key: moment.shape[1] for key, moment in pooled.items()},
            recompute_batch_norm=recompute_batch_norm,
            statistics_per_number=statistics_per_number,
        )
        mean, square = torch.cat(list(pooled.values()), dim=1)
        copied = torch.cat([torch.full((m.shape[1],), key.startswith("copied:")) for key, m in pooled.items()])
        spread = [torch.full((m.shape[1],), _FACTOR_SPREAD if key in factors else 1.0) for key, m in pooled.items()]
        floor = _MIN_STD_OF_NUMBER if statistics_per_number else _MIN_STD
        std = torch.cat(spread) * ((square - mean.square()).clamp(min=0).sqrt() + floor)
        normalizer.mean.copy_(torch.where(copied, mean.round(), mean))
        normalizer.std.copy_(torch.where(copied, 0.0, std))
        return normalizer

    def make_tokenizer(self, layout: ParamLayout) -> ParamTokenizer:
        """Tokenizer of a layout, of the kind the statistics were fitted with."""
        names = ("chunk_width", "statistics_per_number")
        return make_tokenizer(self.config["tokenizer"], layout, **{name: self.config[name] for name in names})

    def scale(self, tokenizer: ParamTokenizer) -> Scale:
        """Normalisation for one layout, which need not be among those of the fit but must have known features.

        Raises:
            LayoutMismatchError: if the layout has features without statistics.
        """
        sizes, ids = tokenizer.statistics()
        known = {key: size for key, size in sizes.items() if not key.startswith("copied:")}
        strange = {key: size for key, size in known.items() if self.sizes.get(key) != size}
        if strange:
            raise LayoutMismatchError(
                f"layout has features {strange} that no training network had; trained on {self.sizes}"
            )
        means = dict(zip(self.sizes, self.mean.split(list(self.sizes.values())), strict=True))
        stds = dict(zip(self.sizes, self.std.split(list(self.sizes.values())), strict=True))
        mean = torch.cat([means.get(key, self.mean.new_zeros(size)) for key, size in sizes.items()])
        std = torch.cat([stds.get(key, self.std.new_zeros(size)) for key, size in sizes.items()])
        is_log = _is_log(tokenizer.layout).to(self.mean.device)
        ids = ids.to(self.mean.device)
        return Scale(mean[ids], std[ids], is_log if bool(is_log.any()) else None)


def _moments(tokenizer: ParamTokenizer, parts: Iterable[Tensor]) -> dict[str, Tensor]:
    """First and second moments (2, size) by key of parts (N, P) of networks, computed on their device."""
    sizes, ids = tokenizer.statistics()
    count, totals = 0, torch.zeros(())
    for params in parts:
        count, totals = count + len(params), _sums(tokenizer.layout, params) + totals.to(params.device)
    ids, num_statistics = ids.to(totals.device), sum(sizes.values())
    counts = torch.bincount(ids, minlength=num_statistics) * count
    total = totals.new_zeros(2, num_statistics).index_add_(1, ids, totals)
    return dict(zip(sizes, (total / counts).cpu().split(list(sizes.values()), dim=1), strict=True))


def _sums(layout: ParamLayout, params: Tensor) -> Tensor:
    """Sums and sums of squares (2, P) of networks (N, P)."""
    layout.check_vector(params)
    width, sums = max(1, _NUMBERS_PER_PASS // len(params)), []
    for part, logs in zip(params.split(width, dim=1), _is_log(layout).to(params.device).split(width), strict=True):
        values = widened(part)
        values = torch.where(logs, values.clamp(min=_MIN_VARIANCE).log(), values)
        sums.append(torch.stack((values.sum(0), values.square().sum(0))))
    return torch.cat(sums, dim=1)


def _is_log(layout: ParamLayout) -> Tensor:
    """(P,) bool: true where a number is a running variance."""
    flags = [torch.full((slot.numel,), is_generated(slot) and slot.role == "running_var") for slot in layout]
    return torch.cat(flags)
