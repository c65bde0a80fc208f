"""Images of a data set, turned, mirrored, scaled, sheared and inverted: each member in its own way, labels as they are.

Legend: N members, B examples, C channels, n images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.tasks.dataset import SPLIT_NAMES, Dataset, Split
from zoo.tasks.families.family import member_draws
from zoo.tasks.families.words import of_warp
from zoo.tasks.task import Batch

_MAX_LOG_SCALE: Final = 0.3
_MAX_SHEAR: Final = 0.4
_POOLED_FROM: Final = 2**40  # members that no run has


class WarpedImages:
    """A family: member m sees all images through the warp that is drawn from (seed, m).

    A warp is a rotation by any angle, a mirror image in half the members, a scale from e^-0.3 to e^0.3, a shear of up
    to 0.4, and black for white in half the members. What lies outside an image is black before that. Inputs are
    standardised by mean and deviation of the unwarped training images.

    Args:
        base: images (n, C, height, width) in [0, 1].
        image_size: height and width to which they are brought by averaging; None to leave them.
        strength: from 0, where every member is the base itself, on which frozen networks can be trained, to 1.
        seed: of the warps.
        num_members: how many there are; None without end.
        pooled: every member is all images, each in a warp of its own, on which a start for all tasks can be trained.

    Raises:
        ValueError: for a base without images, and settings out of range.
    """

    objective: Final = "cross_entropy"
    split_key: Final = "member"

    def __init__(
        self,
        base: Dataset,
        image_size: int | None = None,
        strength: float = 1.0,
        seed: int = 0,
        num_members: int | None = None,
        *,
        pooled: bool = False,
    ) -> None:
        shape = tuple(base.train.inputs.shape[1:])
        if len(shape) != 3 or not base.train.inputs.is_floating_point() or not base.num_classes:
            raise ValueError(f"warps are of images (C, height, width) with classes; {base.name!r} has examples {shape}")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be from 0 to 1, got {strength!r}")
        size = shape[-1] if image_size is None else image_size
        resized = (
            base if (size, size) == shape[1:] else _mapped(base, lambda x: F.interpolate(x, (size, size), mode="area"))
        )
        self.mean, self.std = resized.train.inputs.mean().item(), resized.train.inputs.std().item()
        self.dataset = _mapped(resized, lambda x: (x - self.mean) / self.std)
        self.strength, self.seed, self.num_members = float(strength), seed, num_members
        if pooled:
            train, val, test = map(self._pooled, SPLIT_NAMES)
            self.dataset, self.strength = replace(self.dataset, train=train, val=val, test=test), 0.0

    def attributes(self, members: Tensor) -> dict[str, Tensor]:
        """Number, rotation in radians, scale, shear, and whether mirrored and inverted."""
        turn, size, shear, mirror, invert = member_draws(self.seed, members, 5).unbind(1)
        return {
            "member": members,
            "rotation": self.strength * math.pi * (2 * turn - 1),
            "scale": (self.strength * _MAX_LOG_SCALE * (2 * size - 1)).exp(),
            "shear": self.strength * _MAX_SHEAR * (2 * shear - 1),
            "mirrored": (mirror < 0.5 * self.strength).long(),
            "inverted": (invert < 0.5 * self.strength).long(),
        }

    def describe(self, members: Tensor) -> Tensor:
        """The entries of the map that warps images, and 1 where they are inverted, else -1: (N, 5)."""
        warp = self.attributes(members)
        return torch.cat((_affine_maps(warp)[:, :, :2].flatten(1), 2.0 * warp["inverted"][:, None] - 1), dim=1)

    def in_words(self, members: Tensor) -> list[list[str]]:
        columns = {name: values.tolist() for name, values in self.attributes(members).items()}
        return [of_warp(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    def bind(self, members: Tensor) -> _Warps:
        warp = self.attributes(members)
        device = self.dataset.train.inputs.device
        maps, inverted = _affine_maps(warp), warp["inverted"].float()
        size = (len(members), 1, *self.dataset.train.inputs.shape[-2:])
        grids = F.affine_grid(maps, list(size), align_corners=False)  # on the CPU, so that all devices sample alike
        parts = (part.to(device, non_blocking=True) for part in (grids, inverted))
        return _Warps(self.dataset, self.mean, self.std, *parts)

    def _pooled(self, split: str) -> Split:
        every = torch.arange(len(self.dataset.split(split)))
        inputs, targets, _ = self.bind(_POOLED_FROM + every).examples(every[:, None], split)
        return Split(inputs.flatten(0, 1), targets.flatten())

    def to(self, device: torch.device | str) -> WarpedImages:
        moved = copy.copy(self)
        moved.dataset = self.dataset.to(device)
        return moved


@dataclass(frozen=True)
class _Warps:
    dataset: Dataset
    mean: float
    std: float
    grids: Tensor  # (N, height, width, 2)
    inverted: Tensor  # (N,)

    def __getitem__(self, some: slice) -> _Warps:
        return replace(self, grids=self.grids[some], inverted=self.inverted[some])

    def examples(self, indices: Tensor, split: str = "train") -> Batch:
        data = self.dataset.split(split)
        size = len(self.grids)
        images = data.inputs[indices] * self.std + self.mean  # (B, C, height, width) or (N, B, ...)
        images = images.expand(size, *images.shape[-4:])
        warped = F.grid_sample(images.flatten(1, 2), self.grids, align_corners=False).view_as(images)
        inverted = self.inverted[:, None, None, None, None]
        pixels = inverted + (1 - 2 * inverted) * warped
        return Batch((pixels - self.mean) / self.std, data.targets[indices].expand(size, -1))


def _affine_maps(warp: dict[str, Tensor]) -> Tensor:
    """Matrices (N, 2, 3) from places in the warped image to those in the image."""
    sine, cosine = warp["rotation"].sin(), warp["rotation"].cos()
    side = 1 - 2 * warp["mirrored"].float()
    zero = torch.zeros_like(sine)
    turned = torch.stack((torch.stack((cosine * side, -sine), 1), torch.stack((sine * side, cosine), 1)), 1)
    sheared = torch.stack((torch.stack((warp["scale"], warp["shear"]), 1), torch.stack((zero, warp["scale"]), 1)), 1)
    return F.pad(turned @ sheared, (0, 1))


def _mapped(dataset: Dataset, function: Callable[[Tensor], Tensor]) -> Dataset:
    train, val, test = (Split(function(split.inputs), split.targets) for split in map(dataset.split, SPLIT_NAMES))
    return replace(dataset, train=train, val=val, test=test)
