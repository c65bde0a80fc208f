"""Tasks: a data set, a module and a loss, executed for N networks at once.

A task is defined by one ordinary module. What runs populations of it is a `zoo.tasks.backend.Backend`, chosen when the
task is made and held to the module.

Legend: N networks, P numbers of one network (T of them trainable), B examples, K outputs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.ambient import BuiltIn, torch_defaults
from zoo.networks.base import hash_of
from zoo.networks.counter_rng import streams_of
from zoo.networks.initialization import Initializer, scale_matrices
from zoo.networks.parametrization import PARAMETRIZATIONS, parametrize
from zoo.tasks.augmentation import recorded
from zoo.tasks.backend import Networks, first_line
from zoo.tasks.batched_mlp import BatchedMLP
from zoo.tasks.checks import check_fit, check_splits
from zoo.tasks.dataset import SPLIT_NAMES, Dataset, Split
from zoo.tasks.evaluation import activation_bytes, evenly_chosen, pairs_at_once
from zoo.tasks.identity import behaviour, structure
from zoo.tasks.looped_module import LoopedModule
from zoo.tasks.objectives import Objective, make_objective, shares
from zoo.tasks.objectives import recorded as recorded_objective
from zoo.tasks.trial import Trial, checked_module, examples_to_try, layout_of, trial_outputs, try_module


class Batch(NamedTuple):
    """Examples for one step: inputs (B, ...) and targets (B, ...) shared by all networks, or either with N in front.

    `Task.batch` makes one from the indices of examples. `stream` is what the module's random numbers, as of dropout,
    are drawn from, (4,) for all networks or (N, 4); None is torch's global generator.
    """

    inputs: Tensor
    targets: Tensor
    stream: Tensor | None = None


class Task:
    """A data set, a module and a loss, for N networks at once.

    Attributes:
        metric_names: what `evaluate` gives, and zoos record of each split.
        max_train_evaluated: examples of the training split that `evaluate` looks at.
        plays_episodes: whether networks are scored by what they do in an environment, not on examples alone.
        layout: of what training changes of the networks; `layout.base` is of what they share.
        backend: what runs them.
        flaw: why populations would not be what their seeds and parameters say, in words; None for a sound module.
        unused: trainable parameters of which the loss is no function.
        is_random: whether a training step draws random numbers: the module's, or those of augmentations.

    Args:
        name: for people.
        dataset: with its three splits.
        build: makes the module in its own initialisation, drawing from the CPU's global generator. What does not
            require gradients in it, and buffers that training leaves as they are, are the base of all networks.
        objective: loss and error: one of `zoo.tasks.objectives.OBJECTIVES` by name, or a mapping of `name` and its
            options such as `label_smoothing`, or an object.
        parametrization: "sp" keeps the module's own initialisation, "mup" redraws it (see `parametrize`).
        config: JSON-able options from which `get_task(**config)` makes this task again; empty for a task of your own.

    Raises:
        ValueError: if data, module and objective do not fit together, or the module cannot be run.
    """

    metric_names: tuple[str, ...] = ("loss", "error")
    max_train_evaluated = 2048
    plays_episodes = False

    @torch_defaults(dtype=None)
    def __init__(
        self,
        name: str,
        dataset: Dataset,
        build: Callable[[], nn.Module],
        objective: Objective | str | Mapping[str, object],
        *,
        parametrization: str = "sp",
        config: Mapping[str, object] | None = None,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"dataset must be a zoo.tasks.datasets.Dataset, whose splits are train, val and test, got "
                f"{type(dataset).__name__}; its function from_rows makes one of any rows"
            )
        if isinstance(build, nn.Module) or not callable(build):
            raise TypeError(
                f"build must be a function that makes a module, as lambda: Net(), got the {type(build).__name__} itself"
            )
        if parametrization not in PARAMETRIZATIONS:
            raise ValueError(f"parametrization must be one of {PARAMETRIZATIONS}, got {parametrization!r}")
        self.name = name
        self.dataset = dataset
        self.objective = make_objective(objective)
        self.parametrization = parametrization
        self.config = dict(config or {})
        try:
            trial = self._tried_on(BuiltIn(torch.get_default_dtype(), build))
        except ValueError as error:
            raise ValueError(f"task {name!r}: {error}") from error
        self.backend, slow, self.flaw, self._module_is_random, self.unused = trial
        self.is_random = self._module_is_random or bool(dataset.augmentations)
        if slow:
            warnings.warn(f"task {name!r} runs its networks one after another, which is slow: {slow}", stacklevel=2)

    def _tried_on(self, build: Callable[[], nn.Module]) -> Trial:
        """What a trial of the module shows, once data, module and objective have been seen to fit."""
        check_splits(self.dataset)
        train, module = self.dataset.train, checked_module(build)
        self._tried = examples_to_try(module, train.inputs)
        tried = train.inputs[self._tried]
        self.check_fit(trial_outputs(module.to(self.device), tried))
        self.layout = layout_of(build, tried)
        if self.layout.base is not None and self.parametrization == "mup":
            raise ValueError("parametrization 'mup' draws all parameters anew, but some are frozen; use 'sp'")
        self._networks = Networks(build, self.layout, self.objective, train.inputs.ndim, train.targets.ndim)
        streams = streams_of((0, 1), self.device)
        shared, own = self.trial_batch(), self.trial_batch(own=True)
        return try_module(self._networks, ((*shared[:2], streams[0]), (*own[:2], streams)))

    @property
    def device(self) -> torch.device:
        return self.dataset.train.inputs.device

    @property
    def is_compilable(self) -> bool:
        """Whether a training step is the same program whatever the parameters."""
        return self.backend.is_compilable

    @property
    def description(self) -> dict[str, object]:
        """What a zoo records of the task: its config, or what tells a task of your own from others of its layout."""
        return self.config or self._own_description

    @cached_property
    def _own_description(self) -> dict[str, object]:
        inputs, targets = (values.cpu() for values in self.trial_batch(1)[:2])
        return {
            "name": self.name,
            "objective": recorded_objective(self.objective),
            "parametrization": self.parametrization,
            "module": structure(self._networks.module()),
            "behaviour": behaviour(self._networks, inputs, targets, is_random=self._module_is_random),
            **({"augment": recorded(self.dataset.augmentations)} if self.dataset.augmentations else {}),
        }

    def to(self, device: torch.device | str) -> Task:
        """This task with its data on another device."""
        moved = copy.copy(self)
        moved.dataset = self.dataset.to(device)
        moved.backend = self.backend.to(device)
        moved.__dict__.pop("_evaluated_train", None)
        return moved

    @property
    def has_module(self) -> bool:
        """Whether the module itself is run, not functions that are written out by hand for many MLPs."""
        return not isinstance(self.backend, BatchedMLP)

    def by_module(self, *, channels_last: bool = False) -> Task:
        """This task with networks run one after another by the plain module, where the module itself is run.

        Args:
            channels_last: give images to it with their channels last.
        """
        if not self.has_module:
            return self
        other = copy.copy(self)
        other.backend = LoopedModule(self._networks, self.device, channels_last=channels_last)
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.layout.num_params:,} parameters)"

    @property
    def base(self) -> dict[str, Tensor]:
        """What all networks share, by name, on the CPU: frozen parameters and constant buffers; perhaps nothing."""
        return self.backend.base()

    @cached_property
    def base_hash(self) -> str:
        """Hash of the base, by which zoos know it; empty if there is none."""
        return hash_of(self.base)

    @torch_defaults(dtype=None)
    def make_model(self) -> nn.Module:
        """One freshly initialised module, on the CPU."""
        model = self._networks.build()
        return parametrize(model) if self.parametrization == "mup" else model

    def init(self, rng: torch.Generator, n: int) -> Tensor:
        """Parameters (n, P) of networks with seeds drawn from `rng`."""
        seeds = torch.randint(2**62, (n,), generator=rng, device=rng.device)
        return self.init_runs(seeds.tolist())

    @torch_defaults()
    def init_runs(self, seeds: Sequence[int], scales: Tensor | float = 1.0) -> Tensor:
        """Parameters (N, P): row i is what `make_model` gives under `torch.manual_seed(seeds[i])`.

        Args:
            seeds: N seeds.
            scales: factor on each network's matrices and embeddings, one or (N,).
        """
        return scale_matrices(self._initializer(seeds), self.layout, scales).to(self.device)

    @cached_property
    def _initializer(self) -> Initializer:
        return Initializer(self.make_model, self.layout)

    def __getstate__(self) -> dict[str, object]:
        """What is recorded of building networks stays here."""
        return {name: value for name, value in self.__dict__.items() if name != "_initializer"}

    def for_runs(self, runs: Sequence[int]) -> Task:
        """The task that network j of a population trains on when it is run `runs[j]` of a zoo: here always the same."""
        return self

    def run_attributes(self, runs: Sequence[int]) -> dict[str, Tensor]:
        """What distinguishes runs beside their seeds, by name, each (N,): here nothing."""
        return {}

    def describe(self, runs: Sequence[int]) -> Tensor:
        """Numbers (N, T) around -1 to 1 that say what runs are to solve, on the CPU: here none."""
        return torch.zeros(len(runs), 0)

    @property
    def has_own_inputs(self) -> bool:
        """Whether networks see inputs of their own, by the member of a family that they are to solve."""
        return False

    @property
    def split_key(self) -> str:
        """The column of a zoo's runs by whose hash they are split."""
        return "seed"

    def batch(self, indices: Tensor, num_networks: int, split: str = "train", *, stream: Tensor | None = None) -> Batch:
        """Examples of a split for N networks.

        Args:
            indices: (B,) of examples that all networks share, or (N, B).
            num_networks: N.
            split: "train", "val" or "test".
            stream: of a training step: (4,), or (N, 4) with indices (N, B), what augmentations and the module draw
                from, see `zoo.networks.counter_rng`. Without one nothing is augmented.
        """
        data = self.dataset.split(split)
        if stream is not None:
            return Batch(*self.dataset.training_examples(indices, stream), stream)
        return Batch(data.inputs[indices], data.targets[indices])

    def part_of(self, batch: Batch, networks: slice) -> Batch:
        """What some of its N networks see of a batch: their own examples, or those that all share."""
        shared = self.dataset.train
        inputs = batch.inputs[networks] if batch.inputs.ndim > shared.inputs.ndim else batch.inputs
        return Batch(inputs, batch.targets[networks] if batch.targets.ndim > shared.targets.ndim else batch.targets)

    def repeated(self, batch: Batch, times: int) -> Batch:
        """What N networks see of a batch, for the N networks `times` times over."""
        shared = (self.dataset.train.inputs.ndim, self.dataset.train.targets.ndim)
        values = zip(batch[:2], shared, strict=True)
        return Batch(*(one.repeat(times, *[1] * ndim) if one.ndim > ndim else one for one, ndim in values))

    def trial_batch(self, num_networks: int = 2, *, own: bool = False) -> Batch:
        """A few training examples, always the same, on which modules are tried: shared, or two networks' own."""
        return self.batch(torch.stack((self._tried, self._tried.flip(0))) if own else self._tried, num_networks)

    def check_fit(self, outputs: Tensor) -> None:
        """Raise ValueError unless the objective can score the module's outputs (B, ..., K) on the data."""
        for name in SPLIT_NAMES:
            try:
                check_fit(self.objective, outputs, self._targets_to_fit(name), self.dataset.num_classes)
            except Exception as error:  # of an objective of the user's own, any
                raise ValueError(f"{name} split: {first_line(error)}") from error

    def _targets_to_fit(self, split: str) -> Tensor:
        """Targets (n, ...) of one network, as the objective takes them."""
        return self.dataset.split(split).targets

    def draw_examples(self, num_examples: int, rng: torch.Generator, splits: Sequence[str] = ("train",)) -> Batch:
        """Random examples of some splits together, on which networks can be compared by what they compute.

        They are shared, or of a task that is bound to N runs of a family (N, B, ...).
        """
        sizes = [len(self.dataset.split(name)) for name in splits]
        chosen = torch.randint(sum(sizes), (num_examples,), generator=rng)
        parts = []
        for name, size in zip(splits, sizes, strict=True):  # masks wait for a GPU; those of the CPU do not
            inside = chosen[(chosen >= 0) & (chosen < size)].to(self.device, non_blocking=True)
            parts.append(self._drawn(inside, name))
            chosen = chosen - size
        shared = (self.dataset.train.inputs.ndim, self.dataset.train.targets.ndim)
        kinds = zip(zip(*(part[:2] for part in parts), strict=True), shared, strict=True)
        return Batch(*(torch.cat(values, dim=values[0].ndim - ndim) for values, ndim in kinds))

    def _drawn(self, indices: Tensor, split: str) -> Batch:
        return self.batch(indices, 1, split)

    def predict(self, params: Tensor, inputs: Tensor) -> Tensor:
        """Outputs (N, B, ..., K) in evaluation mode, differentiable in `params`.

        Args:
            params: (N, P).
            inputs: (B, ...) shared by all networks, or (N, B, ...).
        """
        self.layout.check_vector(params)
        return self.backend.outputs(params, inputs)

    def loss(self, params: Tensor, batch: Batch) -> Tensor:
        """Losses (N,) in training mode, differentiable in `params` (N, P); buffers are left as they are."""
        self.layout.check_vector(params)
        return self.backend.loss(params, *batch)

    def loss_and_grad(self, params: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (N,) and their gradients (N, T); buffers in `params` (BatchNorm statistics) advance in place."""
        self.layout.check_vector(params)
        return self.backend.loss_and_grad(params, *batch)

    @torch_defaults()
    @torch.no_grad()
    def evaluate(self, params: Tensor, split: str = "test", memory_budget: int | None = None) -> dict[str, Tensor]:
        """Loss and error (N,) over a whole split; of "train" over at most 2,048 examples, always the same.

        Args:
            params: (N, P).
            split: "train", "val" or "test".
            memory_budget: bytes of activations that may exist at once; by default 4 MiB on a CPU, 256 MiB elsewhere, or
                as many as a network takes with its base.
        """
        self.layout.check_vector(params)
        count = len(self.evaluated_examples(split))
        pairs = self.networks_at_once(1, memory_budget)
        num_examples = min(count, pairs)
        num_networks = max(1, pairs // num_examples)
        loss, error = params.new_zeros(len(params)), params.new_zeros(len(params))
        chunks = [slice(start, min(start + num_examples, count)) for start in range(0, count, num_examples)]
        for first in range(0, len(params), num_networks):
            some = slice(first, first + num_networks)
            parts = [self._evaluated_batch(split, chunk, some, len(params)) for chunk in chunks]
            own = parts[0].targets.ndim > self.dataset.train.targets.ndim
            in_whole = shares(self.objective, [part.targets for part in parts], own=own)
            for part, (of_loss, of_error) in zip(parts, in_whole, strict=True):
                outputs = self.predict(params[some], part.inputs)
                loss[some] += of_loss * self.objective.loss(outputs, part.targets)
                error[some] += of_error * self.objective.error(outputs, part.targets)
        return {"loss": loss, "error": error}

    def _evaluated_batch(self, split: str, examples: slice, networks: slice, num_networks: int) -> Batch:
        """Some of the evaluated examples, as some of N networks see them."""
        data = self.evaluated_examples(split)
        return Batch(data.inputs[examples], data.targets[examples])

    def evaluated_examples(self, split: str) -> Split:
        """What `evaluate` looks at: a whole split, of "train" at most `max_train_evaluated` examples."""
        return self._evaluated_train if split == "train" else self.dataset.split(split)

    @cached_property
    def _evaluated_train(self) -> Split:
        return evenly_chosen(self.dataset.train, self.max_train_evaluated)

    def networks_at_once(self, num_examples: int, memory_budget: int | None = None) -> int:
        """How many networks to run together on `num_examples` each; see `evaluate` for the budget."""
        network_bytes = 4 * sum(slot.numel for slot in (*self.layout, *(self.layout.base or ())))
        pairs = pairs_at_once(self.bytes_per_example, self.device, memory_budget, network_bytes=network_bytes)
        return max(1, pairs // num_examples)

    @cached_property
    def bytes_per_example(self) -> int:
        """Size of all activations of one network on one example."""
        return activation_bytes(self._networks.module().eval(), self.dataset.train.inputs[:1].cpu())
