"""How fast is all of this on my machine?

    python -m scripts.bench.all [device=auto] [minutes=8] [size=full] [out=out/bench] [stages=tests,populations,...]

Stages, first those of which least is known:

    tests        the tests that need a GPU (pytest -m gpu), those of `zoo` first
    generator    a generated network of 200 million parameters, 20 steps, and a training step of what generates it
    demo         the three jobs in one run
    language     a transformer of 85 million parameters on Python source: mulo-norm, Muon and AdamW
    populations  networks trained at once, compiled and eager, against a plain loop on the same device
    optimizers   a step of mulo-norm and mulo on ViT-B/16 and GPT-2 small, against Muon and AdamW
    meta         parameter updates a second of meta-training, by the number of particles

Each has its share of the minutes and what earlier ones left of theirs, in a process of its own: one that fails or does
not finish keeps what it measured and stops no other. Rows are written into `out` as they come, one file a topic, with
the card, its memory, its driver and the versions; `stages.jsonl` tells how each stage ended, `logs` what it said.
`size=tiny` tries everything out on a CPU in four minutes. `python -m scripts.bench.render --add OUT` puts the rows into
the project's tables.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Final, NamedTuple

import torch

from zoo.devices import resolve_device

from ..rows import Row, tables
from .measure import use
from .record import read_rows, record
from .render import page

START_SECONDS: Final = 5  # for a process to begin
REPORT_SECONDS: Final = 8  # for tests that are stopped to say what failed
ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("torch", "numpy", "diffusers", "lightning")
TINY_DEMO: Final = """
    zoo.num_runs=80 zoo.num_steps=40 zoo.num_snapshots=4 zoo.block_size=40 zoo.architecture.hidden=[4]
    zoo.plain_loop_seconds=0.01
    generator.generator.model.width=16 generator.generator.model.num_heads=2 generator.generator.model.num_blocks=1
    generator.generator.optimization.num_steps=6 generator.generator.optimization.num_epochs=3
    generator.generator.num_validation_starts=2
    prompting.num_starts=3 prompting.num_prompts=3 prompting.num_novelty_starts=3 prompting.num_inference_steps=2
    optimizer.task.name=digits optimizer.task.hidden=[8] optimizer.num_steps=6 optimizer.num_seeds=2
    optimizer.learning_rates=[1e-3,1e-2]
    join.num_networks=3 join.num_steps=6 tables.num_splits=1 tables.max_rows=40
