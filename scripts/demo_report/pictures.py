"""Weights and digits as small PNG pictures inside the page, readable on light and on dark ground."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

_NEGATIVE, _POSITIVE = (0, 114, 178), (213, 94, 0)  # blue and vermilion of Okabe and Ito


def weight_images(weights: Sequence[Sequence[float]], shape: tuple[int, int], scale: float) -> list[str]:
    """One picture for each unit's incoming weights, as data URIs: blue negative, vermilion positive, zero transparent.

    Args:
        weights: (U, height * width).
        shape: height and width.
        scale: weight that is drawn in full colour.
    """
    return [_data_uri(_signed_colours(np.array(row).reshape(shape) / scale)) for row in weights]


def digit_image(pixels: Sequence[Sequence[float]]) -> str:
    """A digit (height, width) in [0, 1] as a data URI: black on transparent ground; the page inverts it when dark."""
    ink = np.array(pixels)
    return _data_uri(np.concatenate([np.zeros((*ink.shape, 3)), ink[..., None]], axis=-1))


def _signed_colours(values: np.ndarray) -> np.ndarray:
    """Colours (height, width, 4) in [0, 1] of numbers from -1 to 1."""
    colours = np.where(values[..., None] < 0, _NEGATIVE, _POSITIVE) / 255
    return np.concatenate([colours, np.clip(np.abs(values), 0, 1)[..., None]], axis=-1)


def _data_uri(rgba: np.ndarray) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, rgba, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
