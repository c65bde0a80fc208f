"""Stage "optimizer": an unseen network on other data, in an ordinary PyTorch loop, by learned optimizers and AdamW.

Legend: T inner steps, S seeds, R learning rates.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from learned_opt import MuLO, load_pretrained
from learned_opt.optimizer.torch_optimizer import RECOMMENDED
from learned_opt.rules.registry import rules_digest
from zoo import Task, get_task
from zoo.devices import resolve_device
from zoo.networks.initialization import run_seed
from zoo.settings import digest
from zoo.storage.durable import write_file

from ..allocator import keep_freed_memory
from ..cli import console
from .stage import StageResult

ADAMW: Final = "AdamW, default 1e-3"
COSINE: Final = "AdamW + cosine"
TUNED: Final = "AdamW + cosine, tuned"
MULO: Final = "MuLO(model)"
MULO_TOLD_STEPS: Final = "MuLO(model, num_training_steps=T)"
_WEIGHTS: Final = {MULO: RECOMMENDED[False], MULO_TOLD_STEPS: RECOMMENDED[True]}
NUM_CURVE_POINTS: Final = 50

MakeOptimizer = Callable[[nn.Module], tuple[torch.optim.Optimizer, LRScheduler | None]]


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
    options = config.optimizer
    task = get_task(**OmegaConf.to_container(options.task, resolve=True)).to(resolve_device(config.device))
    rates = [float(rate) for rate in options.learning_rates]
    if not rates or min(rates) <= 0:
        raise ValueError(f"optimizer.learning_rates must be positive numbers, got {rates}")
    methods = all_methods(rates, options.num_steps)
    runs: dict[str, list[Trained]] = {name: [] for name in methods}
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=len(methods) * options.num_seeds)
        for name, make in methods.items():
            for seed in range(options.num_seeds):
                progress.update(bar, description=f"{name}, seed {seed}")
                settings = [name, seed, options.num_steps, options.batch_size, config.seed, task.config]
                if name in _WEIGHTS:  # whose results are not those of other weights or of another release's rule
                    settings += [rules_digest(), load_pretrained(_WEIGHTS[name]).hash]
                path = Path(str(config.out)) / "optimizer" / f"{digest(settings)[:16]}.json"
                if not path.exists():  # it is there from an earlier session
                    write_file(path, [json.dumps(asdict(train(task, make, config, seed=seed))).encode()])
                runs[name].append(Trained(**json.loads(path.read_text())))
                progress.advance(bar)
    tuned = {measure: best_rate(runs, rates, measure) for measure in ("mean_loss", "val_error")}
    return StageResult(_numbers(runs, tuned, task), _data(runs, tuned["mean_loss"], options.num_steps))


def train(task: Task, make: MakeOptimizer, config: DictConfig, *, seed: int) -> Trained:
    """Train one network as everybody does. Network and minibatches of a seed are the same for all methods."""
    num_steps, batch_size = config.optimizer.num_steps, config.optimizer.batch_size
    rng = torch.Generator().manual_seed(run_seed(config.seed, seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run_seed(config.seed, seed))
        model = task.make_model().to(task.device)
    inputs, targets = task.dataset.train.inputs, task.dataset.train.targets
    optimizer, scheduler = make(model)
    losses = []
    for _ in range(num_steps):
        batch = torch.randint(len(inputs), (batch_size,), generator=rng).to(task.device)
        loss = F.cross_entropy(model(inputs[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.detach())
    values = torch.stack(losses).cpu().double().numpy()
    pieces = np.array_split(values, min(NUM_CURVE_POINTS, num_steps))
    if isinstance(optimizer, MuLO):
        optimizer.eval()  # where it does not know the end of the run, averaged weights are what to keep
    params = task.layout.flatten(model)[None]
    val, test = (task.evaluate(params, split)["error"].item() for split in ("val", "test"))
    return Trained([float(piece.mean()) for piece in pieces], float(values.mean()), val, test)


def all_methods(rates: list[float], num_steps: int) -> dict[str, MakeOptimizer]:
    """Optimizers by name; AdamW + cosine at each of the learning rates."""

    def cosine(model: nn.Module, rate: float) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        return optimizer, CosineAnnealingLR(optimizer, num_steps)

    return {
        ADAMW: lambda model: (torch.optim.AdamW(model.parameters()), None),
        **{f"{COSINE}, {rate:g}": partial(cosine, rate=rate) for rate in rates},
        MULO: lambda model: (MuLO(model), None),
        MULO_TOLD_STEPS: lambda model: (MuLO(model, num_training_steps=num_steps), None),
    }


def best_rate(runs: dict[str, list[Trained]], rates: list[float], measure: str) -> float:
    """Learning rate at which AdamW + cosine has the lowest mean over seeds of "mean_loss" or "val_error"."""
    return min(rates, key=lambda rate: np.mean([getattr(one, measure) for one in runs[f"{COSINE}, {rate:g}"]]))


def _numbers(runs: dict[str, list[Trained]], tuned: dict[str, float], task: Task) -> dict:
    """Each figure of the tuned rival at the learning rate that is best for it: the most that tuning can give."""
    methods = {}
    for name in (ADAMW, TUNED, MULO, MULO_TOLD_STEPS):
        for_loss, for_error = (runs[f"{COSINE}, {rate:g}" if name == TUNED else name] for rate in tuned.values())
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
        "best_rate": {"mean_loss": tuned["mean_loss"], "test_accuracy": tuned["val_error"]},
        "loss_ratio": {name: one["mean_loss"] / reference for name, one in methods.items()},
        "methods": methods,
    }


def _data(runs: dict[str, list[Trained]], rate: float, num_steps: int) -> dict:
    """Training curves of the methods: lowest, mean and highest over seeds at each piece of the run."""
    curves = {}
    for name in (ADAMW, TUNED, MULO, MULO_TOLD_STEPS):
        values = np.array([one.curve for one in runs[f"{COSINE}, {rate:g}" if name == TUNED else name]])
        curves[name] = [values.min(0), values.mean(0), values.max(0)]
    pieces = np.array_split(np.arange(num_steps), min(NUM_CURVE_POINTS, num_steps))
    return {"steps": [float(piece.mean()) + 1 for piece in pieces], "curves": curves}
