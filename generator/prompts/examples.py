"""Examples as a prompt: a network for these data, of which a few are shown, with labels or without.

Legend: B prompts, E examples of each, K classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from zoo.tasks.files.arrays import read_npz
from zoo.tasks.files.columns import column, read_columns
from zoo.tasks.files.text import byte_windows, read_text
from zoo.tasks.objectives import BinaryCrossEntropy
from zoo.tasks.task import Task

FEWEST: Final = 4  # examples of a prompt
MOST: Final = 512
NO_LABEL: Final = -1
_MOST_FAR: Final = 0.5  # share of examples that may lie outside what the training saw


@dataclass(frozen=True)
class ExampleKind:
    """What examples of a task look like.

    Attributes:
        shape: of an input.
        num_symbols: of which inputs consist; 0 for real numbers.
        num_classes: K.
        bounds: lowest and highest number of the training inputs; None for symbols, and where nobody noted them.
    """

    shape: tuple[int, ...]
    num_symbols: int
    num_classes: int
    bounds: tuple[float, float] | None = None

    @classmethod
    def of(cls, task: Task) -> ExampleKind:
        """Kind of the examples of a task.

        Raises:
            ValueError: if its targets are no classes.
        """
        train = task.dataset.train
        if train.targets.is_floating_point() or not task.dataset.num_classes:
            raise ValueError(f"examples in prompts have classes as targets, those of task {task.name!r} are numbers")
        num_classes = 2 if isinstance(task.objective, BinaryCrossEntropy) else task.dataset.num_classes
        shape = tuple(train.inputs.shape[1:])
        if not train.inputs.is_floating_point():
            return cls(shape, task.dataset.num_classes, num_classes)
        return cls(shape, 0, num_classes, (train.inputs.min().item(), train.inputs.max().item()))

    @property
    def num_features(self) -> int:
        """Numbers of an input, as the model reads it."""
        return self.num_symbols or math.prod(self.shape)


@dataclass(frozen=True)
class Examples:
    """Sets of examples, one for each prompt of a batch.

    Attributes:
        inputs: (B, E, ...).
        targets: (B, E, ...) classes, NO_LABEL where they are not told.
        is_given: (B,) bool, whether the prompt has its examples; they count for nothing otherwise.
    """

    inputs: Tensor
    targets: Tensor
    is_given: Tensor

    @classmethod
    def read(cls, value: object, kind: ExampleKind | None, batch_size: int) -> Examples:
        """Examples as people give them: (inputs, targets), (inputs, None), inputs, or a text.

        Args:
            value: str or bytes of a text, of whose windows the next symbols are the targets; or inputs (E, ...) for all
                prompts or (B, E, ...), each as the data set has it or flat, and targets (E, ...) or (B, E, ...),
                NO_LABEL where there is none; tensors, arrays or lists.
            kind: that the generator was trained on; None if on none.
            batch_size: B.

        Raises:
            ValueError: for anything else, with what was expected.
        """
        if kind is None:
            raise ValueError("the generator was not trained on examples; leave them out of the prompt")
        value = _windows(value, kind) if isinstance(value, str | bytes) else value
        inputs, targets = value if isinstance(value, tuple | list) and len(value) == 2 else (value, None)
        if inputs is value and (isinstance(value, tuple | Mapping) or not hasattr(value, "__len__")):
            raise ValueError(f"examples must be (inputs, targets) or (inputs, None), got a {type(value).__name__}")
        try:
            inputs = _tensor(inputs, "inputs")
            labels = None if targets is None else _tensor(targets, "targets").double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"examples must be (inputs, targets) or (inputs, None): {error}") from None
        inputs = _shaped(inputs, kind, batch_size)
        if not FEWEST <= inputs.shape[1] <= MOST:
            raise ValueError(f"examples must be {FEWEST} to {MOST}, got {inputs.shape[1]}")
        inputs = inputs.double() if kind.num_symbols else inputs.float()
        if kind.num_symbols and not (inputs.long().eq(inputs) & (inputs >= 0) & (inputs < kind.num_symbols)).all():
            raise ValueError(f"inputs of examples must be integers from 0 to {kind.num_symbols - 1}")
        if not kind.num_symbols and not inputs.isfinite().all():
            raise ValueError("inputs of examples must be finite in float32, got NaN or infinity; leave those out")
        if kind.bounds is not None:
            _check_scale(inputs, *kind.bounds)
        expected = tuple(inputs.shape[1:] if kind.num_symbols else inputs.shape[1:2])  # (E, L) or (E,)
        labels = torch.full(expected, float(NO_LABEL)) if labels is None else labels
        if tuple(labels.shape) not in (expected, (1, *expected), (batch_size, *expected)):
            raise ValueError(f"targets of examples must be {expected}, one for each input, got {tuple(labels.shape)}")
        wrong = (labels != labels.long()) | (labels < NO_LABEL) | (labels >= kind.num_classes)
        if bool(wrong.any()):
            raise ValueError(
                f"targets of examples must be classes from 0 to {kind.num_classes - 1}, or {NO_LABEL} where there is "
                f"none, got {labels[wrong].flatten()[0].item():g}"
            )
        inputs = inputs.long() if kind.num_symbols else inputs
        labels = labels.long().reshape(-1, *expected)
        inputs, labels = (values.expand(batch_size, *values.shape[1:]) for values in (inputs, labels))
        return cls(inputs, labels, torch.ones(batch_size, dtype=torch.bool))

    def __getitem__(self, chosen: Tensor) -> Examples:
        return Examples(self.inputs[chosen], self.targets[chosen], self.is_given[chosen])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Examples:
        parts = (self.inputs, self.targets, self.is_given)
        return Examples(*(part.to(device, non_blocking=non_blocking) for part in parts))

    def num_parts(self, size: int) -> int:
        """Of about `size` examples; 1 for size 0."""
        return max(1, self.inputs.shape[1] // size) if size else 1

    def part(self, number: int, size: int) -> Examples:
        """Of parts of about `size` examples one, evenly spread over each set; all after the last it begins again."""
        count = self.num_parts(size)
        chosen = slice(number % count, None, count)
        return Examples(self.inputs[:, chosen], self.targets[:, chosen], self.is_given)

    def left_out(self) -> Examples:
        """The same sets, given to no prompt."""
        return Examples(self.inputs, self.targets, torch.zeros_like(self.is_given))


def load_examples(path: str) -> tuple[np.ndarray, np.ndarray | None] | bytes:
    """What `Examples.read` takes of a file: x.npz with arrays `inputs` and perhaps `targets`, x.csv of numbers, x.txt.

    The first line of a table names its columns; one called `target` holds the classes, where it is not left empty, all
    others are inputs, in order.

    Raises:
        ValueError: for another kind of file, or one without these.
    """
    if path.endswith(".npz"):
        arrays = read_npz(Path(path))
        if "inputs" not in arrays or arrays.keys() - {"inputs", "targets"}:
            raise ValueError(f"{path} must hold arrays `inputs` and perhaps `targets`, got {sorted(arrays)}")
        return arrays["inputs"], arrays.get("targets")
    if path.endswith(".txt"):
        return read_text(Path(path))
    if not path.endswith(".csv"):
        raise ValueError(f"examples must be a file x.npz, x.csv or x.txt, got {path}")
    columns = read_columns(path)
    if words := [name for name, values in columns.items() if values.dtype == object]:
        raise ValueError(f"columns of {path} must be numbers, got words in {words}")
    if column(list(columns)).dtype != object:
        raise ValueError(f"the first line of {path} must name its columns, got numbers: {list(columns)[:4]}")
    targets = columns.pop("target", None)
    return np.stack([*columns.values()], axis=1), None if targets is None else np.nan_to_num(targets, nan=NO_LABEL)


def _windows(text: str | bytes, kind: ExampleKind) -> tuple[np.ndarray, np.ndarray]:
    """Windows (E, L) of a text, and the symbols (E, L) that come next."""
    if not kind.num_symbols:
        raise ValueError(f"examples must be inputs of shape {kind.shape}, got a text; none was trained on")
    text = text.encode() if isinstance(text, str) else text
    needed = FEWEST * kind.shape[0] + 1
    if len(text) < needed:
        raise ValueError(f"a text must have {needed} bytes or more, {FEWEST} windows and one, got {len(text)}")
    return byte_windows(text, kind.shape[0], kind.num_symbols)


def _check_scale(inputs: Tensor, low: float, high: float) -> None:
    """Refuse inputs (B, E, ...) on another scale than the training's; warn where some are far outside."""
    is_far = ((inputs < 2 * low - high) | (inputs > 2 * high - low)).flatten(2).any(2)
    if not is_far.any():
        return
    message = (
        f"inputs of examples go from {inputs.min():.3g} to {inputs.max():.3g}, those of the training went from "
        f"{low:.3g} to {high:.3g}; are they scaled as those were?"
    )
    if is_far.float().mean() > _MOST_FAR:
        raise ValueError(message)
    warnings.warn(message, stacklevel=4)