"""


def gpu_tests(device: torch.device, size: str, budget: float) -> Iterator[Row]:
    """How many of the tests that need a GPU pass, of those that the budget leaves time for."""
    files = [str(path.relative_to(ROOT)) for path in files_with_gpu_tests(ROOT / "tests")]
    files = files if size == "full" else [path for path in files if "/rules/" in path]
    options = ["-v", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    if find_spec("xdist") is not None:
        options += ["-n", str(min(8, os.cpu_count() or 1))]
    command = [sys.executable, "-m", "pytest", *files, *options]
    log, note = Path.cwd() / "logs" / "pytest.txt", ""
    with log.open("w") as written:
        tests = subprocess.Popen(command, cwd=ROOT, stdout=written, stderr=subprocess.STDOUT)
        try:
            tests.wait(budget - REPORT_SECONDS)
        except subprocess.TimeoutExpired:
            note = f"Stopped after {budget - REPORT_SECONDS:.0f} s. "
            tests.send_signal(signal.SIGINT)  # it then says why tests failed
            with suppress(subprocess.TimeoutExpired):
                tests.wait(REPORT_SECONDS)
        finally:
            tests.kill()
    said = log.read_text()
    print(said, flush=True)
    outcomes = outcomes_of(said)
    failed = [name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")]
    yield Row(
        question="Do the tests that need a GPU pass?",
        setting={"device": device.type},
        figures={
            outcome.lower(): list(outcomes.values()).count(outcome)
            for outcome in ("PASSED", "FAILED", "SKIPPED", "ERROR")
        },
        note=note + (f"Failed: {', '.join(failed)}." if failed else ""),
    )


def files_with_gpu_tests(folder: Path) -> list[Path]:
    """Test files that take the fixture `device` or the mark, so that no time is lost in importing all others.

    Those of `zoo` come first: everything rests on it.
    """
    uses = re.compile(r"mark\.gpu|\bDEVICES\b|^def test_\w+\(.*\bdevice\b", re.MULTILINE)
    return sorted((path for path in folder.rglob("test_*.py") if uses.search(path.read_text())), reverse=True)


def outcomes_of(said: str) -> dict[str, str]:
    """Outcome of each test by its name, from what `pytest -v` wrote, in one process or several."""
    outcome = "(PASSED|FAILED|SKIPPED|ERROR)"
    lines = re.findall(rf"^(?:\[gw\d+\] \[ *\d+%\] )?{outcome} (tests/.+?)(?: - .*)?$", said, re.MULTILINE)
    lines += [(end, name) for name, end in re.findall(rf"^(tests/.+?) {outcome}\b", said, re.MULTILINE)]
    return {name.strip(): end for end, name in lines}


def demo(device: torch.device, size: str, budget: float) -> Iterator[Row]:
    """Seconds and findings of each stage of the demo."""
    from ..demo_report.summary import LINES
    from ..demo_stages.stage import Record

    folder = Path.cwd() / "demo"
    overrides = TINY_DEMO.split() if size == "tiny" else ()
    command = [sys.executable, "-m", "scripts.demo", f"out='{folder}'", f"device='{device}'", *overrides]
    try:
        code = subprocess.run(command, cwd=ROOT, check=False, timeout=budget).returncode
    except subprocess.TimeoutExpired:  # the stages that are finished have their records
        code = 0
    for name, lines in LINES.items():
        stage = Record.read(folder / "stages" / f"{name}.json")
        if stage is None or stage.result is None:
            continue
        found = "; ".join(f"{what}: {said}" for what, said in lines(stage.result.numbers))
        yield Row(
            question="What does the demo find on this device, and how long does it take?",
            setting={"size": size, "device": device.type, "stage": name},
            figures={"seconds": stage.seconds, "CPU seconds": stage.cpu_seconds, "found": found},
        )
    if code:
        raise RuntimeError(f"the demo ended with exit code {code}")


class Stage(NamedTuple):
    """Topic of the rows, share of the minutes, and what measures them on a device, of a size, in that many seconds."""

    topic: str
    weight: float
    measure: str  # a function of a module of this folder, which is imported in the process of the stage alone


STAGES: Final = {
    "tests": Stage("tests", 2.5, "all:gpu_tests"),
    "generator": Stage("generator", 1.8, "generator_memory:stage"),
    "demo": Stage("demo", 2, "all:demo"),
    "language": Stage("language", 3, "bench_language:stage"),
    "populations": Stage("population", 2, "bench_population:stage"),
    "optimizers": Stage("optimizer_step", 1.5, "bench_optimizer_step:stage"),
    "meta": Stage("meta_train", 1, "bench_meta_train:stage"),
}


@dataclass(frozen=True)
class Options:
    """What can be said on the command line; `seconds` is given to the process of a single stage."""

    device: str = "auto"
    minutes: float = 8.0
    size: str = "full"
    out: str = "out/bench"
    stages: str = ",".join(STAGES)
    seconds: float = 0.0

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Options:
        """Raises ValueError for what is no option, or a value that it cannot have."""
        kinds = {field.name: float if field.type == "float" else str for field in fields(cls)}
        given = dict(argument.partition("=")[::2] for argument in arguments)
        if unknown := sorted(set(given) - set(kinds)):
            raise ValueError(f"options are {', '.join(f'{name}=...' for name in kinds)}, got {unknown}")
        options = cls(**{name: kinds[name](value) for name, value in given.items()})
        if unknown := sorted(set(options.stages.split(",")) - set(STAGES)):
            raise ValueError(f"stages must be among {','.join(STAGES)}, got {','.join(unknown)}")
        if options.size not in ("tiny", "full") or options.minutes <= 0:
            raise ValueError(f"size must be tiny or full and minutes positive, got {options.size}, {options.minutes}")
        resolve_device(options.device)
        return options

    @property
    def command(self) -> str:
        return f"python -m scripts.bench.all device={self.device} minutes={self.minutes:g} size={self.size}"


def main(arguments: Sequence[str]) -> int:
    """Exit code: 1 if a stage failed, 2 for wrong usage."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        options = Options.of(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = Path(options.out).absolute()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    if options.seconds:
        measure(options, out)
        return 0
    ends = list(run_stages(options, out))
    for path in sorted(path for path in out.glob("*.jsonl") if path.is_file()):
        path.with_suffix(".md").write_text(page(path.stem, read_rows(path.stem, out)))
    print(f"\n{tables(ends)}\n\nrows and tables in {out}")
    return int(any(end.figures["end"] == "failed" for end in ends))


def run_stages(options: Options, out: Path) -> Iterator[Row]:
    """Run the stages one after the other, and tell of each how it ended."""
    names = [name for name in STAGES if name in options.stages.split(",")]
    deadline = time.perf_counter() + 60 * options.minutes
    for i, name in enumerate(names):
        share = STAGES[name].weight / sum(STAGES[other].weight for other in names[i:])
        began = time.perf_counter()
        budget = share * (deadline - began)
        print(f"{name}: at most {budget:.0f} s", flush=True)
        end, said = run_stage(name, options, out, budget)
        row = Row(
            question="How did the stages of the benchmark end?",
            setting={"size": options.size, "minutes": options.minutes, "stage": name},
            figures={"end": end, "seconds": time.perf_counter() - began, "of": budget, "last words": said},
        )
        record("stages", [row], command=options.command, device=resolve_device(options.device), folder=out)
        print(f"{name}: {end} after {row.figures['seconds']:.0f} s {said}", flush=True)
        yield row


def run_stage(name: str, options: Options, out: Path, budget: float) -> tuple[str, str]:
    """How the process of a stage ended, and if not well the last lines that it wrote."""
    settings = {"device": options.device, "size": options.size, "minutes": options.minutes, "out": out}
    arguments = [f"{key}={value}" for key, value in (settings | {"stages": name, "seconds": budget}).items()]
    log = out / "logs" / f"{name}.txt"
    with log.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.bench.all", *arguments],
            cwd=ROOT,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts can be ended with it
        )
        try:
            code = process.wait(budget)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code is None or code == 0:
        return ("out of time" if code is None else "finished"), ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "failed", " / ".join(lines[-3:])[-500:]


def measure(options: Options, out: Path) -> None:
    """Measure a stage in this process and record its rows as they come."""
    began = time.perf_counter()
    device = resolve_device(options.device)
    use(device)
    stage = STAGES[options.stages]
    measured = resolve_name(f"{__package__}.{stage.measure}")
    os.chdir(out)
    for row in measured(device, options.size, options.seconds - (time.perf_counter() - began) - START_SECONDS):
        record(stage.topic, [row], packages=PACKAGES, command=options.command, device=device, folder=out)
        print(tables([row]), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
