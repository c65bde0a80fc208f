"""Tasks: a data set, a module and a loss, executed for N networks at once.

A task is defined by one ordinary module. Populations of it run through `torch.func`, MLPs through the hand-batched
functions of `zoo.tasks.batched_mlp`; the tests hold both to the module.

Legend: N networks, P numbers of one network (T of them trainable), B examples, K outputs.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.networks.architectures import MLP
from zoo.networks.initialization import PARAMETRIZATIONS, init_runs
from zoo.networks.layout import ParamLayout
from zoo.networks.parametrization import parametrize
from zoo.tasks.batched_mlp import mlp_backward, mlp_forward
from zoo.tasks.datasets import Dataset, Split
from zoo.tasks.objectives import Objective

# Bytes of activations in one chunk of an evaluation, by kind of device: on a CPU what its caches hold.
_MEMORY_BUDGETS: Final = {"cpu": 4 * 2**20}
_OTHER_MEMORY_BUDGET: Final = 256 * 2**20


class Batch(NamedTuple):
    """Examples for one step: inputs (B, ...) and targets (B, ...) shared by all networks, or either with N in front.

    `Task.batch` makes one from the indices of examples.
    """

    inputs: Tensor
    targets: Tensor


class Task:
    """A data set, a module and a loss, for N networks at once.

    Attributes:
        metric_names: what `evaluate` gives, and zoos record of each split.
        max_train_evaluated: examples of the training split that `evaluate` looks at.
        is_compilable: whether a training step is the same program whatever the parameters.

    Args:
        name: for people.
        dataset: with its three splits.
        build: makes the module in its own initialisation, drawing from the CPU's global generator.
        objective: loss and error.
        parametrization: "sp" keeps the module's own initialisation, "mup" redraws it (see `parametrize`).
        config: JSON-able options from which `get_task(**config)` makes this task again; empty for a task of your own.
    """

    metric_names: tuple[str, ...] = ("loss", "error")
    max_train_evaluated = 2048
    is_compilable = True

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        build: Callable[[], nn.Module],
        objective: Objective,
        *,
        parametrization: str = "sp",
        config: Mapping[str, object] | None = None,
    ) -> None:
        if parametrization not in PARAMETRIZATIONS:
            raise ValueError(f"parametrization must be one of {PARAMETRIZATIONS}, got {parametrization!r}")
        self.name = name
        self.dataset = dataset
        self.objective = objective
        self.parametrization = parametrization
        self.config = dict(config or {})
        self._build = build
        with torch.random.fork_rng(devices=[]):
            self._template = build().eval()
        frozen = [name for name, param in self._template.named_parameters() if not param.requires_grad]
        if frozen:
            raise ValueError(f"a task trains all parameters; {frozen} do not require gradients: make them buffers")
        self._training_template = copy.deepcopy(self._template).train()
        self.layout = ParamLayout.of(self._template)
        self._is_mlp = type(self._template) is MLP
        self._input_ndim = dataset.train.inputs.ndim
        self._target_ndim = dataset.train.targets.ndim

    @property
    def device(self) -> torch.device:
        return self.dataset.train.inputs.device

    @property
    def description(self) -> dict[str, object]:
        """What a zoo records of the task: its config, or what tells a task of your own from others of its layout."""
        module = f"sha256:{hashlib.sha256(repr(self._template).encode()).hexdigest()}"
        own = {"name": self.name, "objective": self.objective.name, "parametrization": self.parametrization}
        return self.config or {**own, "module": module}

    @cached_property
    def is_repeatable(self) -> bool:
        """Whether training draws no random numbers, as dropout does: else runs do not follow from their seeds."""
        inputs = self.dataset.train.inputs[:2].cpu()
        model = copy.deepcopy(self._training_template).cpu()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            before = torch.random.get_rng_state()
            model(inputs)
            return torch.equal(before, torch.random.get_rng_state())

    def to(self, device: torch.device | str) -> Task:
        """This task with its data on another device."""
        moved = copy.copy(self)
        moved.dataset = self.dataset.to(device)
        moved._template = copy.deepcopy(self._template).to(device)
        moved._training_template = copy.deepcopy(self._training_template).to(device)
        moved.__dict__.pop("_evaluated_train", None)
        return moved

    def make_model(self) -> nn.Module:
        """One freshly initialised module, on the CPU."""
        model = self._build()
        return parametrize(model) if self.parametrization == "mup" else model

    def init(self, rng: torch.Generator, n: int) -> Tensor:
        """Parameters (n, P) of networks with seeds drawn from `rng`."""
        seeds = torch.randint(2**62, (n,), generator=rng, device=rng.device)
        return self.init_runs(seeds.tolist())

    def init_runs(self, seeds: Sequence[int], scales: Tensor | float = 1.0) -> Tensor:
        """Parameters (N, P): row i is what `make_model` gives under `torch.manual_seed(seeds[i])`.

        Args:
            seeds: N seeds.
            scales: factor on each network's matrices and embeddings, one or (N,).
        """
        return init_runs(self.make_model, self.layout, seeds, scales).to(self.device)

    def for_runs(self, runs: Sequence[int]) -> Task:
        """The task that network j of a population trains on when it is run `runs[j]` of a zoo: here always the same."""
        return self

    def run_attributes(self, runs: Sequence[int]) -> dict[str, Tensor]:
        """What distinguishes runs beside their seeds, by name, each (N,): here nothing."""
        return {}

    def batch(self, indices: Tensor, num_networks: int, split: str = "train") -> Batch:
        """Examples of a split for N networks.

        Args:
            indices: (B,) of examples that all networks share, or (N, B).
            num_networks: N.
            split: "train", "val" or "test".
        """
        data = self.dataset.split(split)
        return Batch(data.inputs[indices], self.targets_for(data.targets[indices], num_networks))

    def draw_examples(self, num_examples: int, rng: torch.Generator, splits: Sequence[str] = ("train",)) -> Batch:
        """Random examples of some splits together, on which networks can be compared by what they compute."""
        parts = [self.dataset.split(name) for name in splits]
        chosen = torch.randint(sum(len(part) for part in parts), (num_examples,), generator=rng).to(self.device)
        inputs, targets = [], []
        for part in parts:
            inside = chosen[(chosen >= 0) & (chosen < len(part))]
            inputs.append(part.inputs[inside])
            targets.append(part.targets[inside])
            chosen = chosen - len(part)
        return Batch(torch.cat(inputs), torch.cat(targets))

    def targets_for(self, targets: Tensor, num_networks: int) -> Tensor:
        """Targets as the objective takes them, (B, ...) or (N, B, ...) where networks have tasks of their own.

        Args:
            targets: (B, ...) of the data set that all networks share, or (N, B, ...).
            num_networks: N.
        """
        return targets

    def predict(self, params: Tensor, inputs: Tensor) -> Tensor:
        """Outputs (N, B, ..., K) in evaluation mode, differentiable in `params`.

        Args:
            params: (N, P).
            inputs: (B, ...) shared by all networks, or (N, B, ...).
        """
        self.layout.check_vector(params)
        if self._is_mlp:
            return mlp_forward(self.layout, params, self._flat_inputs(inputs), self._activation)[0]
        return self._module_outputs(params, inputs, training=False)[0]

    def loss(self, params: Tensor, batch: Batch) -> Tensor:
        """Losses (N,) in training mode, differentiable in `params` (N, P); buffers are left as they are."""
        self.layout.check_vector(params)
        if self._is_mlp:
            outputs = self.predict(params, batch.inputs)
        else:
            outputs = self._module_outputs(params, batch.inputs, training=True)[0]
        return self.objective.loss(outputs, batch.targets)

    def loss_and_grad(self, params: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (N,) and their gradients (N, T); buffers in `params` (BatchNorm statistics) advance in place."""
        self.layout.check_vector(params)
        if self._is_mlp:
            inputs = self._flat_inputs(batch.inputs)
            outputs, saved = mlp_forward(self.layout, params, inputs, self._activation)
            loss, output_grad = self.objective.loss_and_grad(outputs, batch.targets)
            return loss, mlp_backward(
                self.layout, params, inputs, self._activation, saved=saved, output_grad=output_grad
            )

        def total(params: Tensor) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
            outputs, buffers = self._module_outputs(params, batch.inputs, training=True)
            losses = self.objective.loss(outputs, batch.targets)
            return losses.sum(), (losses, buffers)

        grads, (_, (losses, buffers)) = grad_and_value(total, has_aux=True)(params)
        for name, value in buffers.items():
            params[:, self.layout[name].span] = value.reshape(len(params), -1).to(params.dtype)
        return losses.detach(), grads[:, : self.layout.num_trainable]

    @torch.no_grad()
    def evaluate(self, params: Tensor, split: str = "test", memory_budget: int | None = None) -> dict[str, Tensor]:
        """Loss and error (N,) over a whole split; of "train" over at most 2,048 examples, always the same.

        Args:
            params: (N, P).
            split: "train", "val" or "test".
            memory_budget: bytes of activations that may exist at once; by default 4 MiB on a CPU, 256 MiB elsewhere.
        """
        self.layout.check_vector(params)
        data = self.evaluated_examples(split)
        example_chunk = min(len(data), self._pairs_at_once(memory_budget))
        results = [
            self._evaluate_chunk(part, data, example_chunk, first, len(params))
            for first, part in _chunks(params, self.networks_at_once(example_chunk, memory_budget))
        ]
        loss, error = (torch.cat(parts) for parts in zip(*results, strict=True))
        return {"loss": loss, "error": error}

    def evaluated_examples(self, split: str) -> Split:
        """What `evaluate` looks at: a whole split, of "train" at most `max_train_evaluated` examples."""
        return self._evaluated_train if split == "train" else self.dataset.split(split)

    def networks_at_once(self, num_examples: int, memory_budget: int | None = None) -> int:
        """How many networks to run together on so many examples each; see `evaluate` for the budget."""
        return max(1, self._pairs_at_once(memory_budget) // num_examples)

    def _evaluate_chunk(
        self, params: Tensor, data: Split, example_chunk: int, first: int, num_networks: int
    ) -> tuple[Tensor, Tensor]:
        loss, error = params.new_zeros(len(params)), params.new_zeros(len(params))
        for start, inputs in _chunks(data.inputs, example_chunk):
            targets = self.targets_for(data.targets[start : start + example_chunk], num_networks)
            if targets.ndim > self._target_ndim:
                targets = targets[first : first + len(params)]
            outputs = self.predict(params, inputs)
            share = len(inputs) / len(data)
            loss += share * self.objective.loss(outputs, targets)
            error += share * self.objective.error(outputs, targets)
        return loss, error

    def _module_outputs(self, params: Tensor, inputs: Tensor, *, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs (N, B, ..., K) through vmap, and the buffers by name as the forward pass has left them."""
        tensors = self.layout.unflatten(params)
        named = {slot.name: tensors[slot.name] for slot in self.layout}  # tied ones under one of their names
        buffers = {slot.name: named[slot.name].detach().clone() for slot in self.layout if slot.kind == "buffer"}
        named |= buffers
        template = self._training_template if training else self._template

        def forward(named: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return functional_call(template, named, (inputs,))

        input_dim = 0 if inputs.ndim > self._input_ndim else None
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no batching rule
            outputs = vmap(forward, in_dims=(0, input_dim), randomness="different")(named, inputs)
        return outputs, buffers

    def _flat_inputs(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(2 if inputs.ndim > self._input_ndim else 1)  # (B, D) or (N, B, D)

    @property
    def _activation(self) -> str:
        return str(self._template.activation)

    @cached_property
    def _evaluated_train(self) -> Split:
        train, most = self.dataset.train, self.max_train_evaluated
        if len(train) <= most:
            return train
        chosen = torch.linspace(0, len(train) - 1, most, dtype=torch.float64, device=self.device).long()
        return Split(train.inputs[chosen], train.targets[chosen])

    def _pairs_at_once(self, memory_budget: int | None) -> int:
        """How many networks, times examples, to run together so that activations fit the budget."""
        if memory_budget is None:
            memory_budget = _MEMORY_BUDGETS.get(self.device.type, _OTHER_MEMORY_BUDGET)
        return max(1, memory_budget // self.bytes_per_example)

    @cached_property
    def bytes_per_example(self) -> int:
        """Size of all activations of one network on one example, counted by running the module once."""
        sizes: list[int] = []

        def count(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                sizes.append(output.numel() * output.element_size())

        hooks = [module.register_forward_hook(count) for module in self._template.modules()]
        self._template(self.dataset.train.inputs[:1])
        for hook in hooks:
            hook.remove()
        return max(1, sum(sizes))


def _chunks(values: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    start = 0
    for part in values.split(size):
        yield start, part
        start += len(part)
