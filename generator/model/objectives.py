"""Training objectives: how targets are noised, what the model predicts, and how predictions are scored.

Three losses can be combined: a distance in (normalised) parameter space, either mean squared error or the energy score
of samples; the *function-space loss*, which compares the loss that the predicted network has with the loss of the real
target network on the same examples; and the energy score of both networks' outputs.

Source: v-prediction: Salimans and Ho 2022 (arXiv 2202.00512); flow matching on straight paths: Lipman et al. 2022
(arXiv 2210.02747); energy score: Gneiting and Raftery 2007, equation 21.

Legend: B networks, P numbers of one network, E examples, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from zoo.networks import low_rank
from zoo.networks.layout import ParamLayout
from zoo.settings import check_options
from zoo.tasks.objectives import Probabilistic
from zoo.tasks.task import Task

PREDICTIONS: Final = ("sample", "v_prediction", "flow")
LOSS_FLOOR: Final = 1e-4  # nats; below it, losses of networks are not told apart
_LOG_PROB_FLOOR: Final = -12.0
_MIN_SIGNAL: Final = 1e-4
_MIN_SQUARE: Final = 1e-6  # under a root, whose slope at 0 is infinite
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised.

    Attributes:
        prediction: "sample" (x0), "v_prediction", both on the cosine path, or "flow" (velocity on straight paths).
        energy_score: two samples per target and the energy score, or one and the mean squared error.
        params_weight: of the distance in parameter space; 0 leaves the function-space loss alone, a control that shows
            what learning from weights adds.
        function_weight: of the function-space loss; 0 switches it off (the setting of G.pt).
        function_examples: E, drawn afresh for every step; in tasks of control, random states.
        function_episodes: played in tasks of control at every step.
        function_split: "train", "val", or "train_val" to draw from both; never the test split. "val" where training
            examples overlap, as windows of a text do: a network is to be good beyond the examples of its prompt.
        function_energy_weight: of the energy score on outputs.
        function_aim: of networks that are asked for by examples or words alone: the "least" loss there is, or on the
            logarithmic scale that of the "target", which weighs a task that can be told by its ratio to what the zoo
            has, not by what is lost on tasks that cannot.
        description_weight: of the squared error with which examples of a prompt tell the numbers that describe their
            task, where its family has such (`Family.describe`). The model is then given what they tell. This is nothing
            to do with descriptions in words, which are prompts (`GeneratorConfig.descriptions`).
        self_fed_share: of the steps in which the model is given what it would meet in sampling, its own noisier
            prediction brought one step on, instead of the noisy target; against the drift of small errors over steps.
        windows_per_step: score only this many random windows of chunk tokens, so that memory does not grow with the
            network; 0 for all.
    """

    prediction: str = "sample"
    energy_score: bool = True
    params_weight: float = 1.0
    function_weight: float = 1.0
    function_examples: int = 96
    function_episodes: int = 8
    function_split: str = "train"
    function_energy_weight: float = 1.0
    function_aim: str = "least"
    description_weight: float = 0.0
    self_fed_share: float = 0.0
    windows_per_step: int = 0

    def __post_init__(self) -> None:
        counts = ("function_examples", "function_episodes")
        check_options(vars(self), type(self), positive=counts, shares=("self_fed_share",))
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {PREDICTIONS}, got {self.prediction!r}")
        if self.function_split not in ("train", "val", "train_val"):
            raise ValueError(f"function_split must be 'train', 'val' or 'train_val', got {self.function_split!r}")
        if self.function_aim not in ("least", "target"):
            raise ValueError(f"function_aim must be 'least' or 'target', got {self.function_aim!r}")
        if self.function_energy_weight and not self.energy_score:
            raise ValueError("function_energy_weight needs energy_score=True: it scores two samples per target")
        if self.self_fed_share and self.prediction != "sample":
            raise ValueError(f"self_fed_share needs prediction='sample', got {self.prediction!r}")
        if not (self.params_weight or self.function_weight):
            raise ValueError("params_weight or function_weight must be positive, both are 0: nothing would be learned")

    @property
    def function_splits(self) -> tuple[str, ...]:
        """Splits of the task from which examples are drawn."""
        return tuple(self.function_split.split("_"))

    @property
    def uses_functions(self) -> bool:
        """Whether predicted networks are run on examples."""
        return self.function_weight > 0 or self.function_energy_weight > 0


