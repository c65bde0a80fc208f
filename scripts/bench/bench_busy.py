"""What does a busy machine cost a build, by how its cores are used?

    python -m scripts.bench.bench_busy [--num-runs 1024] [--num-steps 640] [--num-busy 0 1] [--record]

The zoo of digits 64-16-10 is built with as many threads as there are cores, which wait for each other spinning (the
default of GNU's OpenMP: for milliseconds), spinning briefly (the default of the commands), or sleeping; with one
thread; and with a process of one thread for each core. Each with no other work on the machine, and beside processes
that keep a core busy. Needs a machine with nothing else to do. Seconds are those of the whole build with its processes,
without the start of Python. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..machine import num_cores
from ..rows import Row
from .record import arguments, publish

CORES = str(num_cores())
# how cores are used: environment, executor
WAYS: dict[str, tuple[dict[str, str], str]] = {
    "a thread a core, spinning": ({"OMP_NUM_THREADS": CORES, "GOMP_SPINCOUNT": "300000"}, "in_process"),
    "a thread a core, spinning briefly": ({"OMP_NUM_THREADS": CORES}, "in_process"),  # the default of the commands
    "a thread a core, sleeping": ({"OMP_NUM_THREADS": CORES, "OMP_WAIT_POLICY": "passive"}, "in_process"),
    "one thread": ({"OMP_NUM_THREADS": "1"}, "in_process"),
    "a process a core": ({}, "processes"),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--num-runs", type=int, default=1024)
    parser.add_argument("--num-steps", type=int, default=640)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--num-busy", type=int, nargs="+", default=[0, 1], help="other processes that compute")
    options = parser.parse_args()
    pairs = ((way, num_busy) for num_busy in options.num_busy for way in options.ways)
    publish("busy", (row(*pair, options.num_runs, options.num_steps) for pair in pairs), options)


def row(way: str, num_busy: int, num_runs: int, num_steps: int) -> Row:
    environment, executor = WAYS[way]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))} | environment
    with tempfile.TemporaryDirectory() as folder, busy(num_busy):
        settings = {"out": f"{folder}/zoo", "num_runs": num_runs, "num_steps": num_steps, "executor": executor}
        command = [sys.executable, "-m", "scripts.build_zoo", *(f"{key}={value}" for key, value in settings.items())]
        subprocess.run([*command, "device=cpu"], env=environment, check=True, stdout=subprocess.DEVNULL)
        built = json.loads((Path(folder) / "zoo-build" / "summary.json").read_text())["build"]
    return Row(
        question=__doc__.splitlines()[0],
        setting={"runs": num_runs, "steps": num_steps, "cores": way, "other busy processes": num_busy},
        figures={"seconds": built["seconds"], "model-steps/s": built["new_model_steps"] / built["seconds"]},
        note="Digits 64-16-10 with snapshots, metrics and files. One build each.",
    )


@contextmanager
def busy(num_processes: int) -> Iterator[None]:
    """While it lasts, that many processes compute."""
    processes = [multiprocessing.Process(target=spin, daemon=True) for _ in range(num_processes)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()


def spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
