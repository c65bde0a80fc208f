"""Whether data, module and objective fit together: asked once, when a task is made.

Legend: n examples, B of them, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from zoo.tasks.backend import first_line, output_tensor, seeded_module
from zoo.tasks.datasets import SPLIT_NAMES, Dataset
from zoo.tasks.objectives import ChecksTargets, Objective


def check_splits(dataset: Dataset) -> None:
    """Raise ValueError unless all splits have finite examples of one shape and kind, with one target each."""
    for name in SPLIT_NAMES:
        split = dataset.split(name)
        if len(split.inputs) != len(split.targets) or not len(split):
            raise ValueError(
                f"{name} split of {dataset.name!r}: expected one example or more with one target each, got "
                f"{len(split.inputs)} inputs and {len(split.targets)} targets"
            )
        for kind, values, wanted in (
            ("inputs", split.inputs, dataset.train.inputs),
            ("targets", split.targets, dataset.train.targets),
        ):
            if values.shape[1:] != wanted.shape[1:] or values.dtype != wanted.dtype:
                raise ValueError(
                    f"{name} split of {dataset.name!r}: expected {kind} as in the train split, "
                    f"{_describe(wanted)}, got {_describe(values)}"
                )
            if values.is_floating_point() and not values.isfinite().all():
                num_bad = int((~values.isfinite()).sum())
                raise ValueError(
                    f"{name} split of {dataset.name!r}: expected finite {kind}, got {num_bad:,} of {values.numel():,} "
                    "values NaN or infinite; fill them in, or leave those examples out"
                )


def check_module(build: Callable[[], nn.Module], module: nn.Module) -> None:
    """Raise ValueError unless `build` makes a new module each time, with parameters that can all be trained."""
    if seeded_module(build, 0) is module:
        raise ValueError("build must make a new module each time it is called, got the same one twice")
    lazy = [name for name, param in module.named_parameters() if is_lazy(param)]
    if lazy:
        raise ValueError(f"{lazy} have no size before they have seen data; run the module on an example in build")
    frozen = [name for name, param in module.named_parameters() if not param.requires_grad]
    if frozen:
        raise ValueError(f"a task trains all parameters; {frozen} do not require gradients: make them buffers")


@torch.no_grad()
def trial_outputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs (B, ..., K) in evaluation mode on inputs (B, ...).

    Raises:
        ValueError: if there are none, or those for an example depend on the other examples: evaluation goes by parts.
    """
    try:
        outputs = output_tensor(module.eval()(inputs))
    except Exception as error:  # modules may run into anything
        raise ValueError(f"the module cannot be run on inputs {_describe(inputs)}: {first_line(error)}") from error
    if outputs.ndim < 2 or len(outputs) != len(inputs):
        raise ValueError(
            f"expected outputs ({len(inputs)}, ..., K) for {len(inputs)} examples, got {tuple(outputs.shape)}"
        )
    try:
        alone = output_tensor(module(inputs[-1:]))
        depends = alone.shape != outputs[-1:].shape or not torch.allclose(
            alone, outputs[-1:], rtol=1e-2, atol=1e-3 * outputs.abs().max().item(), equal_nan=True
        )
    except ValueError:  # of normalisation that wants several examples
        depends = True
    if depends:
        raise ValueError(
            "the module's outputs for an example depend on the others, also in evaluation (batch_first=False? "
            "normalisation by the batch? random numbers?); evaluation goes by parts, and would depend on their size"
        )
    return outputs


def check_fit(objective: Objective, outputs: Tensor, targets: Tensor, num_classes: int) -> None:
    """Raise ValueError unless an objective can score outputs (B, ..., K) of one network on targets (n, ...).

    Of an objective that checks nothing itself, the loss of these examples must be the mean of their own losses, as
    evaluation in parts assumes; it is not where outputs and targets are broadcast against each other.
    """
    if isinstance(objective, ChecksTargets):
        objective.check_targets(outputs, targets, num_classes)
        return
    count = min(len(outputs), len(targets))
    outputs, targets = outputs[:count], targets[:count]
    whole = objective.loss(outputs[None], targets)
    if whole.shape != (1,):
        raise ValueError(f"objective {objective.name!r}: expected losses (N,), got {tuple(whole.shape)} for N = 1")
    pairs = zip(outputs.split(1), targets.split(1), strict=True)
    mean = torch.cat([objective.loss(output[None], target) for output, target in pairs]).mean()
    if not torch.allclose(whole, mean, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"objective {objective.name!r}: expected the mean of the losses of single examples, {mean:.6g}, got "
            f"{whole.item():.6g} for {count} together; are outputs {tuple(outputs.shape)} and targets "
            f"{tuple(targets.shape)} broadcast against each other?"
        )


def _describe(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} {('n', *values.shape[1:])}".replace("'n'", "n")
