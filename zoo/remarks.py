"""Warnings that point at the program, not at what it calls."""

from __future__ import annotations

import sys
import warnings
from typing import Final

# Torch and decorators wrap what is called in calls of their own.
_CALLED: Final = ("zoo", "generator", "learned_opt", "torch", "contextlib")


def warn(message: str) -> None:
    """Warn at the line of the program that called these packages, however deep inside of them."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _CALLED:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
