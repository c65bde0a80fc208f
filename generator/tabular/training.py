"""A generator for tables learns from random tables alone: each step draws new ones, and asks for rows left out.

Legend: B tables, n rows, D features, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from generator.tabular.model import TabularGenerator
from generator.training.averaging import AveragedTraining, AveragedTrainingConfig
from zoo.devices import resolve_device
from zoo.networks.initialization import derive_seed
from zoo.settings import as_json, require_same
from zoo.storage.durable import write_file, write_state
from zoo.tasks.families.tabular_prior import TabularPrior

_RECORD: Final = "settings.json"
_CHECKPOINT: Final = "last.pt"
_MAX_TABLES: Final = 64


@dataclass(frozen=True, kw_only=True)
class TabularConfig(AveragedTrainingConfig):
    """How a generator for tables is trained; see `AveragedTrainingConfig` for what is not named here.

    Attributes:
        rows_per_batch: rows of the tables of a batch together, of which there are fewer the longer they are.
        min_rows, max_rows: of a table that is learned from; a batch's number is log-uniform between them.
        num_queries: further rows of each table, on which the loss is.
        max_features, max_classes: each batch draws one of either, up to which its tables have.
        checkpoint_steps: steps between checkpoints.
        model: options of TabularGenerator.
    """

    num_steps: int = 4000
    rows_per_batch: int = 2048
    min_rows: int = 16
    max_rows: int = 256
    num_queries: int = 64
    max_features: tuple[int, ...] = (6, 12, 20)
    max_classes: tuple[int, ...] = (2, 4, 10)
    checkpoint_steps: int = 250
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.min_rows <= self.max_rows <= self.rows_per_batch:
            raise ValueError(
                "expected 2 <= min_rows <= max_rows <= rows_per_batch, got "
                f"{self.min_rows}, {self.max_rows} and {self.rows_per_batch}"
            )


def train_tabular(
    config: TabularConfig,
    *,
    out: str | Path,
    device: str | torch.device = "auto",
    on_step: Callable[[int, float], None] | None = None,
) -> TabularGenerator:
    """A trained generator, on the CPU; a training that was interrupted in `out` is resumed.

    Args:
        config: all that decides the weights, but the device.
        out: folder of the checkpoint.
        device: "auto", "cpu", "cuda" ...
        on_step: told how many steps are done, and the last one's loss, at every checkpoint.

    Raises:
        SettingsMismatchError: if `out` holds a training with other settings.
    """
    out, place = Path(out), resolve_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = TabularGenerator(**config.model)
    model.to(place)
    training = AveragedTraining(model, config)
    parts: dict[str, Any] = {"model": model, "average": training.average, "optimizer": training.optimizer}
    first = _resume(out, config, parts, place)
    for step in range(first, config.num_steps):
        loss = table_loss(model, config, step, place)
        training.take_step(step, loss)
        if (step + 1) % config.checkpoint_steps == 0 or step + 1 == config.num_steps:
            states = {name: part.state_dict() for name, part in parts.items()}
            write_state(out / _CHECKPOINT, {"step": step + 1, **states})
            if on_step:
                on_step(step + 1, loss.item())
    return training.average.to("cpu").eval()


def table_loss(model: TabularGenerator, config: TabularConfig, step: int, device: torch.device) -> Tensor:
    """Cross-entropy of generated networks on further rows of the tables of a step; classes never shown do not count."""
    rng = torch.Generator().manual_seed(derive_seed(config.seed, "tables", step))
    rows, features, classes = torch.rand(3, generator=rng).tolist()
    num_rows = round(config.min_rows * (config.max_rows / config.min_rows) ** rows)
    num_classes = config.max_classes[int(classes * len(config.max_classes))]
    prior = TabularPrior(
        num_features=config.max_features[int(features * len(config.max_features))],
        num_classes=num_classes,
        num_train=num_rows,
        num_val=config.num_queries,
        num_test=2,
        seed=config.seed,
    ).to(device)
    count = min(_MAX_TABLES, config.rows_per_batch // num_rows)
    tables = prior.bind(torch.arange(step * _MAX_TABLES, step * _MAX_TABLES + count))
    inputs, labels = tables.inputs["train"], tables.targets["train"]
    queries, answers = tables.inputs["val"], tables.targets["val"]
    logits = model(inputs, labels, num_classes).logits(queries)
    is_known = F.one_hot(labels, num_classes).amax(1).gather(1, answers)  # (B, queries)
    losses = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none")
    return (losses * is_known.flatten()).sum() / is_known.sum().clamp(min=1)


def _resume(out: Path, config: TabularConfig, parts: Mapping[str, Any], device: torch.device) -> int:
    """Steps that are done; the parts as they were after them."""
    record, checkpoint = out / _RECORD, out / _CHECKPOINT
    if not checkpoint.exists():
        write_file(record, [json.dumps(as_json(config), indent=1).encode()])
        return 0
    require_same(json.loads(record.read_text()), config, f"the training in {out}")
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
