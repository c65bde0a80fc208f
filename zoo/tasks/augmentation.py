"""Training examples that are changed anew in each step: images moved, cropped, flipped, noisy; spans of text.

Augmentations are named, composed in the order given and recorded with their parameters. They draw from a stream of
counter-based numbers, so that what a step sees follows from the seed and the step.

Legend: B examples of a minibatch, n of a split, C channels, L symbols of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.networks.counter_rng import CounterRng


class Augmentation(Protocol):
    """Changes inputs, and leaves their targets true. A dataclass, whose fields are its parameters."""

    @property
    def name(self) -> str: ...

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless examples (n, ...) of a split can be augmented."""
        ...

    def __call__(self, inputs: Tensor, rng: CounterRng) -> Tensor:
        """Inputs (B, ...) changed by random numbers from `rng`."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """An augmentation that takes other examples than those that were drawn."""

    def sample(self, inputs: Tensor, targets: Tensor, indices: Tensor, rng: CounterRng) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, ...) in place of the examples `indices` (B,) of a split (n, ...)."""
        ...


@dataclass(frozen=True)
class Affine:
    """Images rotated, moved, scaled and sheared about their centre; what comes from outside is 0.

    Args:
        degrees: rotation, uniform within plus and minus this.
        translate: shift, likewise, as a share of height and width.
        scale: range of the factor on sizes.
        shear: in degrees along the rows, likewise.
    """

    name: ClassVar[str] = "affine"
    degrees: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale of 'affine' must be a range [low, high] above 0, got {self.scale}")
        object.__setattr__(self, "scale", tuple(self.scale))

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        _check_images(self.name, inputs)

    def __call__(self, inputs: Tensor, rng: CounterRng) -> Tensor:
        size, height, width = len(inputs), *inputs.shape[-2:]
        signed = 2 * rng.uniform((4, size)) - 1  # (4, B)
        angle, slant = signed[0] * math.radians(self.degrees), (signed[1] * math.radians(self.shear)).tan()
        low, high = self.scale
        factor = low + (high - low) * rng.uniform((size,))
        cos, sin = angle.cos() / factor, angle.sin() / factor
        # where each pixel comes from: rotated and scaled back, then sheared back
        rows = (torch.stack((cos + slant * sin, sin - slant * cos), -1), torch.stack((-sin, cos), -1))
        matrix = torch.stack(rows, 1)  # (B, 2, 2)
        y = torch.arange(height, device=inputs.device) + 0.5 - height / 2
        x = torch.arange(width, device=inputs.device) + 0.5 - width / 2
        places = torch.stack(torch.broadcast_tensors(x, y[:, None]), -1)  # (height, width, 2) from the centre
        source = (places.flatten(0, 1) @ matrix.mT) / (0.5 * torch.stack((x[-1] - x[0] + 1, y[-1] - y[0] + 1)))
        source = source - 2 * self.translate * signed[2:].mT[:, None]  # (B, height * width, 2) in [-1, 1]
        grid = source.unflatten(1, (height, width)).to(inputs.dtype)
        return F.grid_sample(inputs, grid, align_corners=False)


