"""What validation runs are for: they select the model, calibrate its prompts, and show what is usual.

Legend: N starts, K prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from generator.alignment import measure_alignment, measured, prompt_grid
from generator.model.context import NetworkContext
from generator.model.objectives import comparable_outputs
from generator.pipeline import ParameterPipeline
from generator.prompts.calibration import Calibration
from generator.prompts.examples import Examples
from generator.prompts.plausibility import FEWEST_TASKS, loss_on_prompts, usual_loss
from generator.prompts.prompt import EXAMPLES, Prompt, log_floor
from generator.sampler import make_scheduler, sample_params
from generator.training.config import GeneratorConfig
from generator.training.module import GeneratorModule
from generator.trajectories import Trajectories, nearest_snapshots
from zoo.networks.layout import ParamLayout
from zoo.networks.metrics import euclidean_distances
from zoo.storage.zoo import Zoo
from zoo.tasks.task import Task

_NUM_SELECTION_PROMPTS: Final = 8
_NUM_CALIBRATION_PROMPTS: Final = 16
_NUM_EXAMPLES: Final = 64
_NUM_FOR_LATENTS: Final = 128  # networks from which the latents' scale is chosen
_LATENT_SCALES: Final = (1.0, 1.05, 1.1)
_MAX_ERROR: Final = 1e-3  # that a scale may cost


@dataclass(frozen=True)
class ValidationStarts:
    """Starts of one zoo that no training run has.

    Attributes:
        starts: (N, P) initial networks of validation runs.
        unseen: all validation runs.
        seen: the training runs, whose reach bounds the prompts.
        task: that the networks are for.
        metric: that is prompted, "val_loss" for instance.
    """

    starts: Tensor
    unseen: Trajectories
    seen: Trajectories
    task: Task
    metric: str

    @classmethod
    def of(cls, unseen: Trajectories, seen: Trajectories, task: Task, metric: str, num_starts: int) -> ValidationStarts:
        """The first initial networks of the validation runs."""
        rows = torch.arange(min(num_starts, len(unseen)))
        return cls(unseen.read(rows, torch.zeros_like(rows)), unseen, seen, task, metric)

    @property
    def kind(self) -> str:
        """What the task calls the metric."""
        return self.metric.removeprefix("val_")

    def prompts(self, num_prompts: int) -> Tensor:
        """Prompts (K,) within what the training runs reach."""
        return prompt_grid(self.seen, self.metric, num_prompts=num_prompts)


class AlignmentSelection(Callback):
    """Keeps the averaged weights that meet prompts best on validation starts.

    The denoising error is no criterion: the models with the lowest are those that memorise.
    """

    def __init__(self, validation: Sequence[ValidationStarts], prediction: str, modes: Sequence[str]) -> None:
        self.validation = [(one, one.prompts(_NUM_SELECTION_PROMPTS)) for one in validation]
        self.scheduler = make_scheduler(prediction)
        self.use_start = "start" in modes
        self.best_score = -float("inf")
        self.best_weights: dict[str, Tensor] | None = None

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, GeneratorModule)
        if 2 * (trainer.current_epoch + 1) <= module.optimization.num_epochs or not trainer.is_global_zero:
            return  # early models are never the best
        scores = [
            self._score(module, context, one, prompts)
            for context, (one, prompts) in zip(module.contexts, self.validation, strict=True)
        ]
        score = sum(scores) / len(scores)
        module.log("val/r2", score, rank_zero_only=True)
        if score > self.best_score:
            self.best_score = score
            self.best_weights = {name: value.clone() for name, value in module.averaged.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_weights": self.best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_weights = state_dict["best_score"], state_dict["best_weights"]

    def _score(
        self, module: GeneratorModule, context: NetworkContext, validation: ValidationStarts, prompts: Tensor
    ) -> float:
        rng = torch.Generator().manual_seed(0)

        def generate(networks: Tensor, asked: Tensor) -> Tensor:
            prompt = Prompt.of({validation.metric: asked}, list(module.averaged.ranges), len(asked))
            given = networks if self.use_start else None
            return sample_params(module.averaged, context, self.scheduler, prompt, start=given, generator=rng)

        assert context.task is not None
        return measure_alignment(generate, context.task, validation.starts, prompts, metric=validation.kind).r2


def calibrate(
    pipe: ParameterPipeline,
    config: GeneratorConfig,
    validation: Sequence[ValidationStarts],
    zoos: Sequence[Zoo],
    tasks: Sequence[Task | None],
) -> None:
    """Tell a trained pipeline what to ask its model for, and which losses on the examples of a prompt are usual."""
    modes = config.pairs.modes
    if config.calibrate_prompts and validation:
        found = calibrations(pipe, validation, modes, latents=config.calibrate_latents)
        pipe.register_to_config(calibrations=found)
    if config.pairs.num_examples is not None and "noise" in modes:
        pipe.register_to_config(usual_losses=usual_losses(pipe, zoos, tasks))


def calibrations(
    pipe: ParameterPipeline, validation: Sequence[ValidationStarts], modes: Sequence[str], *, latents: bool = False
) -> list[dict[str, dict[str, Any]]]:
    """Calibrations of a trained pipeline by mode ("start", "noise"), for each of its layouts in turn."""
    by_layout = {
        one.seen.layout: {mode: asdict(_calibration(pipe, one, mode, latents=latents)) for mode in modes}
        for one in validation
    }
    return [by_layout[layout] for layout in pipe.normalizer.layouts]


def usual_losses(pipe: ParameterPipeline, zoos: Sequence[Zoo], tasks: Sequence[Task | None]) -> list[float | None]:
    """What losses networks have on their own prompts, tasks of validation runs, for each layout of a pipeline."""
    by_layout: dict[ParamLayout, float | None] = {}
    rng = torch.Generator().manual_seed(0)
    for zoo, task in zip(zoos, tasks, strict=True):
        runs = zoo.split("val").tolist() if "val" in zoo.spec.splits.fractions else []
        if task is None or len(runs) < FEWEST_TASKS:
            continue
        bound = task.to(pipe.device).for_runs(runs)
        chosen = torch.randint(len(bound.dataset.train), (len(runs), _NUM_EXAMPLES), generator=rng).to(pipe.device)
        shown = tuple(bound.batch(chosen, len(runs))[:2])
        made = pipe(prompt={EXAMPLES: shown}, num_samples=len(runs), layout=zoo.layout, task=bound, generator=rng)
        examples = Examples.read(shown, pipe.model.example_kind, len(runs)).to(pipe.device)
        by_layout[zoo.layout] = usual_loss(loss_on_prompts(bound, made.params, examples))
    return [by_layout.get(layout) for layout in pipe.normalizer.layouts]


def _calibration(pipe: ParameterPipeline, validation: ValidationStarts, mode: str, *, latents: bool) -> Calibration:
    validation, kind = replace(validation, task=validation.task.to(pipe.device)), validation.kind
    scale = _latent_scale(pipe, validation, mode) if latents else 1.0
    rng = torch.Generator().manual_seed(0)

    def generate(networks: Tensor, asked: Tensor) -> Tensor:
        start = networks if mode == "start" else None
        return _sampled(pipe, validation, asked, start=start, scale=scale, rng=rng)

    prompts = validation.prompts(_NUM_CALIBRATION_PROMPTS)
    achieved = measure_alignment(generate, validation.task, validation.starts, prompts, metric=kind).val[kind]
    return replace(Calibration.fit(prompts, achieved, validation.metric), latent_scale=scale)


def _latent_scale(pipe: ParameterPipeline, validation: ValidationStarts, mode: str) -> float:
    """The largest scale of the latents at which networks of the lowest loss differ no more than validation runs do.

    The distance is that of outputs, to that of what the same starts became at equal loss. It is bounded by what it may
    cost in errors.
    """
    task, runs = validation.task, validation.unseen
    rows = torch.arange(min(_NUM_FOR_LATENTS, len(runs)))
    start = runs.read(rows, torch.zeros_like(rows)) if mode == "start" else None
    chosen, bound = _LATENT_SCALES[0], math.inf
    if len(rows) < 2:
        return chosen  # one run differs from none
    for scale in _LATENT_SCALES:
        asked, rng = validation.prompts(1).expand(len(rows)), torch.Generator().manual_seed(0)
        params = _sampled(pipe, validation, asked, start=start, scale=scale, rng=rng)
        found = measured(task, params, "val")
        error = found["error"].mean().item()
        bound = min(bound, error + _MAX_ERROR)  # of the first scale
        achieved = found[validation.kind].clamp(min=log_floor(validation.metric))
        real = runs.read(rows, nearest_snapshots(runs.metrics[validation.metric][rows], achieved))
        if error > bound or _spread(task, params) > _spread(task, real):
            break
        chosen = scale
    return chosen


def _sampled(
    pipe: ParameterPipeline,
    validation: ValidationStarts,
    asked: Tensor,
    *,
    start: Tensor | None,
    scale: float,
    rng: torch.Generator,
) -> Tensor:
    """Networks (B, P) for the very prompts (B,), with latents of a scale."""
    context = NetworkContext.of(pipe.normalizer, validation.seen.layout, validation.task).to(pipe.device)
    prompt = Prompt.of({validation.metric: asked}, pipe.metrics, len(asked)).clamped(pipe.model.ranges)
    return sample_params(pipe.model, context, pipe.scheduler, prompt, start=start, latent_scale=scale, generator=rng)


def _spread(task: Task, params: Tensor) -> float:
    """Mean distance between the outputs of two of the networks (N, P) on validation examples."""
    outputs = task.predict(params.to(task.device), task.dataset.val.inputs).detach()
    return euclidean_distances(comparable_outputs(task, outputs.contiguous()).flatten(1)).mean().item()
