"""What do float16 and bfloat16 cost the networks of a real zoo?

    OMP_NUM_THREADS=1 python -m scripts.bench.bench_precision [--num-runs 128] [--device cpu] [--record]
    OMP_NUM_THREADS=1 python -m scripts.bench.bench_precision --large [--num-steps 100] [--record]

Trains a zoo on digits in float32 (about half a minute), rounds its parameters as the store would, and prints a table
over all final networks: by how much test error and loss change, how many test predictions change, and how large
the rounding is beside the update between neighbouring snapshots (root mean squares over all parameters). Then the same
runs are trained with forward and backward passes in bfloat16 (on CUDA in TF32 too), and in float32 from other seeds.

With --large, networks of millions of numbers are trained one after another by the plain module in each precision, and
with the module compiled (six minutes of one core; extra `adapters`).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from zoo import Task, Zoo, build_zoo, get_task, train_population
from zoo.devices import resolve_device
from zoo.storage.precision import from_stored, to_stored
from zoo.tasks.looped_module import LoopedModule
from zoo.training.optimizers import Adam
from zoo.training.precision import PRECISIONS

from ..rows import Row
from .command import arguments, publish

OPTIMIZER: Final = {"name": "adam", "lr": {"log_uniform": [1e-3, 3e-2]}}

LARGE: Final[dict[str, dict[str, Any]]] = {
    "ResNet-18": {"model": "resnet18"},
    "ViT-Tiny": {"model": "vit_tiny_patch16_224", "model_options": {"img_size": 28, "patch_size": 7}},
}
SEEDS: Final = (0, 1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--num-runs", type=int, default=128)
    parser.add_argument("--num-steps", type=int, help="default 1280, with --large 100")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--large", action="store_true", help="networks of millions of numbers, one after another")
    options = parser.parse_args()
    options.num_steps = options.num_steps or (100 if options.large else 1280)
    if options.large:
        publish("population", large_networks(options.num_steps), options, packages=("torch", "timm"))
        return
    task = get_task("digits").to(resolve_device(options.device))
    with tempfile.TemporaryDirectory() as folder:

        def built(name: str, **changes: Any) -> Zoo:
            plan = {"num_runs": options.num_runs, "num_steps": options.num_steps, "optimizer": OPTIMIZER}
            return build_zoo(Path(folder) / name, task, **plan | changes)

        zoo = built("float32")
        publish("store", (row(zoo, task, dtype, options.num_steps) for dtype in ("float16", "bfloat16")), options)
        names = [name for name in PRECISIONS[1:] if name != "tf32" or task.device.type == "cuda"]
        others = {"32": zoo, **{name: built(name, precision=name) for name in names}}
        others["32, other seeds"] = built("other", seed=1)
        publish("population", (trained(zoo, other, name) for name, other in others.items()), options)


def large_networks(num_steps: int) -> Iterator[Row]:
    """Large networks in each precision, as they are and compiled; of gray images the order of channels is one."""
    for name, options in LARGE.items():
        task = get_task("mnist5k", architecture="timm", **options)
        for compiled in (False, True):
            for precision in ("32", "bf16-mixed"):
                yield large_network(task, {"network": name, "precision": precision, "compiled": compiled}, num_steps)


def large_network(task: Task, setting: dict[str, Any], num_steps: int) -> Row:
    seconds, losses, errors, first = [], [], [], []
    for seed in SEEDS:
        looped = task.by_module()
        if setting["compiled"] and isinstance(looped.backend, LoopedModule):
            looped.backend._module.compile()  # no option of builds, because it does not pay
        began = time.process_time()
        for snapshot in train_population(
            looped,
            Adam(),
            [seed],
            num_steps=num_steps,
            snapshot_steps=range(1, num_steps + 1),
            data_seed=seed,
            compile=False,
            precision=setting["precision"],
        ):
            seconds.append(time.process_time() - began)
            first += seconds[-1:] if snapshot.inner_step == 1 else []
            began = time.process_time()
        metrics = task.evaluate(snapshot.params, "val")
        losses.append(metrics["loss"].item())
        errors.append(100 * metrics["error"].item())
    return Row(
        question="What do precision and compiling do to a large network, trained by itself?",
        setting=setting | {"steps": num_steps, "threads": torch.get_num_threads()},
        figures={
            "CPU-s a step, median": statistics.median(seconds),
            "first step, CPU-s": max(first),
            "validation loss": statistics.mean(losses),
            "validation error, %": statistics.mean(errors),
        },
        spread={
            "validation loss": (min(losses), max(losses)),
            "validation error, %": (min(errors), max(errors)),
        },
        seeds=list(SEEDS),
        note="mnist5k as it is, 28x28; batch 64, Adam at .001; a step with its optimizer. Mean and range of two seeds, "
        "which have the same initial networks and minibatches in all rows.",
    )


def trained(zoo: Zoo, other: Zoo, name: str) -> Row:
    """How the final networks of another training differ from those of float32."""
    figures: dict[str, float] = {}
    spread: dict[str, tuple[float, float]] = {}
    for metric, scale, unit in (("train_loss", 1, ""), ("test_loss", 1, ""), ("test_error", 100, " in points")):
        before, after = (scale * one.metric(metric)[:, -1].astype(np.float64) for one in (zoo, other))
        label, change = metric.replace("_", " "), (after - before).mean()
        error = (after - before).std() / len(before) ** 0.5
        figures |= {f"{label}, median{unit}": float(np.median(after)), f"{label}, mean change{unit}": float(change)}
        spread[f"{label}, mean change{unit}"] = (float(change - 2 * error), float(change + 2 * error))
    steps = int(zoo.inner_step[0, -1])
    return Row(
        question="What does training in lower precision cost the final networks?",
        setting={"precision": name, "networks": zoo.num_runs, "parameters": zoo.layout.num_params, "steps": steps},
        figures=figures,
        spread=spread,
        note="Digits, MLP 64-16-10, Adam, learning rates log-uniform from .001 to .03. Changes run by run against the "
        "first row, with twice their standard error: the same initial networks, learning rates and minibatches, but "
        "for the row of other seeds.",
    )


def row(zoo: Zoo, task: Task, dtype: str, num_steps: int) -> Row:
    exact = zoo.params[:]  # (R, S, P)
    rounded = from_stored(to_stored(exact, dtype), dtype)
    final, final_rounded = (torch.from_numpy(values[:, -1]).to(task.device) for values in (exact, rounded))
    before, after = task.evaluate(final, "test"), task.evaluate(final_rounded, "test")
    error = 100 * (after["error"] - before["error"])
    loss = after["loss"] - before["loss"]
    inputs = task.dataset.test.inputs
    changed = task.predict(final, inputs).argmax(-1) != task.predict(final_rounded, inputs).argmax(-1)
    updates = rms(np.diff(exact, axis=1))  # (R, S - 1)
    ratio = rms(rounded - exact)[:, 1:] / updates
    return Row(
        question=__doc__.splitlines()[0],
        setting={"dtype": dtype, "networks": zoo.num_runs, "parameters": zoo.layout.num_params, "steps": num_steps},
        figures={
            "test error, mean change in points": error.mean().item(),
            "test error, largest change in points": error.abs().max().item(),
            "test loss, mean change": loss.mean().item(),
            "test loss, largest change": loss.abs().max().item(),
            "predictions changed, %": 100 * changed.float().mean().item(),
            "rounding to update, %, median": 100 * float(np.median(ratio)),
            "of the last pair of snapshots": 100 * float(np.median(ratio[:, -1])),
            "of the first pair": 100 * float(np.median(ratio[:, 0])),
        },
        note="Digits, MLP 64-16-10, Adam, learning rates log-uniform from .001 to .03. Changes against float32 over "
        "the final networks, on 270 test examples; rounding against the update between neighbouring snapshots.",
    )


def rms(values: np.ndarray) -> np.ndarray:
    """Root mean square over the last axis."""
    return np.sqrt(np.square(values, dtype=np.float64).mean(axis=-1))


if __name__ == "__main__":
    main()
