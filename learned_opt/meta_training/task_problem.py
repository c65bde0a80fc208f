"""Tasks of the zoo as inner problems: what a learned rule trains while it is meta-trained.

Legend: N networks, C copies, G groups (N = C x G), B examples, S tasks,
P numbers of one network (the first T trainable).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from learned_opt.rules.rule import TensorSpec
from learned_opt.rules.tensor_specs import specs_of
from zoo.tasks.datasets import Split
from zoo.tasks.task import Batch, Task

MAX_VALIDATION_EXAMPLES: Final = 512
_NETWORKS_PER_VALIDATION: Final = 64


class TaskProblem:
    """Networks of one layout, trained on one or more tasks that differ in their data.

    Args:
        tasks: of equal layouts and equally large training splits.
        batch_size: B, drawn with replacement.
        init_scale: factor on the initial matrices and embeddings.
        param_scale: networks are stored divided by this number, so a rule meets parameters and gradients of another
            scale while the networks compute the same (global reparametrisation; Thérien et al. 2026, arXiv
            2602.19142, draw it from 1e-3..1e3).

    Raises:
        ValueError: if the tasks do not fit together.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        batch_size: int = 64,
        init_scale: float = 1.0,
        param_scale: float = 1.0,
        name: str = "",
    ) -> None:
        if len({task.layout for task in tasks}) != 1 or len({len(task.dataset.train) for task in tasks}) != 1:
            named = [(task.name, task.layout.num_params, len(task.dataset.train)) for task in tasks]
            raise ValueError(f"tasks must share layout and number of training examples, got {named}")
        without_loss = [task.name for task in tasks if "loss" not in task.metric_names]
        if without_loss:
            raise ValueError(f"inner problems are tasks with a loss on examples, {without_loss} have returns instead")
        self.tasks = list(tasks)
        self.layout = tasks[0].layout
        self.num_datasets = len(tasks)
        self.batch_size = batch_size
        self.init_scale = init_scale
        self.param_scale = param_scale
        self.name = name or f"{tasks[0].name}-b{batch_size}"
        self.specs: tuple[TensorSpec, ...] = specs_of(self.layout)

    def init(self, seeds: Tensor) -> Tensor:
        params = self.tasks[0].init_runs(seeds.tolist(), self.init_scale)  # (G, P)
        params[:, : self.layout.num_trainable] /= self.param_scale
        return params

    def views(self, params: Tensor) -> list[Tensor]:
        views = self.layout.views(params)
        return [views[slot.name] for slot in self.layout if slot.kind == "param"]

    def pack(self, views: list[Tensor], params: Tensor) -> Tensor:
        return torch.cat([*(view.flatten(1) for view in views), params[:, self.layout.num_trainable :]], dim=1)

    def loss_and_grad(self, params: Tensor, datasets: Tensor, examples: Tensor) -> tuple[Tensor, list[Tensor]]:
        loss, grads = self.flat_loss_and_grad(params, datasets, examples)
        slots = [slot for slot in self.layout if slot.kind == "param"]
        return loss, [
            grads[:, slot.span].unflatten(1, slot.shape) if slot.shape else grads[:, slot.offset] for slot in slots
        ]

    def flat_loss_and_grad(self, params: Tensor, datasets: Tensor, examples: Tensor) -> tuple[Tensor, Tensor]:
        """As `loss_and_grad`, with the gradients as one tensor (N, T)."""
        batch = self._batch(datasets, examples, len(params))
        if torch.is_grad_enabled():  # backpropagation through training: the gradient needs a graph of its own
            leaf = params if params.requires_grad else params.detach().requires_grad_()
            loss = self.tasks[0].loss(self._computing(leaf), batch)
            (grads,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
        else:
            computing = self._computing(params)
            loss, grads = self.tasks[0].loss_and_grad(computing, batch)
            if computing is not params:
                params[:, self.layout.num_trainable :] = computing[:, self.layout.num_trainable :]
                grads = grads * self.param_scale
        return loss, grads[:, : self.layout.num_trainable]

    @torch.no_grad()
    def evaluate(self, params: Tensor, datasets: Tensor, split: str = "val") -> tuple[Tensor, Tensor]:
        """Loss in nats and error, each (N,), on at most 512 examples of a split."""
        computing = self._computing(params)
        which = datasets.repeat(len(params) // len(datasets))
        loss, error = params.new_empty(len(params)), params.new_empty(len(params))
        for index, task in enumerate(self.tasks):
            examples = task.dataset.split(split)
            inputs, targets = examples.inputs[:MAX_VALIDATION_EXAMPLES], examples.targets[:MAX_VALIDATION_EXAMPLES]
            rows = (which == index).nonzero().flatten()
            for part in rows.split(_NETWORKS_PER_VALIDATION) if len(rows) else ():
                outputs = task.predict(computing[part], inputs)
                loss[part] = task.objective.loss(outputs, targets)
                error[part] = task.objective.error(outputs, targets)
        return loss, error

    def _computing(self, params: Tensor) -> Tensor:
        """The parameters with which the networks compute; the same tensor if nothing is rescaled."""
        if self.param_scale == 1:
            return params
        trainable = self.layout.num_trainable
        return torch.cat([params[:, :trainable] * self.param_scale, params[:, trainable:]], dim=1)

    def _batch(self, datasets: Tensor, places: Tensor, num_networks: int) -> Batch:
        train = self._train
        index = (places * train.inputs.shape[1]).long().to(train.inputs.device)  # (G, B)
        if len(index) == 1:  # all networks share the minibatch
            only = int(datasets[0])
            return Batch(train.inputs[only, index[0]], train.targets[only, index[0]])
        which = datasets.to(index.device)[:, None]
        inputs, targets = train.inputs[which, index], train.targets[which, index]  # (G, B, ...)
        copies = num_networks // len(index)
        return Batch(inputs.repeat(copies, *[1] * (inputs.ndim - 1)), targets.repeat(copies, *[1] * (targets.ndim - 1)))

    @cached_property
    def _train(self) -> Split:
        """Training splits of all tasks on top of each other, inputs (S, n, ...)."""
        splits = [task.dataset.train for task in self.tasks]
        if len(splits) == 1:
            return Split(splits[0].inputs[None], splits[0].targets[None])
        return Split(torch.stack([s.inputs for s in splits]), torch.stack([s.targets for s in splits]))
