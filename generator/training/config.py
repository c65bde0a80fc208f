"""The settings of a training, besides its zoos; those of pairs and losses are beside what they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from generator.model.objectives import ObjectiveConfig
from generator.prompts.prompt import ALIASES
from generator.training.pairs import PairConfig
from zoo.settings import check_options

PRECISIONS: Final = ("auto", "bfloat16", "float32")


@dataclass(frozen=True)
class OptimizationConfig:
    """How the generator is trained.

    Attributes:
        num_steps: batches in all.
        num_epochs: into which they are divided; after each there is a checkpoint and alignment is measured.
        learning_rate: of AdamW, for vectors, embeddings and the first and last layers.
        muon_learning_rate: of Muon, for the matrices of the denoiser blocks; 0 to use AdamW for these too.
        warmup_steps: both rates rise linearly; afterwards they follow a cosine to 0.
        wide_inputs: layers of AdamW that read more numbers than this learn at a rate that is smaller in proportion,
            since what a step changes in their outputs grows with what they read; None for one rate.
        weight_decay: of both.
        clip_norm: bound of the gradient's norm.
        average_decay: of the averaged weights, from which the pipeline samples; approached from 0.
        precision: "bfloat16", "float32", or "auto" for bfloat16 where the device has instructions for it.
        seed: of pairs, noise and examples.
    """

    num_steps: int = 2500
    num_epochs: int = 10
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.02
    wide_inputs: int | None = None
    warmup_steps: int = 60
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    average_decay: float = 0.998
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        positive = ("num_steps", "num_epochs", "learning_rate", "wide_inputs", "clip_norm")
        check_options(vars(self), type(self), positive=positive, shares=("average_decay",))
        if self.num_steps % self.num_epochs:
            raise ValueError(f"num_steps must be a multiple of num_epochs, got {self.num_steps} and {self.num_epochs}")

    @property
    def steps_per_epoch(self) -> int:
        return self.num_steps // self.num_epochs


@dataclass(frozen=True)
class GeneratorConfig:
    """All settings of a training, besides the zoos.

    Attributes:
        tokenizer: "neuron" or "chunk".
        chunk_width: numbers per chunk token; 0 for the whole network in one token.
        statistics_per_number: whether chunk tokens are normalised number by number, not slot by slot: then what is
            learned of networks of one run is how they differ, not what they share. Of adapters, see below.
        metrics: that can be prompted; "loss" means "val_loss". The first one is used to select the model.
        task_bits: column of the zoo's runs whose bits are a task condition, with `num_task_bits` bits; or None.
        num_task_bits: see there.
        descriptions: what reads tasks that are told in words: "words", which are hashed, or the folder of a sentence
            model; None for none.
        num_held_out: values of the zoos' split column (with `digits_subset` pairs of a mask and its complement) that no
            training run has, chosen by hash in place of the zoos' own splits; 0 for these.
        centred: whether the untrained model answers with the mean of the training adapters; see below.
        fingerprints: whether the model sees what the start computes on labelled examples (MLP and CNN classifiers).
        recompute_batch_norm: whether BatchNorm's running statistics are not taken from the model but recomputed on
            training images, in training (batch mode) and after sampling.
        model: options of RecurrentDiffusionTransformer (width, num_blocks, recurrence, use_start ...).
        pairs: how pairs are drawn.
        objective: losses.
        optimization: optimizers, schedule, precision, seed.
        max_runs: train on at most this many runs of each zoo; None for all.
        num_validation_starts: unseen starts on which prompt alignment selects the model; 0 keeps the last one.
        calibrate_prompts: whether prompts of the first metric are calibrated on these starts after training, see
            `generator.prompts.calibration`.
        calibrate_latents: whether the scale of the latents is calibrated there, too: as far as networks of the lowest
            loss differ less than validation runs do, and accuracy allows.

    Adapters whose runs begin at one for all tasks have a mean that is most of what they are, and an untrained model
    should answer with that, not with random ones. There are two ways, not to be combined. Where they move far from
    where they began, `centred`: canonical forms are averaged by their products B A, and what is learned is added, in
    one pass, for one zoo. Where they stay near, `statistics_per_number`: factors are learned as they were trained,
    since canonical forms of one component are not alike enough to have a mean, and every number has its own mean and
    deviation, which say how far it moves. It learns ranks that were trained, and no updates of a start.
    """

    tokenizer: str = "neuron"
    chunk_width: int = 64
    statistics_per_number: bool = False
    metrics: Sequence[str] = ("loss",)
    task_bits: str | None = None
    num_task_bits: int = 0
    descriptions: str | None = None
    num_held_out: int = 0
    centred: bool = False
    fingerprints: bool = False
    recompute_batch_norm: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    pairs: PairConfig = field(default_factory=PairConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    max_runs: int | None = None
    num_validation_starts: int = 32
    calibrate_prompts: bool = True
    calibrate_latents: bool = False

    def __post_init__(self) -> None:
        check_options(vars(self), type(self), positive=("max_runs",))
        if isinstance(self.metrics, str) or not isinstance(self.metrics, Sequence):
            raise ValueError(f"metrics must be a sequence of names such as ['loss'], got {self.metrics!r}")
        if self.num_held_out and self.num_validation_starts:
            raise ValueError("num_held_out leaves no runs for validation: set num_validation_starts=0")
        if (self.task_bits is None) != (self.num_task_bits == 0):
            raise ValueError(
                "task_bits (a column) and num_task_bits (how many of its bits) belong together, "
                f"got {self.task_bits!r} and {self.num_task_bits}"
            )
        if self.objective.description_weight and self.pairs.num_examples is None:
            raise ValueError("description_weight is of what examples in prompts tell: set pairs.num_examples")
        if self.calibrate_latents and not (self.calibrate_prompts and self.objective.energy_score):
            raise ValueError(
                "calibrate_latents needs calibrate_prompts=True, and energy_score=True: others have no latents"
            )
        if self.calibrate_latents and not (self.num_validation_starts and self.metrics):
            raise ValueError("calibrate_latents is done on validation starts, by a metric: set both, or unset it")
        if self.pairs.start_share and not self.model.get("use_start", True):
            raise ValueError(f"a model with use_start=False needs pairs.start_share=0, got {self.pairs.start_share}")
        if self.statistics_per_number and self.centred:
            raise ValueError("centred and statistics_per_number both begin at the mean of adapters: set one of them")
        if self.statistics_per_number and self.tokenizer == "neuron" and self.pairs.start_share:
            raise ValueError(
                "statistics_per_number of adapters needs pairs.start_share=0: starts are given in canonical form"
            )
        if self.pairs.even_share and not self.metrics:
            raise ValueError("pairs.even_share covers the range of a metric: without metrics set it to 0")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Full names in sorted order, which is that of a prompt's columns."""
        return tuple(sorted({ALIASES.get(name, name) for name in self.metrics}))
