"""The demo in numbers: `summary.json`, and the table at its end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..demo_stages.all import STAGES
from ..demo_stages.optimize import ADAMW, MULO, MULO_TOLD_STEPS, TUNED
from ..demo_stages.stage import Record
from ..machine import commit, num_cores, processor, versions

_PACKAGES: Final = ("weightfoundry", "torch", "numpy", "zarr", "diffusers", "lightning")


def summarize(records: Mapping[str, Record], config: DictConfig) -> dict[str, Any]:
    """All numbers of the finished stages, with what is needed to understand and repeat them."""
    return {
        "seed": config.seed,
        "seconds": sum(record.seconds for record in records.values()),
        "stages": {
            name: {"seconds": record.seconds, "cpu_seconds": record.cpu_seconds, **record.result.numbers}
            for name, record in records.items()
            if record.result is not None
        },
        "commit": commit(),
        "versions": versions(_PACKAGES),
        "machine": {"processor": processor(), "cores": num_cores(), "memory_gib": _memory_gib()},
    }


def summary_table(records: Mapping[str, Record], summary: Mapping[str, Any]) -> Table:
    """What the demo found, a few lines a stage."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("stage", style="bold", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("measured", overflow="fold")
    table.add_column("time", justify="right", no_wrap=True)
    for name, record in records.items():
        assert record.result is not None
        for i, (what, result) in enumerate(LINES[name](record.result.numbers)):
            table.add_row("" if i else name, what, result, "" if i else f"{record.seconds:.0f} s")
        table.add_section()
    missing = [name for name in STAGES if name not in records]
    if missing:
        table.add_row(", ".join(missing), "not run", "", "")
    table.add_row("all", "", "", f"{summary['seconds']:.0f} s")
    return table


def _zoo_lines(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    speed = "built in an earlier session"
    if numbers["speedup"]:
        speed = f"{numbers['model_steps_per_second']:,.0f} model-steps/s, {numbers['speedup']:.0f} times a plain loop"
    return [
        ("networks trained", f"{numbers['num_complete']:,}, {numbers['num_snapshots']} snapshots each"),
        ("speed", speed),
        ("median test accuracy at the end", _percent(numbers["final_test_accuracy"])),
    ]


def _generator_lines(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("training", f"{numbers['num_steps']:,} steps, {numbers['num_params']:,} parameters")]


def _prompting_lines(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    def line(name: str) -> str:
        figures = numbers["alignment"][name]
        return f"R² {figures['r2_log']:.3f}, accuracy {_percent(figures['test_accuracy_at_lowest_prompt'])}"

    sets = numbers["novelty"]["sets"]
    ours, real = sets["generated"], sets["held-out runs"]
    return [
        ("one update of unseen networks", line("one update")),
        ("a second update", line("second update")),
        ("networks from noise", line("noise")),
        ("held-out runs after training", f"accuracy {_percent(numbers['held_out_final_accuracy'])}"),
        ("distance to the training set", f"{ours['distance']:.1f}, held-out runs {real['distance']:.1f}"),
        ("overlap of errors with it", f"{ours['overlap']:.2f}, held-out runs {real['overlap']:.2f}"),
    ]


def _optimizer_lines(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for name in (ADAMW, TUNED, MULO, MULO_TOLD_STEPS):
        one = numbers["methods"][name]
        lines.append((name, f"mean loss {one['mean_loss']:.3f}, accuracy {_percent(one['test_accuracy'])}"))
    return lines


def _join_lines(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    needed = numbers["steps_random_start_needs"]
    before, after = numbers["accuracy_before_training"], numbers["accuracy_after_training"]
    return [
        *(
            (f"accuracy from a {kind} start", f"{_percent(before[kind])}, trained {_percent(after[kind])}")
            for kind in ("generated", "random")
        ),
        ("random start catches up", "never" if needed is None else f"after {needed} steps"),
    ]


def _tables_lines(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    times = numbers["seconds_to_fit"]
    return [
        (f"{name}, {numbers['num_tables']} tables never seen", f"accuracy {_percent(value)}, {times[name]:.2g} s each")
        for name, value in numbers["mean_accuracy"].items()
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


LINES: Final = {
    "zoo": _zoo_lines,
    "generator": _generator_lines,
    "prompting": _prompting_lines,
    "optimizer": _optimizer_lines,
    "join": _join_lines,
    "tables": _tables_lines,
}


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None
