"""Train a generator on one or several zoos, from the zoos' arrays to a pipeline that is saved."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar

from generator.pipeline import ParameterPipeline
from generator.prompts.descriptions import Embedder, embedder_of
from generator.recorded_tasks import records_of
from generator.sampler import make_scheduler
from generator.saved_pipeline import PIPELINE_FOLDER
from generator.training.assembly import assemble
from generator.training.config import GeneratorConfig, OptimizationConfig
from generator.training.inputs import describe_runs, opened, tasks_of, training_runs, validation_starts
from generator.training.module import GeneratorModule, PairDataModule
from generator.training.resumption import begin_or_resume
from generator.training.tasks import holding_out, with_splits
from generator.training.validation import AlignmentSelection, calibrate
from zoo.ambient import torch_defaults
from zoo.devices import resolve_device
from zoo.storage.zoo import Zoo
from zoo.tasks.task import Task
from zoo.tracking import make_tracker

_FROM_CONFIG: Final = {"max_epochs", "reload_dataloaders_every_n_epochs"}  # no options of the trainer's


@torch_defaults()
def train_generator(
    zoos: Zoo | Sequence[Zoo],
    config: GeneratorConfig | None = None,
    *,
    out: str | Path,
    tasks: Sequence[Task | None] | None = None,
    describe: Callable[[int], str | Sequence[str]] | None = None,
    embed: Embedder | None = None,
    device: str | torch.device = "auto",
    trainer_options: Mapping[str, Any] | None = None,
) -> ParameterPipeline:
    """Train a generator, save its pipeline in `out`/pipeline and return it, on the CPU.

    An interrupted training in `out` is resumed exactly. Zoos without a task (imported checkpoints) train without the
    function-space loss; zoos of final networks alone, one snapshot a run, train networks from noise.

    Args:
        zoos: one or several, which may differ in widths and depths.
        config: all settings; None for the defaults.
        out: folder of checkpoints, logs and the pipeline.
        tasks: of each zoo; default those that the zoos record.
        describe: what the task of a run, by its number, is in words, once or in several ways, for a config with
            `descriptions`; default what the family of tasks says itself.
        embed: from texts to vectors (N, W), in place of what `config.descriptions` names; a pipeline that is loaded has
            to be given it again, `pipe.embed = embed`.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" ...; a training may be resumed on another one.
        trainer_options: for lightning.Trainer (devices and strategy for several of them, logger, callbacks ...).

    Raises:
        SettingsMismatchError: if `out` holds a training with other settings, or of other zoos or tasks.
        ValueError: if a zoo has no runs to train or to validate on, or lacks a metric or a task that the config needs,
            there is no such device, or the trainer has no such option.
    """
    config = config or GeneratorConfig()
    if not isinstance(config, GeneratorConfig):
        raise TypeError(f"config must be a GeneratorConfig, got a {type(config).__name__}")
    if not isinstance(out, str | Path):
        raise TypeError(f"out must be the folder of the training, got {out!r}")
    zoos = opened(zoos)
    # What is trained on, and what the model is selected on.
    place = resolve_device(device)
    splits = holding_out(zoos, config.num_held_out) if config.num_held_out else None
    zoos = [with_splits(zoo, splits) for zoo in zoos]
    tasks = tasks_of(zoos, tasks, config)
    config, runs = training_runs(zoos, tasks, config, place)
    validation = validation_starts(zoos, runs, tasks, config)
    if config.descriptions is not None:
        embed = embedder_of(config.descriptions) if embed is None else embed
        describe_runs(runs, tasks, describe, embed)
    elif describe is not None or embed is not None:
        raise ValueError(
            "describe and embed are of a training on descriptions: set descriptions=..., or leave them out"
        )

    # The training, or what is left of it.
    model, normalizer, contexts = assemble(runs, tasks, config)
    checkpoint = begin_or_resume(Path(out), zoos, tasks, config, model, runs=runs)
    module = GeneratorModule(model, contexts, config.objective, config.optimization)
    data = PairDataModule(runs, config.pairs, config.optimization)
    selection = AlignmentSelection(validation, config.objective.prediction, config.pairs.modes)
    callbacks = [selection, keep_last_checkpoint(out)] if validation else [keep_last_checkpoint(out)]
    with lightning_without_hints():
        trainer = make_trainer(config.optimization, out, callbacks, device=device, options=trainer_options or {})
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)

    # The pipeline of the best weights.
    best = module.averaged
    if selection.best_weights is not None:
        best.load_state_dict(selection.best_weights)
    pipe = ParameterPipeline(
        best.eval(),
        normalizer,
        make_scheduler(config.objective.prediction),
        splits=None if splits is None else splits.to_dict(),
        task_bits_column=config.task_bits,
        tasks=records_of(normalizer.layouts, tasks),
        descriptions=config.descriptions,
    )
    pipe.embed = embed
    pipe.base = next((task.base for task in tasks if task is not None), {})
    pipe.to(trainer.strategy.root_device)
    calibrate(pipe, config, validation, zoos, tasks)
    pipe.to("cpu")
    if trainer.is_global_zero:
        pipe.save_pretrained(Path(out) / PIPELINE_FOLDER)
    return pipe


@contextmanager
def lightning_without_hints() -> Iterator[None]:
    """What Lightning says of devices, workers, checkpoints and other products is not shown; its errors are raised."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        log.setLevel(level)


def keep_last_checkpoint(out: str | Path) -> ModelCheckpoint:
    """Callback that writes checkpoints/last.ckpt after every epoch."""
    return ModelCheckpoint(
        Path(out) / "checkpoints",
        filename="last",
        save_top_k=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def make_trainer(
    optimization: OptimizationConfig,
    out: str | Path,
    callbacks: Sequence[Callback],
    *,
    device: str | torch.device = "auto",
    options: Mapping[str, Any],
) -> lightning.Trainer:
    """Trainer for a generator: CSV log unless the options have another logger, rich progress, no validation loop.

    Raises:
        ValueError: for options that the trainer does not have, or that follow from the config or contradict the device.
    """
    place = resolve_device(device)
    accelerator, devices = options.get("accelerator", "auto"), options.get("devices", 1)
    if isinstance(accelerator, str) and "auto" not in (accelerator, str(device)) and accelerator != place.type:
        raise ValueError(f"device={str(device)!r} and accelerator={accelerator!r} of trainer_options differ; give one")
    known = inspect.signature(lightning.Trainer).parameters.keys() - _FROM_CONFIG
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"trainer_options {unknown} are none of lightning.Trainer's, or follow from the config")
    if accelerator == "auto":
        accelerator, devices = place.type, [place.index] if devices == 1 and place.index is not None else devices
    settings = {
        "logger": make_tracker("csv", out),
        "log_every_n_steps": min(50, optimization.steps_per_epoch),
        "default_root_dir": str(out),
        "enable_model_summary": False,
        **options,
        "accelerator": accelerator,
        "devices": devices,
    }
    if settings.get("strategy") == "ddp":  # a zoo without edges leaves the edge layers without gradients
        settings["strategy"] = "ddp_find_unused_parameters_true"
    others = settings.pop("callbacks", None) or []
    own = [RichProgressBar(refresh_rate=20)] if settings.get("enable_progress_bar", True) else []
    settings["callbacks"] = [*callbacks, *own, *(others if isinstance(others, Sequence) else [others])]
    return lightning.Trainer(max_epochs=optimization.num_epochs, reload_dataloaders_every_n_epochs=1, **settings)
