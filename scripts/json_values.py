"""Results as JSON holds them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any, Final

import numpy as np
import torch

NUM_DIGITS: Final = 5


@singledispatch
def json_value(value: Any, num_digits: int = NUM_DIGITS, *, keep_nonfinite: bool = False) -> Any:
    """JSON-able form of nested dataclasses, mappings, sequences, arrays and tensors.

    A type of one's own can be registered: `@json_value.register`.

    Args:
        value: what is to be written.
        num_digits: significant digits of numbers that are not whole.
        keep_nonfinite: write NaN and infinity, which Python alone reads, in place of null.
    """

    def again(one: Any) -> Any:
        return json_value(one, num_digits, keep_nonfinite=keep_nonfinite)

    if isinstance(value, float):
        return float(f"{value:.{num_digits}g}") if keep_nonfinite or math.isfinite(value) else None
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return again(value.tolist())
    if dataclasses.is_dataclass(value):
        return {field.name: again(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): again(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [again(one) for one in value]
    return value
