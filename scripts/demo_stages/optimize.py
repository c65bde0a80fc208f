"""Stage "optimizer": an unseen network on other data, in an ordinary PyTorch loop, by learned optimizers and AdamW.

Legend: T inner steps, S seeds, R learning rates.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from learned_opt import MuLO
from learned_opt.meta_training.allocator import keep_freed_memory
from zoo import Task, get_task
from zoo.networks.initialization import run_seed
from zoo.storage.durable import write_file

from ..cli import console
from .stage import StageResult

ADAMW: Final = "AdamW, default 1e-3"
COSINE: Final = "AdamW + cosine"
TUNED: Final = "AdamW + cosine, tuned"
MULO: Final = "MuLO(model)"
MULO_NORM: Final = "MuLO(model, num_training_steps=T)"
NUM_CURVE_POINTS: Final = 50

MakeOptimizer = Callable[[nn.Module, int], tuple[torch.optim.Optimizer, LRScheduler | None]]


@dataclass(frozen=True)
class Trained:
    """One network after training.

    Attributes:
        curve: mean training loss in equal pieces of the run, nats.
        mean_loss: over all steps.
        val_error, test_error: after the last step.
    """

    curve: list[float]
    mean_loss: float
    val_error: float
    test_error: float


def run(config: DictConfig) -> StageResult:
    keep_freed_memory()
    options, num_steps = config.optimizer, config.optimizer.num_steps
    task = get_task(**OmegaConf.to_container(options.task, resolve=True))
    rates = [float(rate) for rate in options.learning_rates]
    if not rates or min(rates) <= 0:
        raise ValueError(f"optimizer.learning_rates must be positive numbers, got {rates}")
    methods = all_methods(rates)
    folder = Path(str(config.out)) / "optimizer"
    runs: dict[str, list[Trained]] = {name: [] for name in methods}
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=len(methods) * options.num_seeds)
        for number, (name, make) in enumerate(methods.items()):
            for i in range(options.num_seeds):
                progress.update(bar, description=f"{name}, seed {i}")
                path = folder / f"{number}-{i}.json"
                identity = [name, i, num_steps, options.batch_size, config.seed, task.config]
                runs[name].append(_kept(path, identity, lambda make=make, i=i: train(task, make, config, seed=i)))
                progress.advance(bar)
    return StageResult(_numbers(runs, rates, task), _data(runs, rates, num_steps))


def train(task: Task, make: MakeOptimizer, config: DictConfig, *, seed: int) -> Trained:
    """Train one network as everybody does. Network and minibatches of a seed are the same for all methods."""
    num_steps, batch_size = config.optimizer.num_steps, config.optimizer.batch_size
    rng = torch.Generator().manual_seed(run_seed(config.seed, seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run_seed(config.seed, seed))
        model = task.make_model()
    inputs, targets = task.dataset.train.inputs, task.dataset.train.targets
    optimizer, scheduler = make(model, num_steps)
    losses = []
    for _ in range(num_steps):
        batch = torch.randint(len(inputs), (batch_size,), generator=rng)
        loss = F.cross_entropy(model(inputs[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    pieces = np.array_split(np.array(losses), min(NUM_CURVE_POINTS, num_steps))
    params = task.layout.flatten(model)[None]
    val, test = (task.evaluate(params, split)["error"].item() for split in ("val", "test"))
    return Trained([float(piece.mean()) for piece in pieces], float(np.mean(losses)), val, test)


def all_methods(rates: list[float]) -> dict[str, MakeOptimizer]:
    """Optimizers by name; AdamW + cosine at each of the learning rates."""
    return {
        ADAMW: lambda model, num_steps: (torch.optim.AdamW(model.parameters()), None),
        **{f"{COSINE}, {rate:g}": _cosine(rate) for rate in rates},
        MULO: lambda model, num_steps: (MuLO(model), None),
        MULO_NORM: lambda model, num_steps: (MuLO(model, num_training_steps=num_steps), None),
    }


def _cosine(rate: float) -> MakeOptimizer:
    def make(model: nn.Module, num_steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        return optimizer, CosineAnnealingLR(optimizer, num_steps)

    return make


def _kept(path: Path, identity: list[object], compute: Callable[[], Trained]) -> Trained:
    """What a file of an earlier session holds if it is of that identity, or the result of computing it now."""
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["identity"] == identity:
            return Trained(**kept["trained"])
    trained = compute()
    write_file(path, [json.dumps({"identity": identity, "trained": asdict(trained)}).encode()])
    return trained


def best_rate(runs: dict[str, list[Trained]], rates: list[float], measure: str) -> float:
    """Learning rate at which AdamW + cosine has the lowest mean over seeds of "mean_loss" or "val_error"."""
    return min(rates, key=lambda rate: np.mean([getattr(one, measure) for one in runs[f"{COSINE}, {rate:g}"]]))


def _numbers(runs: dict[str, list[Trained]], rates: list[float], task: Task) -> dict:
    """Each figure of the tuned rival at the learning rate that is best for it: the most that tuning can give."""
    by_loss, by_error = (best_rate(runs, rates, measure) for measure in ("mean_loss", "val_error"))
    methods = {}
    for name in (ADAMW, TUNED, MULO, MULO_NORM):
        for_loss = runs[f"{COSINE}, {by_loss:g}" if name == TUNED else name]
        for_error = runs[f"{COSINE}, {by_error:g}" if name == TUNED else name]
        losses = [one.mean_loss for one in for_loss]
        accuracies = [1 - one.test_error for one in for_error]
        methods[name] = {
            "mean_loss": float(np.mean(losses)),
            "mean_loss_range": [min(losses), max(losses)],
            "test_accuracy": float(np.mean(accuracies)),
            "test_accuracy_range": [min(accuracies), max(accuracies)],
        }
    reference = methods[TUNED]["mean_loss"]
    return {
        "task": task.config,
        "num_params": task.layout.num_params,
        "num_seeds": len(runs[ADAMW]),
        "best_rate": {"mean_loss": by_loss, "test_accuracy": by_error},
        "loss_ratio": {name: one["mean_loss"] / reference for name, one in methods.items()},
        "methods": methods,
    }


def _data(runs: dict[str, list[Trained]], rates: list[float], num_steps: int) -> dict:
    """Training curves of the methods: lowest, mean and highest over seeds at each piece of the run."""
    rate = best_rate(runs, rates, "mean_loss")
    curves = {}
    for name in (ADAMW, TUNED, MULO, MULO_NORM):
        values = np.array([one.curve for one in runs[f"{COSINE}, {rate:g}" if name == TUNED else name]])
        curves[name] = [[float(f"{v:.4g}") for v in row] for row in (values.min(0), values.mean(0), values.max(0))]
    pieces = np.array_split(np.arange(num_steps), min(NUM_CURVE_POINTS, num_steps))
    return {"steps": [float(piece.mean()) + 1 for piece in pieces], "curves": curves}