def signal_and_noise(prediction: str, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of data and noise at times (B,) in [0, 1]: a noisy input is signal * clean + noise * Gaussian."""
    if prediction == "flow":
        return 1 - timestep, timestep
    angle = timestep * (math.pi / 2)
    return angle.cos().clamp(min=_MIN_SIGNAL), angle.sin()


def prediction_target(prediction: str, clean: Tensor, gaussian: Tensor, timestep: Tensor) -> Tensor:
    """What the model should output: (B, P)."""
    if prediction == "sample":
        return clean
    if prediction == "flow":
        return gaussian - clean
    signal, noise = signal_and_noise(prediction, timestep[:, None])
    return signal * gaussian - noise * clean


def clean_of(prediction: str, output: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
    """Clean parameters (B, P) that an output stands for: the inverse of `prediction_target`."""
    if prediction == "sample":
        return output
    signal, noise = signal_and_noise(prediction, timestep[:, None])
    return noisy - noise * output if prediction == "flow" else signal * noisy - noise * output


def deterministic_step(prediction: str, noisy: Tensor, output: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Noisy parameters (B, P) at times `after` (B,), from an output of the model at the noisier times `before` (B,).

    Source: DDIM, Song et al. 2021 (arXiv 2010.02502), equation 12 with sigma 0.
    """
    clean = clean_of(prediction, output, noisy, before)
    signal, noise = signal_and_noise(prediction, before[:, None])
    gaussian = (noisy - signal * clean) / noise.clamp(min=_MIN_SIGNAL)
    signal, noise = signal_and_noise(prediction, after[:, None])
    return signal * clean + noise * gaussian


def rms_distance(first: Tensor, second: Tensor) -> Tensor:
    """Root mean squares (B,) of differences over all dims but the first, so that networks of every size weigh alike."""
    return ((first - second).flatten(1).square().mean(1) + _MIN_SQUARE).sqrt()


def product_distance(layout: ParamLayout, sizes: Mapping[str, float]) -> Distance:
    """Distance (B,) of adapters (B, P) by their products B A, the mean over the adapted matrices.

    What belongs to no product is left to the function-space loss.

    Args:
        layout: with linear groups.
        sizes: what a group's squared distances are divided by, such as `product_sizes` of real adapters.
    """
    groups = low_rank.linear_groups(layout)

    def distance(first: Tensor, second: Tensor) -> Tensor:
        squares = []
        for group in groups:
            one, other = (low_rank.factors(layout, group, params) for params in (first, second))
            up, down = torch.cat((one.up, -other.up), dim=2), torch.cat((one.down, other.down), dim=1)
            squares.append(_squared_norm(up, down) / sizes[group.name])
        return (torch.stack(squares).mean(0).clamp(min=0) + _MIN_SQUARE).sqrt()

    return distance


def product_sizes(layout: ParamLayout, params: Tensor) -> dict[str, float]:
    """Mean squared norm of the products B A of adapters (B, P), by group name; 1 where all are zero."""
    groups = low_rank.linear_groups(layout)
    return {
        group.name: _squared_norm(*low_rank.factors(layout, group, params)).mean().item() or 1.0 for group in groups
    }


def _squared_norm(up: Tensor, down: Tensor) -> Tensor:
    """Squared norms (B,) of products of `up` (B, O, R) and `down` (B, R, I), which are never formed."""
    return ((up.mT @ up) * (down @ down.mT)).sum((1, 2))


def energy_score(first: Tensor, second: Tensor, target: Tensor, distance: Distance = rms_distance) -> Tensor:
    """Energy score (B,) of two independent samples each, a proper score: least if they are distributed as targets."""
    return distance(first, target) + distance(second, target) - distance(first, second)


def log_loss_gap(achieved: Tensor, reference: Tensor) -> Tensor:
    """Function-space loss (B,): difference of two losses on the logarithmic scale on which prompts are read."""
    return ((achieved + LOSS_FLOOR).log() - (reference + LOSS_FLOOR).log()).abs()


def return_gap(task: Task, predicted: Tensor, real: Tensor, num_episodes: int, rng: torch.Generator) -> Tensor:
    """Function-space loss (B,) of policies: difference of the shares of the horizon that are lost in the same episodes.

    Its gradient is the policy gradient, towards or away from longer episodes. Returns are read as they are, and so are
    their differences.

    Args:
        task: to act in.
        predicted: (B, P), through which gradients flow.
        real: (B, P).
        num_episodes: of the training split.
        rng: to draw them, on the CPU.
    """
    chosen = torch.randint(len(task.dataset.train), (num_episodes,), generator=rng).to(task.device, non_blocking=True)
    together = torch.cat((predicted, real))
    achieved, reference = task.loss(together, task.batch(chosen, len(together))).chunk(2)
    return (achieved - reference).abs()


def comparable_outputs(task: Task, outputs: Tensor) -> Tensor:
    """What the energy score on outputs compares: log-probabilities of classes or actions, else the outputs."""
    objective = task.objective
    return objective.log_probs(outputs).clamp(min=_LOG_PROB_FLOOR) if isinstance(objective, Probabilistic) else outputs