def _tensor(values: object, what: str) -> Tensor:
    """A tensor, or what NumPy makes an array of numbers of: frames, lists of arrays."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.is_complex():
            raise ValueError(f"{what} must be real numbers, got {values.dtype}")
        return values
    try:
        array = np.array(values)
    except ValueError:
        raise ValueError(f"{what} must be of one length, got sequences of several") from None
    if array.dtype.kind not in "biuf":
        odd = next((one for one in array.ravel().tolist() if not isinstance(one, int | float)), array.dtype)
        hint = f"; {NO_LABEL} is a target that is not known" if what == "targets" else ""
        raise ValueError(f"{what} must be numbers, got {odd!r}{hint}")
    return torch.as_tensor(array)


def _shaped(inputs: Tensor, kind: ExampleKind, batch_size: int) -> Tensor:
    """Inputs (1, E, *shape) or (B, E, *shape)."""
    flat = (math.prod(kind.shape),)
    for shape in dict.fromkeys((kind.shape, flat)):
        lead = inputs.shape[: inputs.ndim - len(shape)]
        if tuple(inputs.shape[len(lead) :]) == shape and len(lead) in (1, 2) and inputs.numel():
            sets = inputs.reshape(-1, lead[-1], *kind.shape)
            if len(sets) in (1, batch_size):
                return sets
    raise ValueError(
        f"inputs of examples must be (E, {', '.join(map(str, kind.shape))}), or {batch_size} such sets, one for each "
        f"network, got {tuple(inputs.shape)}"
    )
