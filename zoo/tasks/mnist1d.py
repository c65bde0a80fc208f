"""MNIST-1D: digits drawn as one-dimensional strokes, then distorted until small models can be told apart.

The recipe is the paper's: pad, scale, translate, add correlated noise, shear, add independent noise, resample. The ten
strokes are redrawn here, so accuracies are not comparable with published ones.

Legend: n examples, W 60 points of the drawing, L 40 points of an example.

Source: Greydanus and Kobak 2020 (arXiv 2011.14439), section 2.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

NUM_POINTS: Final = 40
_STROKE_POINTS: Final = 12
_DRAWING_POINTS: Final = 60
_NOISE_WIDTH: Final = 2.0  # points, standard deviation of the smoothing kernel
# Horizontal position of the pen on its way from the top of each digit to the bottom.
_STROKES: Final = (
    (0.0, 0.9, 1.0, 0.9, 0.0),
    (0.0, -0.9, -0.3, 0.3, 0.0),
    (0.0, 1.0, 0.5, -0.7, 0.0),
    (0.0, 1.0, -0.1, 1.0, 0.0),
    (0.0, -0.6, -1.2, 0.4, 0.0),
    (0.0, -1.0, -0.4, 0.9, 0.0),
    (0.0, -0.4, -1.0, -1.0, 0.0),
    (0.0, 1.2, 0.4, 0.0, 0.0),
    (0.0, -1.0, 0.5, -1.0, 0.0),
    (0.0, -1.2, 0.2, 0.2, 0.0),
)


def generate_mnist1d(num_examples: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Sequences (n, L) and their classes (n,), the classes in equal numbers.

    Raises:
        ValueError: if `num_examples` is less than 10.
    """
    if num_examples < len(_STROKES):
        raise ValueError(f"num_examples must be at least {len(_STROKES)}, got {num_examples}")
    rng = np.random.RandomState(seed)
    labels = np.arange(num_examples) % len(_STROKES)
    drawings = np.stack([_draw(_STROKES[label], rng) for label in labels])  # (n, W)
    sheared = drawings + 0.75 * rng.uniform(-0.5, 0.5, (num_examples, 1)) * np.linspace(-1, 1, _DRAWING_POINTS)
    noisy = sheared + 0.02 * rng.standard_normal(sheared.shape)
    examples = np.stack([_resample(row, NUM_POINTS) for row in noisy])  # (n, L)
    standardised = (examples - examples.mean()) / examples.std()
    return standardised.astype(np.float32), labels.astype(np.int64)


def _draw(stroke: tuple[float, ...], rng: np.random.RandomState) -> NDArray[np.float64]:
    """One stroke of random length and height at a random place, correlated noise everywhere else: (W,)."""
    length = rng.randint(_STROKE_POINTS, 3 * _STROKE_POINTS)
    height = 1 + 0.4 * rng.standard_normal()
    begin = rng.randint(0, _DRAWING_POINTS - length + 1)
    drawing = 0.25 * _smooth_noise(rng)
    drawing[begin : begin + length] = height * _resample(np.array(stroke), length)
    return drawing


def _smooth_noise(rng: np.random.RandomState) -> NDArray[np.float64]:
    reach = round(4 * _NOISE_WIDTH)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _NOISE_WIDTH) ** 2)
    noise = np.convolve(rng.standard_normal(_DRAWING_POINTS + 2 * reach), kernel / kernel.sum(), mode="valid")
    return noise / noise.std()


def _resample(values: NDArray[np.float64], num_points: int) -> NDArray[np.float64]:
    return np.interp(np.linspace(0, len(values) - 1, num_points), np.arange(len(values)), values)
