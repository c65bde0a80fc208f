"""Families of tasks of one shape, as an inner training sees them: its data, scales and minibatches.

Legend: N networks, C copies, G groups (N = C x G), B examples, S tasks,
P numbers of one network (the first T trainable).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from zoo.tasks.dataset import Split
from zoo.tasks.families.family_task import FamilyTask
from zoo.tasks.task import Batch, Task

MAX_EVALUATED: Final = 512  # examples of a split
_NETWORKS_AT_ONCE: Final = 64


class TaskFamily:
    """Tasks that differ in their data alone, so that one batched program trains networks on all of them.

    Args:
        tasks: of equal layouts and equally large training splits.
        batch_size: B, drawn with replacement.
        init_scale: factor on the initial matrices and embeddings.
        param_scale: networks are stored divided by this number, so a rule meets parameters and gradients of another
            scale while the networks compute the same (global reparametrisation; Moudgil et al. 2026, arXiv
            2602.19142, draw it from 1e-3..1e3).

    Raises:
        ValueError: if the tasks do not fit together.
    """

    is_compilable = False  # thetas change too soon for ten seconds of compiling to pay

    def __init__(
        self, tasks: Sequence[Task], *, batch_size: int = 64, init_scale: float = 1.0, param_scale: float = 1.0
    ) -> None:
        if isinstance(tasks, Task):
            raise TypeError(f"tasks must be a sequence, as TaskFamily([task]), got {tasks!r} itself")
        if len({task.layout for task in tasks}) != 1 or len({len(task.dataset.train) for task in tasks}) != 1:
            named = [(task.name, task.layout.num_params, len(task.dataset.train)) for task in tasks]
            raise ValueError(f"tasks must share layout and number of training examples, got {named}")
        if without_loss := [task.name for task in tasks if "loss" not in task.metric_names]:
            raise ValueError(f"a family is of tasks with a loss on examples, {without_loss} have returns instead")
        if of_families := [task.name for task in tasks if isinstance(task, FamilyTask)]:
            raise ValueError(f"tasks must be of one data set each, {of_families} are families with many members")
        if random := [task.name for task in tasks if task.is_random]:
            raise ValueError(
                f"meta-training repeats to the bit, but {random} draw random numbers in training (dropout, "
                "augmentations); switch that off"
            )
        self.tasks = list(tasks)
        self.layout = tasks[0].layout
        self.batch_size = batch_size
        self.init_scale = init_scale
        self.param_scale = param_scale
        self.name = f"{tasks[0].name}-b{batch_size}"

    @property
    def device(self) -> torch.device:
        return self.tasks[0].device

    def to(self, device: torch.device | str) -> TaskFamily:
        """This family with its data on another device."""
        moved = copy.copy(self)
        moved.tasks = [task.to(device) for task in self.tasks]
        moved.__dict__.pop("_train", None)
        return moved

    def init(self, seeds: Tensor) -> Tensor:
        """(G, P) initial networks; row i depends on seeds[i] alone."""
        params = self.tasks[0].init_runs(seeds.tolist(), self.init_scale)
        params[:, : self.layout.num_trainable] /= self.param_scale
        return params

    def batch(self, members: Tensor, places: Tensor, num_networks: int) -> Batch:
        """A minibatch for each group of networks, the copies of a group sharing theirs.

        Args:
            members: (G,) index of each group's task.
            places: (G, B) in [0, 1), places in the training split, on the data's device.
            num_networks: N.
        """
        train = self._train
        index = (places * train.inputs.shape[1]).long()
        which, copies = members.to(index.device, non_blocking=True)[:, None], num_networks // len(index)
        drawn = (tensor[which, index] for tensor in (train.inputs, train.targets))  # (G, B, ...)
        if len(index) == 1:  # all networks share the minibatch
            return Batch(*(tensor[0] for tensor in drawn))
        return Batch(*(tensor.repeat(copies, *[1] * (tensor.ndim - 1)) for tensor in drawn))

    def loss(self, params: Tensor, batch: Batch) -> Tensor:
        """Losses (N,) in nats, differentiable in `params` (N, P)."""
        return self.tasks[0].loss(self._computing(params), batch)

    def loss_and_grad(self, params: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (N,) in nats and their gradients (N, T); buffers in `params` (N, P) advance in place."""
        computing = self._computing(params)
        loss, grads = self.tasks[0].loss_and_grad(computing, batch)
        if computing is not params:
            params[:, self.layout.num_trainable :] = computing[:, self.layout.num_trainable :]
            grads = grads * self.param_scale
        return loss, grads

    @torch.no_grad()
    def evaluate(self, params: Tensor, members: Tensor, split: str = "val") -> tuple[Tensor, Tensor]:
        """Loss in nats and error, each (N,), on at most 512 examples of a split; `members` as in `batch`."""
        computing = self._computing(params)
        which = members.repeat(len(params) // len(members))
        loss, error = params.new_empty(len(params)), params.new_empty(len(params))
        for index, task in enumerate(self.tasks):
            examples = task.dataset.split(split)
            inputs, targets = examples.inputs[:MAX_EVALUATED], examples.targets[:MAX_EVALUATED]
            rows = (which == index).nonzero().flatten().to(params.device)
            for part in rows.split(_NETWORKS_AT_ONCE) if len(rows) else ():
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

    @cached_property
    def _train(self) -> Split:
        """Training splits of all tasks on top of each other, inputs (S, n, ...)."""
        splits = [task.dataset.train for task in self.tasks]
        return Split(torch.stack([s.inputs for s in splits]), torch.stack([s.targets for s in splits]))
