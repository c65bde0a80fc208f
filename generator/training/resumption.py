"""Whether a training is resumed in its folder: the record of its settings, and of the zoos and tasks that it is of.

Without it a second training in the same folder would return the first one's weights.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from generator.model.transformer import RecurrentDiffusionTransformer
from generator.prompts.prompt import ALIASES
from generator.training.config import GeneratorConfig
from generator.trajectories import Trajectories
from zoo.settings import (
    Json,
    SettingsMismatchError,
    as_json,
    digest,
    installed_software,
    require_same,
    warn_of_other_software,
)
from zoo.storage.durable import write_file
from zoo.storage.schema import RunStatus
from zoo.storage.zoo import Zoo
from zoo.tasks.task import Task

RECORD: Final = "settings.json"
LAST_CHECKPOINT: Final = Path("checkpoints", "last.ckpt")
_FREE: Final = ("config.calibrate_prompts", "config.calibrate_latents")  # done after every training
_SAME_EMBEDDING: Final = 0.02  # of sketches, which rounding changes far less
# Options that are gone, and what they were where nobody used them.
_GONE: Final[Json] = {"config": {"num_references": 0, "model": {"references": [], "examples": {"num_votes": 0}}}}
_FROM_ZOOS: Final = ("node_widths", "edge_widths", "metrics")  # arguments of the model that follow from its zoos


def begin_or_resume(
    out: Path,
    zoos: Sequence[Zoo],
    tasks: Sequence[Task | None],
    config: GeneratorConfig,
    model: RecurrentDiffusionTransformer,
    *,
    runs: Sequence[Trajectories],
) -> Path | None:
    """The checkpoint from which a training in that folder is resumed; None, and the settings recorded, for a new one.

    How it is run (accelerator, devices, progress bar) may differ; everything else that decides the weights may not.

    Args:
        out: folder of the training.
        zoos, tasks, config: of the training.
        model: untrained; its options are recorded with their defaults.
        runs: of each zoo, of which the descriptions in words are recorded by their hash.

    Raises:
        SettingsMismatchError: if the folder holds a training with other settings, or of other zoos or tasks.
    """
    metrics = [ALIASES.get(name, name) for name in config.metrics]
    options = {name: model.config[name] for name in model.config if not name.startswith("_") and name not in _FROM_ZOOS}
    now = {
        "config": replace(config, metrics=metrics, model=options),
        "zoos": [_identity(zoo) for zoo in zoos],
        "tasks": [
            None if task is None else _without_path(task.description) | {"data_hash": task.dataset.data_hash}
            for task in tasks
        ],
    }
    described = [one.descriptions for one in runs if one.descriptions is not None]
    if described:
        now["descriptions"] = [one.digest for one in described]
    embedded = [one.sketch() for one in described]
    software = installed_software("lightning", "diffusers")
    record, checkpoint = out / RECORD, out / LAST_CHECKPOINT
    if checkpoint.exists() and record.exists():
        begun = json.loads(record.read_text())
        require_same(begun["settings"], now, f"the training in {out}", defaults=_GONE, free=_FREE)
        if not np.allclose(begun.get("embedded", embedded), embedded, rtol=_SAME_EMBEDDING, atol=_SAME_EMBEDDING):
            raise SettingsMismatchError(
                f"the training in {out} was begun with other vectors of its descriptions: give the `embed` that it was "
                "begun with, choose another folder, or remove this one"
            )
        warn_of_other_software(begun["software"], software, f"the training in {out}")
        return checkpoint
    if checkpoint.exists():
        warnings.warn(
            f"the training in {out} was begun by a release that did not record its settings: it is resumed as if they "
            "were these. If they were not, choose another folder or remove this one",
            stacklevel=3,
        )
    content = json.dumps({"settings": as_json(now), "embedded": embedded, "software": software}, indent=1)
    write_file(record, [content.encode()])
    return checkpoint if checkpoint.exists() else None


def _identity(zoo: Zoo) -> dict[str, object]:
    """What tells a zoo from others and from itself with more runs, wherever it lies; first what says so in words."""
    done = zoo.status != RunStatus.EMPTY
    seen = [zoo.inner_step, *(zoo.split(name) for name in sorted(zoo.spec.splits.fractions))]
    return {
        "task": _without_path(zoo.task_config),
        "optimizer": zoo.spec.optimizer_config,
        "seed": zoo.spec.seed,
        "num_runs": zoo.num_runs,
        "num_done": int(done.sum()),
        "checksums": digest([zoo.spec.to_attributes()["checksum"], zoo.runs["checksum"], *seen])[:16],
    }


def _without_path(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings of a task without the place of its files, whose hash is compared."""
    inner = {name: _without_path(value) if isinstance(value, Mapping) else value for name, value in settings.items()}
    return {name: value for name, value in inner.items() if name != "path"}
