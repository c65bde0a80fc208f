"""What figures were measured on: the commit, the versions, the processor and the card."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def used_by_this_process() -> dict[str, float]:
    """CPU seconds of this process and the processes that it began and that have ended, and the most memory of one."""
    times = os.times()
    used = {"cpu_seconds": times.user + times.system + times.children_user + times.children_system}
    with suppress(ImportError):  # not on Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        used["peak_bytes"] = unit * max(peaks)
    return used


def commit() -> str:
    """Short hash of the checked-out commit, with a mark if tracked code differs from it; the release if installed.

    Documents and recorded results do not count, so that one recording after another has the same commit.
    """
    folder = Path(__file__).parents[1]
    if not (folder / "pyproject.toml").exists():  # a repository around an installation is another project's
        return f"release {version('weightfoundry')}"
    git = ["git", "-C", str(folder)]
    code = ["*.py", "*.c", "*.yaml", "*.toml", "*.safetensors"]
    try:
        name = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True, check=True).stdout.strip()
        differs = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return f"{name}-dirty" if differs else name


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware(device: str = "cpu") -> str:
    """Name of the processor, its cores and, for another device than the CPU, name and memory of that."""
    here = f"{processor()}, {num_cores()} cores"
    kind = device.partition(":")[0]
    if kind == "cpu":
        return here
    import torch

    if kind != "cuda":
        return f"{here}, {kind}"
    card = torch.cuda.get_device_properties(device)
    return f"{here}, {card.name}, {card.total_memory / 2**30:.0f} GiB"


def card_versions() -> dict[str, str]:
    """Versions of what a GPU's figures depend on: the driver, CUDA and Triton."""
    import torch

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {"driver": driver, "cuda": str(torch.version.cuda)} | versions(("triton",))


def processor() -> str:
    """Model name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
