"""Keep freed memory in the process.

glibc gives large freed blocks back to the system and faults every page in again at the next allocation. Inner training
allocates the same few megabytes thousands of times a second, so that this can cost a quarter of its time.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST: Final = 2**30  # bytes; the largest that mallopt takes on 64-bit systems is 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks up to 1 GiB; returns False where there is no glibc to tell."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(option, _LARGEST) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
