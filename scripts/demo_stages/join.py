"""Stage "join": networks that the generator made are the start of a training by a learned optimizer.

The population trainer takes the learned rule in place of Adam, so all networks of a kind are one batched program.

Legend: N networks, S snapshots, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from omegaconf import DictConfig
from rich.progress import Progress
from torch import Tensor

from generator import PipelineSampler, Testbed
from learned_opt import load_pretrained
from learned_opt.rules.population import PopulationOptimizer
from zoo import Task, train_population
from zoo.devices import resolve_device
from zoo.networks.initialization import run_seed
from zoo.training.population import Snapshot, quadratic_steps

from ..cli import console
from .build import open_zoo
from .prompt import METRIC, unseen_starts
from .stage import StageResult
from .train import open_pipeline

OPTIMIZER: Final = "mulo-norm"
QUANTILES: Final = (0.1, 0.5, 0.9)
_DATA_SEED: Final = 2**41  # an order of the minibatches that no run of the zoo saw


def run(config: DictConfig) -> StageResult:
    options = config.join
    testbed = Testbed.from_zoo(open_zoo(config))
    starts = unseen_starts(testbed.task, options.num_networks, config.seed, stream="join")
    sampler = PipelineSampler(open_pipeline(config), testbed.task)
    asked = {METRIC: torch.full((len(starts),), testbed.floor)}
    generated = sampler(starts, asked, torch.Generator().manual_seed(config.seed))
    task = testbed.task.to(resolve_device(config.device))
    steps = quadratic_steps(options.num_steps)
    kinds = {"random": starts, "generated": generated}
    curves = {}
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=len(kinds) * len(steps))
        for kind, networks in kinds.items():
            measured = []
            for snapshot in fine_tune(task, networks, config):
                measured.append(task.evaluate(snapshot.params, "test"))
                progress.advance(bar)
            curves[kind] = {name: torch.stack([one[name] for one in measured], 1).cpu() for name in ("loss", "error")}
    levels = torch.tensor(QUANTILES)
    quantiles = {
        kind: {name: values.quantile(levels, dim=0) for name, values in one.items()} for kind, one in curves.items()
    }
    return StageResult(_numbers(steps, curves, testbed.floor), {"steps": steps, "levels": QUANTILES, **quantiles})


def fine_tune(task: Task, networks: Tensor, config: DictConfig) -> Iterator[Snapshot]:
    """Snapshots of networks (N, P) in training by the learned optimizer, at quadratically spaced steps."""
    loaded = load_pretrained(OPTIMIZER)
    return train_population(
        task,
        PopulationOptimizer(loaded.rule, loaded.theta),
        range(len(networks)),
        num_steps=config.join.num_steps,
        batch_size=config.join.batch_size,
        data_seed=run_seed(config.seed, _DATA_SEED),
        init_params=networks,
        compile=False,
    )


def steps_until(steps: tuple[int, ...], losses: Tensor, level: float) -> int | None:
    """First of the steps (S,) at which the median over networks of losses (N, S) is at or below a level."""
    reached = [step for step, loss in zip(steps, losses.median(0).values.tolist(), strict=True) if loss <= level]
    return reached[0] if reached else None


def _numbers(steps: tuple[int, ...], curves: dict[str, dict[str, Tensor]], floor: float) -> dict:
    accuracy = {kind: 1 - one["error"] for kind, one in curves.items()}
    at_start = curves["generated"]["loss"][:, 0].median().item()
    return {
        "prompt": floor,
        "num_networks": len(curves["random"]["loss"]),
        "num_steps": steps[-1],
        "generated_loss_before_training": at_start,
        "steps_random_start_needs": steps_until(steps, curves["random"]["loss"], at_start),
        "accuracy_before_training": {kind: one[:, 0].mean().item() for kind, one in accuracy.items()},
        "accuracy_after_training": {kind: one[:, -1].mean().item() for kind, one in accuracy.items()},
        "lowest_median_loss": {kind: one["loss"].median(0).values.min().item() for kind, one in curves.items()},
    }
