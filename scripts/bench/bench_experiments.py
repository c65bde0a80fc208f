"""What do the experiments with real networks reach, and what do they cost?

    OMP_NUM_THREADS=1 python -m scripts.bench.bench_experiments zoo_lora_images zoo_resnet18 [--record]

Builds the zoo of each experiment, and first the one that it starts from or stands on, with `scripts.build_zoo` in a
process of its own, where it is not there yet; verifies it; and reads what it reached. Costs are those of the last
build, as its `summary.json` has them: of a build that was interrupted, of what was left.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from zoo import Zoo

from ..cli import compose
from ..rows import Row
from .command import bench

EXPERIMENTS = Path(__file__).parents[1] / "conf" / "experiment"


def rows(*experiments: str) -> Iterator[Row]:
    """A row for each experiment, after one for its base.

    Args:
        experiments: names of scripts/conf/experiment
    """
    names = [name for one in experiments for name in (f"{one}_base", one)]
    yield from (row(name) for name in names if (EXPERIMENTS / f"{name}.yaml").exists())


def row(name: str) -> Row:
    """What an experiment reached; its zoo is built if need be."""
    config = compose("build_zoo", [f"experiment={name}"])
    out = Path(config.out).absolute()
    summary_file = out.with_name(f"{out.name}-build") / "summary.json"
    if not summary_file.exists():
        command = [sys.executable, "-m", "scripts.build_zoo", f"experiment={name}", "executor=in_process"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    built = json.loads(summary_file.read_text())["build"]
    zoo = Zoo.open(out)
    base = 0 if zoo.layout.base is None else zoo.layout.base.num_params
    figures = {
        **dict(reached(zoo, config)),
        "verified": "sound" if zoo.verify() == [] else "damaged",
        "model-steps of the build": built["new_model_steps"],
    }
    if "cpu_seconds" in built:  # not in zoos of earlier releases
        figures |= {
            "model-steps/CPU-s": built["new_model_steps"] / built["cpu_seconds"],
            "CPU-s": built["cpu_seconds"],
            "peak memory, GB": built["peak_bytes"] / 1e9,
        }
    return Row(
        question=str(__doc__).splitlines()[0],
        setting={
            "experiment": name,
            "numbers of a run": zoo.layout.num_params,
            "frozen": base,
            "runs": zoo.num_runs,
            "steps": config.num_steps,
            "snapshots": zoo.num_snapshots,
        },
        figures=figures,
        note="Test split, mean over the runs, and of the last snapshot the range of most. One seed. Costs, with start, "
        "trial and evaluation, are those of the last build, of one that was killed those of the rest: CPU seconds of "
        "one process with one thread on a shared machine, and memory with what is mapped of files.",
    )


def reached(zoo: Zoo, config: DictConfig) -> Iterator[tuple[str, str]]:
    """Test accuracy, or of text the loss a symbol in nats, of first and last snapshots."""
    is_text = config.task.name == "text_domains"
    values = zoo.metric("test_loss") if is_text else 1 - zoo.metric("test_error")
    form = "{:.3f} nats" if is_text else "{:.1%}"
    runs = zoo.usable_runs()
    first, last = values[runs, 0], values[runs, -1]
    yield "at first", form.format(first.mean())
    yield "at last", form.format(last.mean())
    yield "5 to 95% of runs", " to ".join(form.format(value) for value in np.quantile(last, (0.05, 0.95)))


if __name__ == "__main__":
    bench("real_networks", rows, packages=("torch", "timm", "transformers"))
