"""Arithmetic on checkpoints: pure functions over networks (N, P), and `combine`, which calls them by name."""

from typing import TYPE_CHECKING

from zoo.lazy import lazy_surface

if TYPE_CHECKING:
    from zoo.operations.averages import average, exponential_average, greedy_soup
    from zoo.operations.compression import Ternary, compress, load_compressed, save_compressed
    from zoo.operations.extrapolation import extrapolate
    from zoo.operations.merging import dare, drop_and_rescale, task_arithmetic, task_vectors, ties
    from zoo.operations.methods import Combined, combine
    from zoo.operations.networks import Networks, read_networks
    from zoo.operations.teleportation import rescale, teleport
else:
    __getattr__, __dir__ = lazy_surface(__name__)

__all__ = [
    "Combined",
    "Networks",
    "Ternary",
    "average",
    "combine",
    "compress",
    "dare",
    "drop_and_rescale",
    "exponential_average",
    "extrapolate",
    "greedy_soup",
    "load_compressed",
    "read_networks",
    "rescale",
    "save_compressed",
    "task_arithmetic",
    "task_vectors",
    "teleport",
    "ties",
]
