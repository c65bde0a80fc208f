"""BatchNorm's running statistics as what they are: a function of the other parameters and the training images.

An error in a generated kernel moves the mean and the variance of its channel, so statistics that were generated beside
it do not fit, and every layer adds to the shift. They need not be generated: one pass over training images in batch
mode gives them. Generators that count on it are trained in batch mode, too.

Source: statistics recomputed for weights that no training run visited: Izmailov et al. 2018 (arXiv 1803.05407), section
3.2; `torch.optim.swa_utils.update_bn`.

Legend: N networks, P numbers of one network, R runs, S snapshots, B examples, K outputs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from generator.trajectories import Trajectories
from zoo.networks.layout import ParamLayout
from zoo.networks.randomness import seeded_module
from zoo.tasks.backend import output_tensor
from zoo.tasks.evaluation import evenly_chosen
from zoo.tasks.looped_module import LoopedModule
from zoo.tasks.task import Task

NUM_EXAMPLES: Final = 256  # loss and accuracy of real networks are then those with statistics of all images
_NETWORKS_PER_PASS: Final = 32
_STATISTICS: Final = ("running_mean", "running_var")


def has_batch_norm(layout: ParamLayout) -> bool:
    """Whether networks of a layout hold running statistics."""
    return any(slot.role in _STATISTICS for slot in layout)


def run_in_batch_mode(task: Task, params: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (N, B, ..., K) normalised by the statistics of the batch, and these statistics in place of the recorded.

    Args:
        task: whose networks these are.
        params: (N, P); outputs are differentiable in it.
        inputs: (B, ...) shared by all networks.

    Returns:
        Outputs, and networks (N, P) that are `params` but for their running statistics, detached.
    """
    model = _template(task, params.device)
    tensors = task.layout.unflatten(params)
    named = {slot.name: tensors[slot.name] for slot in task.layout}  # tied ones under one of their names
    buffers = {slot.name: torch.zeros_like(named[slot.name]) for slot in task.layout if slot.kind == "buffer"}
    named |= buffers

    def forward(values: dict[str, Tensor]) -> Tensor:
        return output_tensor(functional_call(model, values, (inputs,)))

    if isinstance(task.backend, LoopedModule):  # torch.func cannot run the module in batches
        outputs = torch.stack([forward({name: v[i] for name, v in named.items()}) for i in range(len(params))])
    else:
        outputs = vmap(forward, randomness="different")(named)
    updated = params.detach().clone()
    for slot in task.layout:
        if slot.role in _STATISTICS:
            updated[:, slot.span] = buffers[slot.name].reshape(len(params), -1)
    return outputs, updated


@lru_cache(2)
def _template(task: Task, device: torch.device) -> nn.Module:
    """The task's module in batch mode; its parameters do not matter."""
    model = seeded_module(task.make_model, 0).to(device, non_blocking=True).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    return model


@torch.no_grad()
def recompute_batch_norm(task: Task, params: Tensor) -> Tensor:
    """Networks (N, P) whose running statistics are those of training images, always the same.

    Raises:
        ValueError: if each network sees images of its own, which this function does not know.
    """
    if task.has_own_inputs:
        raise ValueError(
            f"running statistics cannot be recomputed: networks of {task.name!r} see inputs of their own; train the "
            "generator with recompute_batch_norm=False"
        )
    images = evenly_chosen(task.dataset.train, NUM_EXAMPLES).inputs
    return torch.cat([run_in_batch_mode(task, part, images)[1] for part in params.split(_NETWORKS_PER_PASS)])


def with_recomputed_batch_norm(runs: Trajectories, task: Task) -> Trajectories:
    """The same runs, each snapshot with the statistics that belong to its weights, measured with these; held in memory.

    Recorded statistics trail the weights by tens of steps. Early snapshots owe most of their loss to this, and prompts
    would ask for it of networks whose statistics do not trail.
    """
    metrics = {name: values.clone() for name, values in runs.metrics.items()}
    params = torch.zeros(len(runs), runs.num_snapshots, runs.layout.num_params)  # (R, S, P)
    for row, count in enumerate(runs.counts.tolist()):
        networks = runs.read(torch.full((count,), row), torch.arange(count)).to(task.device)
        networks = recompute_batch_norm(task, networks)
        params[row, :count] = networks.cpu()
        own_task = task.for_runs([int(runs.runs[row])] * count)
        for name, values in metrics.items():
            split, kind = name.split("_")
            values[row, :count] = own_task.evaluate(networks, split)[kind].cpu()
    return Trajectories(
        runs.layout,
        params,
        metrics,
        runs=runs.runs,
        counts=runs.counts,
        task_bits=runs.task_bits,
        descriptions=runs.descriptions,
        as_trained=runs.as_trained,
    )
