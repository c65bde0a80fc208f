"""Train a generator on one or several zoos, from the zoos' arrays to a pipeline that can be saved.

Legend: N starts, K prompts.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from generator.model.batch_norm import has_batch_norm, with_recomputed_batch_norm
from generator.model.context import NetworkContext
from generator.model.fingerprints import num_fingerprints
from generator.model.objectives import ObjectiveConfig
from generator.model.transformer import RecurrentDiffusionTransformer, model_widths
from generator.pipeline import ParameterPipeline
from generator.prompts.prompt import ALIASES, canonical_metric
from generator.sampler import make_scheduler
from generator.tokens.normalizer import ParamNormalizer
from generator.training.held_out_tasks import holding_out, with_splits
from generator.training.module import GeneratorModule, OptimizationConfig, PairDataModule
from generator.training.validation import AlignmentSelection, ValidationStarts, calibrations
from generator.trajectories import PairConfig, Trajectories
from zoo.storage.schema import RunStatus
from zoo.storage.zoo import Zoo
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task

_NETWORKS_FOR_STATISTICS: Final = 8192
_MAX_NUMBERS: Final = 2**27  # numbers read for the statistics of one zoo


@dataclass(frozen=True)
class GeneratorConfig:
    """All settings of a training, besides the zoos.

    Attributes:
        tokenizer: "neuron" or "chunk".
        chunk_width: numbers per chunk token; 0 for the whole network in one token.
        metrics: that can be prompted; "loss" means "val_loss". The first one is used to select the model.
        task_bits: column of the zoo's runs whose bits are a task condition, with `num_task_bits` bits; or None.
        num_task_bits: see there.
        num_held_out: values of the zoos' split column (with `digits_subset` pairs of a mask and its complement) that no
            training run has, chosen by hash in place of the zoos' own splits; 0 for these.
        fingerprints: whether the model sees what the start computes on labelled examples (MLP and CNN classifiers).
        recompute_batch_norm: whether BatchNorm's running statistics are not taken from the model but recomputed on
            training images, in training (batch mode) and after sampling.
        model: options of RecurrentDiffusionTransformer (width, num_blocks, recurrence, use_start ...).
        pairs: how pairs are drawn.
        objective: losses.
        optimization: optimizers, schedule, precision, seed.
        max_runs: train on only so many runs of each zoo; None for all.
        num_validation_starts: unseen starts on which prompt alignment selects the model; 0 keeps the last one.
        calibrate_prompts: whether prompts of the first metric are calibrated on these starts after training, see
            `generator.prompts.calibration`.
    """

    tokenizer: str = "neuron"
    chunk_width: int = 64
    metrics: Sequence[str] = ("loss",)
    task_bits: str | None = None
    num_task_bits: int = 0
    num_held_out: int = 0
    fingerprints: bool = False
    recompute_batch_norm: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    pairs: PairConfig = field(default_factory=PairConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    max_runs: int | None = None
    num_validation_starts: int = 32
    calibrate_prompts: bool = True

    def __post_init__(self) -> None:
        if self.num_held_out and self.num_validation_starts:
            raise ValueError("num_held_out leaves no runs for validation: set num_validation_starts=0")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Full names in sorted order, which is that of a prompt's columns."""
        return tuple(sorted({ALIASES.get(name, name) for name in self.metrics}))


def train_generator(
    zoos: Sequence[Zoo],
    config: GeneratorConfig,
    *,
    out: str | Path,
    tasks: Sequence[Task] | None = None,
    trainer_options: Mapping[str, Any] | None = None,
) -> ParameterPipeline:
    """Train a generator and return its pipeline; an interrupted training in `out` is resumed exactly.

    Args:
        zoos: one or several, which may differ in widths and depths.
        config: all settings.
        out: folder of checkpoints and logs.
        tasks: of each zoo; default those that the zoos record.
        trainer_options: for lightning.Trainer (accelerator, devices, strategy, enable_progress_bar ...).

    Raises:
        ValueError: if a zoo has no finished runs, or the function-space loss is on and a zoo records no task.
    """
    splits = holding_out(zoos, config.num_held_out) if config.num_held_out else None
    zoos = [with_splits(zoo, splits) for zoo in zoos]
    for zoo in zoos:
        _warn_if_incomplete(zoo)
    runs = _read_runs(zoos, config, "train")
    tasks = [task_of(zoo) for zoo in zoos] if tasks is None else list(tasks)
    if config.recompute_batch_norm:
        pairs = zip(runs, tasks, strict=True)
        runs = [with_recomputed_batch_norm(one, task) if has_batch_norm(one.layout) else one for one, task in pairs]
    model, normalizer, contexts = assemble(runs, tasks, config)
    module = GeneratorModule(model, contexts, config.objective, config.optimization)
    data = PairDataModule(runs, config.pairs, config.optimization)
    callbacks: list[Callback] = [keep_last_checkpoint(out)]
    selection = None
    metric = canonical_metric(config.metrics[0], config.metric_names)
    is_measured = all(metric in {f"val_{name}" for name in task.metric_names} for task in tasks)
    is_aligned = config.num_validation_starts and not config.num_task_bits and is_measured
    validation = _validation(zoos, runs, tasks, config) if is_aligned else []
    if validation:
        selection = AlignmentSelection(validation, metric, config.objective.prediction)
        callbacks.insert(0, selection)
    trainer = make_trainer(config.optimization, out, callbacks, trainer_options or {})
    last = Path(out) / "checkpoints" / "last.ckpt"
    trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    best = module.averaged
    if selection is not None and selection.best_weights is not None:
        best.load_state_dict(selection.best_weights)
    pipe = ParameterPipeline(
        best.eval().cpu(),
        normalizer,
        make_scheduler(config.objective.prediction),
        splits=None if splits is None else splits.to_dict(),
        task_bits_column=config.task_bits,
    )
    if config.calibrate_prompts and validation:
        pipe.register_to_config(calibrations=calibrations(pipe, validation, metric, config.pairs.modes))
    return pipe


