"""What training frameworks write beside their checkpoints: steps, metrics and settings of a run.

    Hugging Face's Trainer   checkpoint-500/trainer_state.json: `global_step`, and what `log_history` has at that step
    Lightning                version_0/ with checkpoints/*.ckpt, metrics.csv (CSVLogger) and hparams.yaml; the row of a
                             checkpoint after g steps has step g - 1, that of its last batch
    Ray Tune                 a trial's folder with checkpoint_000005/, params.json and result.json, a line of JSON for
                             each `training_iteration`, which the number of a checkpoint is unless lines name folders

Names are as written, but for `eval_`, which is `val_` here, and signs that no identifier has, which become `_`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import torch

from zoo.checkpoints.tables import Row, is_of_lightning, json_object
from zoo.checkpoints.tensors import CheckpointError
from zoo.settings import Json

TRAINER_STATE: Final = "trainer_state.json"
_RAY_OWN: Final = re.compile(
    r"timesteps_.*|episodes_.*|time_.*|timestamp|iterations_since_restore|training_iteration|date|pid|hostname|node_ip|"
    r"trial_id|experiment_.*|done|should_checkpoint|warmup_time|config|checkpoint_dir_name"
)
_NUMBER: Final = re.compile(r"checkpoint[-_]?(\d+)$")


class Record(NamedTuple):
    """What is noted about a run: a row for each snapshot, as a table has it, settings of the run, and remarks."""

    rows: Mapping[Path, Row]
    settings: Mapping[str, Json]
    remarks: tuple[str, ...] = ()


def record_of(run: Path, snapshots: Iterable[Path]) -> Record:
    """What frameworks note about a run in a folder, and about its snapshots.

    Raises:
        CheckpointError: if that cannot be read, or two names become one.
    """
    if is_trial(run):
        return Record(_trial_rows(run, snapshots), _identifiers(json_object(run / "params.json"), run))
    home = run.parent if run.name == "checkpoints" else run
    if _is_of_lightning(home):
        rows = _lightning_rows(home, snapshots)
        is_unused = (home / "metrics.csv").is_file() and not any(
            row.keys() - {"step", "epoch"} for row in rows.values()
        )
        remarks = (f"{home / 'metrics.csv'} has no metrics at the step of any checkpoint",) if is_unused else ()
        return Record(rows, _lightning_settings(home), remarks)
    noted = {snapshot: _trainer_row(snapshot) for snapshot in snapshots}
    return Record(noted if any((at / TRAINER_STATE).is_file() for at in noted) else {}, {})


def is_trial(folder: Path) -> bool:
    """Whether a folder is a trial of Ray Tune."""
    return (folder / "result.json").is_file() and (folder / "params.json").is_file()


def checkpoints_of_lightning(run: Path) -> Path | None:
    """The folder of checkpoints within a run of Lightning's loggers, if it is one."""
    return run / "checkpoints" if _is_of_lightning(run) and (run / "checkpoints").is_dir() else None


def _is_of_lightning(folder: Path) -> bool:
    table = folder / "metrics.csv"
    return (folder / "hparams.yaml").is_file() or (table.is_file() and is_of_lightning(table))


def _trainer_row(snapshot: Path) -> Row:
    state = json_object(snapshot / TRAINER_STATE)
    number = _NUMBER.search(snapshot.name)
    step = state.get("global_step", int(number[1]) if number else None)
    logged: dict[str, object] = {}
    for entry in state.get("log_history", []):
        if entry.get("step") == step:
            logged |= entry
    return {**_numbers(logged, snapshot), "step": step}


def _lightning_rows(run: Path, snapshots: Iterable[Path]) -> dict[Path, Row]:
    by_step: dict[int, dict[str, object]] = {}
    table = run / "metrics.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8-sig") as file:
            for line in csv.DictReader(file):
                if line.get("step"):
                    by_step.setdefault(int(float(line["step"])), {}).update(
                        {k: v for k, v in line.items() if v not in ("", None)}
                    )
    rows: dict[Path, Row] = {}
    for snapshot in snapshots:
        try:
            content = torch.load(snapshot, map_location="cpu", weights_only=True, mmap=True)
        except Exception:
            continue
        if isinstance(content, Mapping) and isinstance(step := content.get("global_step"), int):
            rows[snapshot] = {**_numbers(by_step.get(step - 1, {}), run), "step": step}
    return rows


def _lightning_settings(run: Path) -> dict[str, Json]:
    if not (run / "hparams.yaml").is_file():
        return {}
    import yaml

    try:
        noted = yaml.safe_load((run / "hparams.yaml").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(f"cannot read {run / 'hparams.yaml'}: {error}") from error
    return _identifiers(noted if isinstance(noted, dict) else {}, run)


def _trial_rows(run: Path, snapshots: Iterable[Path]) -> dict[Path, Row]:
    try:
        lines = [json.loads(line) for line in (run / "result.json").read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {run / 'result.json'}: {error}") from error
    named = {line["checkpoint_dir_name"]: line for line in lines if line.get("checkpoint_dir_name")}
    numbered = {line.get("training_iteration"): line for line in lines}
    rows: dict[Path, Row] = {}
    for snapshot in snapshots:
        number = _NUMBER.search(snapshot.name)
        line = named.get(snapshot.name)
        if line is None and number and not named:
            line = numbered.get(int(number[1]), {"training_iteration": int(number[1])})
        if line is not None:
            results = {name: value for name, value in line.items() if not _RAY_OWN.fullmatch(name)}
            rows[snapshot] = {**_numbers(results, run), "step": line["training_iteration"]}
    return rows


def _numbers(noted: Mapping[str, object], where: Path) -> dict[str, object]:
    """What may be a metric: plain numbers, also as text, but no truth values and no steps."""
    named = {re.sub("^eval_", "val_", str(name)): value for name, value in noted.items()}
    numbers = {n: v for n, v in named.items() if _is_number(v) and n not in ("step", "inner_step", "seed", "file")}
    return {name: numbers[old] for name, old in _renamed(numbers, where).items()}


def _is_number(value: object) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(float(value), float)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _identifiers(settings: Mapping[str, Json], where: Path) -> dict[str, Json]:
    return {name: settings[old] for name, old in _renamed(settings, where).items()}


def _renamed(names: Iterable[str], where: Path) -> dict[str, str]:
    """Old names by the identifiers that stand for them."""
    renamed: dict[str, str] = {}
    for name in names:
        new = re.sub(r"\W+", "_", str(name))
        new = new if new.isidentifier() else f"_{new}"
        if new in renamed:
            raise CheckpointError(f"{where}: {name!r} and {renamed[new]!r} would both be called {new}")
        renamed[new] = name
    return renamed
