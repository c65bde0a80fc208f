"""What figures were measured on: the commit and the processor."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path


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


def hardware(device: str = "cpu") -> str:
    """Name of the processor, its cores and, for another device than the CPU, the name of that."""
    here = f"{processor()}, {num_cores()} cores"
    if device == "cpu":
        return here
    import torch

    return f"{here}, {torch.cuda.get_device_name(device)}"


def processor() -> str:
    """Model name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
