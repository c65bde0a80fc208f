from __future__ import annotations

import sys

import pytest
import torch

from scripts.allocator import keep_freed_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_reused_without_page_faults() -> None:
    import resource

    if not keep_freed_memory():
        pytest.skip("no glibc")
    for _ in range(3):
        torch.ones(2**22).add_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**22).add_(1)  # 16 MiB, 4,096 pages
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10_000
