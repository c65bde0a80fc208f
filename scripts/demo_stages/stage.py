"""A demo in stages: finished ones are kept, interrupted ones resumed, those made with other settings refused.

A stage's record, `<out>/stages/<name>.json`, is begun before the stage and completed after it. It holds the settings
that decide the stage's numbers, its time over all runs, the numbers for the summary, and data for pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from omegaconf import DictConfig, OmegaConf

from zoo.settings import require_same
from zoo.storage.durable import write_file

from ..cli import default_config
from ..json_values import json_value

_NO_NUMBERS: Final = ("out", "zoo", "executor", "device", "trainer", "num_threads", "plain_loop_seconds")
_OWN_SECTIONS: Final = ("prompting", "optimizer", "join", "tables")


@dataclass(frozen=True)
class StageResult:
    """What a stage has found out.

    Attributes:
        numbers: JSON-able, for the summary.
        data: for pictures; tensors and arrays are recorded as lists, numbers with four significant digits.
    """

    numbers: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One step of the demo.

    Attributes:
        name: of its section in the config and of its record.
        title: for people.
        needs: names of the stages whose outputs it reads.
        run: does it, in whatever state an earlier session left its folder.
        on_one_thread: at the sizes of most stages a second thread costs more than it gives.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    run: Callable[[DictConfig], StageResult]
    on_one_thread: bool = True


@dataclass
class Record:
    """A stage's record; `result` is None until it is finished."""

    settings: dict[str, Any]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    result: StageResult | None = None

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record at that path, None if the stage was never begun.

        Raises:
            ValueError: if the file is damaged.
        """
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text())
            result = values.pop("result")
            return cls(**values, result=None if result is None else StageResult(**result))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged; remove it to run the stage again ({error})") from error

    def write(self, path: Path) -> None:
        values = asdict(self)
        if self.result is not None:
            values["result"]["data"] = json_value(self.result.data, 4, keep_nonfinite=True)
        write_file(path, [json.dumps(values, indent=1).encode()])


def choose_stages(stages: Mapping[str, Stage], config: DictConfig) -> list[Stage]:
    """The stages to run, in order.

    Raises:
        ValueError: for a name that is no stage, or a stage whose needs are neither finished nor among those to run.
    """
    for key in ("stages", "skip"):
        if unknown := sorted(set(_names(config, key)) - set(stages)):
            raise ValueError(f"{key} must be some of {list(stages)}, got {unknown}")
    chosen = [name for name in stages if name in _names(config, "stages") and name not in _names(config, "skip")]
    for name in chosen:
        for needed in stages[name].needs:
            record = Record.read(record_path(config, needed))
            if needed not in chosen and (record is None or record.result is None):
                raise ValueError(f"stage {name!r} needs {needed!r}, which is not finished in {config.out}; run it too")
    return [stages[name] for name in chosen]


def run_stage(stage: Stage, stages: Mapping[str, Stage], config: DictConfig) -> Record:
    """The stage's record: of an earlier session if it was finished then, otherwise of running it now.

    Raises:
        SettingsMismatchError: if the folder holds the stage with other settings.
    """
    _check_counts(stage, config)
    path = record_path(config, stage.name)
    settings = settings_of(stage, stages, config)
    begun = Record.read(path)
    record = begun or Record(settings)
    if begun:
        defaults = settings_of(stage, stages, default_config("demo"))
        remedy = f"give the old values, choose another out=..., or remove {config.out}"
        require_same(begun.settings, settings, f"stage {stage.name!r} in {path}", defaults=defaults, remedy=remedy)
    if record.result is not None:
        return record
    record.write(path)
    began, cpu_began = time.perf_counter(), time.process_time()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1 if stage.on_one_thread else num_threads)
    try:
        record.result = stage.run(config)
    except Exception:
        if begun is None:
            path.unlink()  # settings with which it fails must not keep others out
        raise
    finally:
        torch.set_num_threads(num_threads)
        record.seconds += time.perf_counter() - began
        record.cpu_seconds += time.process_time() - cpu_began
        if path.exists():
            record.write(path)
    return record


def record_path(config: DictConfig, name: str) -> Path:
    return Path(str(config.out)) / "stages" / f"{name}.json"


def settings_of(stage: Stage, stages: Mapping[str, Stage], config: DictConfig) -> dict[str, Any]:
    """All that decides a stage's numbers: its section of the config and those of what it needs, without paths."""
    settings: dict[str, Any] = {"seed": config.seed}
    for needed in stage.needs:
        settings |= settings_of(stages[needed], stages, config)
    section = OmegaConf.to_container(config[stage.name], resolve=True)
    assert isinstance(section, dict)
    return settings | {stage.name: {key: value for key, value in section.items() if key not in _NO_NUMBERS}}


def _names(config: DictConfig, key: str) -> list[str]:
    value = config[key]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{key} must be a list such as [zoo,generator], got {value!r}")
    return [str(name) for name in value]


def _check_counts(stage: Stage, config: DictConfig) -> None:
    """Counts in the demo's own sections; those of other commands are checked where they are used."""
    if stage.name in _OWN_SECTIONS:
        for key, value in config[stage.name].items():
            is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
            if str(key).startswith(("num_", "batch_size")) and not is_count:
                raise ValueError(f"{stage.name}.{key} must be a positive integer, got {value!r}")