def assemble(
    runs: Sequence[Trajectories], tasks: Sequence[Task | None], config: GeneratorConfig
) -> tuple[RecurrentDiffusionTransformer, ParamNormalizer, list[NetworkContext]]:
    """Untrained model, statistics fitted on the training runs, and the context of each zoo.

    The model's initial weights follow from the seed of the optimization.
    """
    rng = torch.Generator().manual_seed(config.optimization.seed)
    samples = [
        one.sample(min(_NETWORKS_FOR_STATISTICS, _MAX_NUMBERS // one.layout.num_params + 1), rng) for one in runs
    ]
    normalizer = ParamNormalizer.fit(
        config.tokenizer,
        [one.layout for one in runs],
        samples,
        chunk_width=config.chunk_width,
        recompute_batch_norm=config.recompute_batch_norm,
    )
    contexts = [NetworkContext.of(normalizer, one.layout, task) for one, task in zip(runs, tasks, strict=True)]
    nodes, edges = model_widths([context.tokenizer for context in contexts])
    ranges = {}
    for name in config.metric_names:
        known = [one.range_of(name) for one in runs]
        ranges[name] = (min(one.low for one in known), max(one.high for one in known))
    options = {"use_latent": config.objective.energy_score, "num_task_bits": config.num_task_bits, **config.model}
    if config.fingerprints:
        if any(task is None for task in tasks):
            raise ValueError("fingerprints need the task of each zoo; give tasks or set fingerprints=False")
        options["num_fingerprints"] = max(num_fingerprints(task) for task in tasks if task is not None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.optimization.seed)
        model = RecurrentDiffusionTransformer(nodes, edges, ranges, **options)
    return model, normalizer, contexts


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
    optimization: OptimizationConfig, out: str | Path, callbacks: list[Callback], options: Mapping[str, Any]
) -> lightning.Trainer:
    """Trainer for a generator: CSV log, TensorBoard too if it is installed, rich progress, no validation loop."""
    loggers: list[Logger] = [CSVLogger(str(out), name="log")]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(str(out), name="tensorboard"))
    every = min(50, optimization.steps_per_epoch)
    settings: dict[str, Any] = {"accelerator": "auto", "devices": 1, "log_every_n_steps": every, **options}
    if settings.get("strategy") == "ddp":  # a zoo without edges leaves the edge layers without gradients
        settings["strategy"] = "ddp_find_unused_parameters_true"
    if settings.get("enable_progress_bar", True):
        callbacks = [*callbacks, RichProgressBar(refresh_rate=20)]
    return lightning.Trainer(
        max_epochs=optimization.num_epochs,
        reload_dataloaders_every_n_epochs=1,
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=str(out),
        enable_model_summary=False,
        **settings,
    )


def task_of(zoo: Zoo) -> Task:
    """Task on which a zoo was trained, from the settings that it records."""
    options: dict[str, Any] = dict(zoo.task_config)
    return get_task(**options)


def _warn_if_incomplete(zoo: Zoo) -> None:
    missing = int((zoo.status == RunStatus.EMPTY).sum())
    if missing:
        warnings.warn(
            f"the zoo has {zoo.num_runs - missing} of its {zoo.num_runs} runs so far; training goes on with these. "
            "The command that built it finishes it",
            stacklevel=3,
        )


def _read_runs(zoos: Sequence[Zoo], config: GeneratorConfig, split: str) -> list[Trajectories]:
    return [
        Trajectories.from_zoo(
            zoo,
            split,
            config.metric_names,
            mask_column=config.task_bits,
            num_task_bits=config.num_task_bits,
            max_runs=config.max_runs,
        )
        for zoo in zoos
    ]


def _validation(
    zoos: Sequence[Zoo], runs: Sequence[Trajectories], tasks: Sequence[Task], config: GeneratorConfig
) -> list[ValidationStarts]:
    """Initial networks of each zoo's validation runs."""
    unseen = _read_runs(zoos, config, "val")
    return [
        ValidationStarts.of(one, seen, task, config.num_validation_starts)
        for one, seen, task in zip(unseen, runs, tasks, strict=True)
    ]