@dataclass(frozen=True)
class Crop:
    """Images padded with zeros on all sides, and cut out at a random place, in their own size.

    Args:
        padding: pixels on each side.
    """

    name: ClassVar[str] = "crop"
    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 1:
            raise ValueError(f"padding of 'crop' must be 1 pixel or more, got {self.padding}")

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        _check_images(self.name, inputs)

    def __call__(self, inputs: Tensor, rng: CounterRng) -> Tensor:
        height, width = inputs.shape[-2:]
        padded = F.pad(inputs, [self.padding] * 4)
        top, left = rng.integers(2 * self.padding + 1, (2, len(inputs), 1)).unbind()  # (B, 1) each
        rows = top + torch.arange(height, device=inputs.device)  # (B, height)
        columns = left + torch.arange(width, device=inputs.device)
        examples = torch.arange(len(inputs), device=inputs.device)[:, None, None]
        return padded[examples, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Flip:
    """Images mirrored left to right.

    Args:
        p: how often.
    """

    name: ClassVar[str] = "flip"
    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p of 'flip' must be a probability, got {self.p}")

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        _check_images(self.name, inputs)

    def __call__(self, inputs: Tensor, rng: CounterRng) -> Tensor:
        return torch.where(rng.keeps(self.p, (len(inputs), 1, 1, 1)), inputs.flip(-1), inputs)


@dataclass(frozen=True)
class Noise:
    """Real inputs of any shape with normal noise on them.

    Args:
        std: its standard deviation.
    """

    name: ClassVar[str] = "noise"
    std: float = 0.1

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        if not inputs.is_floating_point():
            raise ValueError(f"augmentation 'noise' takes real numbers, got {inputs.dtype} inputs")

    def __call__(self, inputs: Tensor, rng: CounterRng) -> Tensor:
        return inputs + self.std * rng.normal(inputs.shape).to(inputs.dtype)


@dataclass(frozen=True)
class Spans:
    """Windows of a text that begin anywhere, where the data set has them side by side."""

    name: ClassVar[str] = "spans"

    def check(self, inputs: Tensor, targets: Tensor) -> None:
        is_text = not inputs.is_floating_point() and inputs.ndim == 2 and targets.shape == inputs.shape
        if not is_text or len(inputs) < 2 or not torch.equal(inputs.flatten()[1:], targets.flatten()[:-1]):
            raise ValueError(
                "augmentation 'spans' takes windows (n, L) of one text, in its order, with the next symbols as targets"
            )

    def __call__(self, inputs: Tensor, rng: CounterRng) -> Tensor:
        return inputs

    def sample(self, inputs: Tensor, targets: Tensor, indices: Tensor, rng: CounterRng) -> tuple[Tensor, Tensor]:
        length = inputs.shape[1]
        begin = indices.clamp(max=len(inputs) - 2) * length + rng.integers(length, indices.shape)  # (B,)
        places = begin[:, None] + torch.arange(length, device=inputs.device)  # (B, L)
        return inputs.flatten()[places], targets.flatten()[places]


AUGMENTATIONS: Final[Mapping[str, type[Any]]] = {kind.name: kind for kind in (Affine, Crop, Flip, Noise, Spans)}


def make_augmentations(config: Sequence[str | Mapping[str, Any]]) -> tuple[Augmentation, ...]:
    """Augmentations from names, or mappings that hold a `name` and parameters.

    Raises:
        ValueError: for an unknown name, or parameters that there are not.
    """
    if isinstance(config, str | Mapping) or not isinstance(config, Sequence):
        raise ValueError(f"augment must be a list such as ['flip', {{'name': 'crop', 'padding': 4}}], got {config!r}")
    made = []
    for one in config:
        parameters: dict[str, Any] = {"name": one} if isinstance(one, str) else dict(one)
        name = str(parameters.pop("name", None))
        if name not in AUGMENTATIONS:
            raise ValueError(f"augmentations must be some of {sorted(AUGMENTATIONS)}, got {name!r}")
        try:
            made.append(AUGMENTATIONS[name](**parameters))
        except TypeError as error:
            raise ValueError(f"augmentation {name!r} does not take {parameters}: {error}") from error
    return tuple(made)


def recorded(augmentations: Sequence[Augmentation]) -> list[dict[str, Any]]:
    """Names and all parameters, JSON-able, from which `make_augmentations` makes them again."""
    return [{"name": one.name, **asdict(one)} for one in augmentations]  # type: ignore[call-overload]


def _check_images(name: str, inputs: Tensor) -> None:
    if inputs.ndim != 4 or not inputs.is_floating_point():
        raise ValueError(
            f"augmentation {name!r} takes images (n, C, height, width) of real numbers, got {inputs.dtype} inputs of "
            f"shape {tuple(inputs.shape)}"
        )
