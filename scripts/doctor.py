"""What this machine offers, and what is missing for what.

    weightfoundry doctor        (or python -m scripts.doctor)

Lists versions, processor, threads, devices and compilers, and for each optional part what is not installed, with the
command that installs it. A line with "!" says what to mend. Needs torch and NumPy alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Final

from .machine import card_versions, hardware, num_cores, versions

PARTS: Final = {  # extras, and what they are for
    "zoo": "building, importing and reading zoos",
    "generator": "training generators and sampling from them",
    "learned_opt": "meta-training, and comparisons with other optimizers",
    "all": "the demo's page",
    "app": "the explorer",
    "s3": "zoos on S3",
    "ray": "building zoos on a Ray cluster",
    "adapters": "adapters of PEFT, models of transformers and timm",
    "files": "folders of images, Parquet, saved rows",
    "hub": "the Hugging Face Hub",
    "lmdb": "G.pt's databases",
    "trackers": "curves in TensorBoard and Trackio",
    "docs": "the documentation as a site",
}


def main() -> None:
    """Print the findings."""
    findings = [("machine", machine()), ("devices", devices()), ("compilers", compilers()), ("parts", parts())]
    for title, lines in findings:
        print(f"{title}\n" + "\n".join(f"  {line}" for line in lines), flush=True)


def machine() -> Iterator[str]:
    """Versions and processor."""
    import torch

    named = versions(("weightfoundry", "torch", "numpy")).items()
    yield ", ".join(f"{name} {version}" for name, version in named)
    yield f"{hardware()}; PyTorch computes with {torch.get_num_threads()} threads" + (
        f" (OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})" if "OMP_NUM_THREADS" in os.environ else ""
    )
    yield f"instructions: {torch.backends.cpu.get_cpu_capability()}"
    if torch.get_num_threads() > num_cores():
        yield f"! more threads than the {num_cores()} cores: set OMP_NUM_THREADS={num_cores()}"


def devices() -> Iterator[str]:
    """What `device=auto` may choose, and what speaks against it."""
    import torch

    from zoo.devices import resolve_device

    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        yield f"cuda:{i}: {torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if torch.cuda.is_available():
        yield ", ".join(f"{name} {version}" for name, version in card_versions().items())
    elif torch.version.cuda is not None:
        yield "! PyTorch is built for CUDA but finds no card: is the driver installed, CUDA_VISIBLE_DEVICES empty?"
    if torch.backends.mps.is_available():
        yield "mps: Apple's GPU"
    yield f"device=auto is {resolve_device('auto')}"


def compilers() -> Iterator[str]:
    """What makes training and updates fast, and what is done without it."""
    from importlib.util import find_spec

    import torch

    from learned_opt.rules.kernels.native_mlp import is_available
    from zoo.training.inner_step import has_compiler

    yield "C++ compiler: " + ("found" if has_compiler() else "! none, so populations on a CPU are not compiled")
    native = "runs" if is_available() else "! does not (no C compiler, or not Linux), so mulo is slower on a CPU"
    yield f"kernel in C: {native}"
    if torch.cuda.is_available():
        yield "triton: " + ("found" if find_spec("triton") else "! none, so mulo and populations are slower on a GPU")


def parts() -> Iterator[str]:
    """The optional parts, and what is missing for them."""
    needed = requirements()
    if not needed:
        yield "! weightfoundry is not installed: pip install -e . in the clone"
    for part, purpose in PARTS.items() if needed else ():
        missing = sorted(name for name in closure(part, needed) if not is_installed(name))
        remedy = f"! no {', '.join(missing)}: pip install 'weightfoundry[{part}]'" if missing else "installed"
        yield f"{part:12} {purpose}: {remedy}"


def requirements() -> dict[str, set[str]]:
    """What each extra of this distribution asks for, by the names of distributions and, as "[NAME]", other extras."""
    found: dict[str, set[str]] = {}
    try:
        lines = metadata.requires("weightfoundry") or []
    except metadata.PackageNotFoundError:  # run from a folder that was not installed
        return {}
    for line in lines:
        requirement, _, condition = line.partition(";")
        extra = re.search(r"extra\s*==\s*[\"']([\w.-]+)[\"']", condition)
        if extra is None:
            continue
        name, _, others = requirement.strip().partition("[")
        name = re.split(r"[^\w.-]", name)[0]
        asked = {f"[{other}]" for other in others.partition("]")[0].split(",")} if name == "weightfoundry" else {name}
        found.setdefault(_same(extra[1]), set()).update(asked)
    return found


def closure(part: str, needed: dict[str, set[str]]) -> set[str]:
    """Distributions of an extra and of the extras that it includes."""
    names = needed.get(_same(part), set())
    return {one for name in names for one in (closure(name[1:-1], needed) if name.startswith("[") else {name})}


def is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _same(name: str) -> str:
    return name.replace("-", "_").lower()


if __name__ == "__main__":
    main()
