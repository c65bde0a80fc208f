"""What do float16 and bfloat16 cost the networks of a real zoo?

    OMP_NUM_THREADS=1 python -m scripts.bench.bench_precision [--num-runs 128] [--num-steps 1280]

Trains a zoo on digits in float32 (about half a minute), rounds its parameters as the store would, and prints a Markdown
table over all final networks: by how much test error and loss change, how many test predictions change, and how large
the rounding is beside the update between neighbouring snapshots (root mean squares over all parameters).
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from zoo import Task, Zoo, build_zoo, get_task
from zoo.storage.precision import from_stored, to_stored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-runs", type=int, default=128)
    parser.add_argument("--num-steps", type=int, default=1280)
    options = parser.parse_args()
    task = get_task("digits")
    with tempfile.TemporaryDirectory() as folder:
        zoo = build_zoo(
            Path(folder) / "zoo",
            task,
            num_runs=options.num_runs,
            num_steps=options.num_steps,
            optimizer={"name": "adam", "lr": {"log_uniform": [1e-3, 3e-2]}},
        )
        print(f"{zoo.num_runs} networks of {zoo.layout.num_params:,} parameters, {options.num_steps} steps of Adam")
        print(f"Python {platform.python_version()}, numpy {version('numpy')}, torch {version('torch')}\n")
        print(
            "| dtype | test error, mean (largest) change in points | test loss, mean (largest) change "
            "| predictions changed | rounding / update, median (last, first pair of snapshots) |"
        )
        print("|---|---|---|---|---|")
        for dtype in ("float16", "bfloat16"):
            print(row(zoo, task, dtype))


def row(zoo: Zoo, task: Task, dtype: str) -> str:
    exact = zoo.params[:]  # (R, S, P)
    rounded = from_stored(to_stored(exact, dtype), dtype)
    final, final_rounded = torch.from_numpy(exact[:, -1]), torch.from_numpy(rounded[:, -1])
    before, after = task.evaluate(final, "test"), task.evaluate(final_rounded, "test")
    error = 100 * (after["error"] - before["error"])
    loss = after["loss"] - before["loss"]
    inputs = task.dataset.test.inputs
    changed = task.predict(final, inputs).argmax(-1) != task.predict(final_rounded, inputs).argmax(-1)
    updates = rms(np.diff(exact, axis=1))  # (R, S - 1)
    ratio = rms(rounded - exact)[:, 1:] / updates
    return (
        f"| {dtype} | {error.mean():+.3f} ({error.abs().max():.2f}) | {loss.mean():+.1e} ({loss.abs().max():.1e}) "
        f"| {100 * changed.float().mean():.3f}% | {np.median(ratio):.1%} ({np.median(ratio[:, -1]):.1%}, "
        f"{np.median(ratio[:, 0]):.1%}) |"
    )


def rms(values: np.ndarray) -> np.ndarray:
    """Root mean square over the last axis."""
    return np.sqrt(np.square(values, dtype=np.float64).mean(axis=-1))


if __name__ == "__main__":
    main()
