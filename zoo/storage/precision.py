"""Parameters as they are stored: float32 as it is, float16, or bfloat16 whose bits travel as uint16."""

from __future__ import annotations

import numpy as np
import torch


def to_stored(params: np.ndarray, dtype: str) -> np.ndarray:
    """Parameters rounded to nearest even in their stored form.

    Args:
        params: float32 of any shape.
        dtype: "float32", "float16" or "bfloat16".

    Returns:
        Array of the same shape: float32, float16 or uint16.
    """
    params = np.ascontiguousarray(params, dtype=np.float32)
    if dtype == "float16":
        with np.errstate(over="ignore"):  # the writer reports what became infinite
            return params.astype(np.float16)
    if dtype == "bfloat16":
        return torch.from_numpy(params).to(torch.bfloat16).view(torch.uint16).numpy()
    return params


def from_stored(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Parameters in float32, exactly as stored; the inverse of `to_stored` up to its rounding."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32, copy=False)


def is_finite(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Whether each stored number is neither infinite nor NaN, as booleans of the same shape."""
    if dtype == "bfloat16":
        return (stored & np.uint16(0x7F80)) != np.uint16(0x7F80)
    return np.isfinite(stored)
