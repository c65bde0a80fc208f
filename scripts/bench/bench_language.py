"""Which optimizer trains a transformer on Python source furthest in equal steps?

    python -m scripts.bench.bench_language [--minutes 3] [--device auto] [--size full] [--record]

One network (full: 85 million parameters, 12 blocks of width 768, context 512; tiny: a few thousand) on the bytes of
Python's standard library, in an ordinary PyTorch loop under bfloat16: mulo-norm as it is, Muon (with AdamW for what is
no hidden matrix) and AdamW at two learning rates each, with a linear warm-up and cosine decay. All begin with the same
network and meet the same minibatches. The number of steps is what the minutes allow: compare within one recording only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from learned_opt import MuLO
from zoo.networks.architectures import ByteTransformer
from zoo.networks.roles import infer_roles
from zoo.tasks.datasets import Dataset, Split, get_dataset

from ..rows import Row
from .command import bench
from .measure import forget_peak, peak_bytes, seconds, synchronize

RATES = (6e-4, 2e-3)
WARM_UP = 0.05  # share of the steps
RESERVE = 0.15  # share of the budget that is left for evaluation
Make = Callable[[nn.Module, int], list[torch.optim.Optimizer]]  # for a network and that many steps


def rows(*, minutes: float = 3.0, device: torch.device | str = "auto", size: str = "full") -> Iterator[Row]:
    """All methods.

    Args:
        size: full or tiny
    """
    yield from stage(torch.device(device), size, 60 * minutes)


def stage(device: torch.device, size: str, budget: float) -> Iterator[Row]:
    """Losses of every method after equal steps, as many as the seconds of the budget allow."""
    began = time.perf_counter()
    setup = Setup.of(size, device)
    costs = [seconds(Training(setup, make, 100).step, device, 3) for make in METHODS.values()]
    left = (1 - RESERVE) * (budget - (time.perf_counter() - began))
    num_steps = max(10, int(left / sum(map(max, costs))))
    for name, make in METHODS.items():
        yield row(name, setup, make, num_steps)


@dataclass(frozen=True)
class Setup:
    """Shape of the network, and its text on the device."""

    width: int
    num_blocks: int
    batch_size: int
    text: Dataset
    device: torch.device

    @classmethod
    def of(cls, size: str, device: torch.device) -> Setup:
        if size == "full":
            return cls(768, 12, 32, get_dataset("python_source", size=10_000_000, context=512).to(device), device)
        return cls(16, 1, 8, get_dataset("python_source", size=100_000, context=32).to(device), device)

    def network(self) -> nn.Module:
        """The initial network, the same at each call."""
        context = self.text.train.inputs.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = ByteTransformer(
                self.text.num_classes, context, self.width, self.num_blocks, max(2, self.width // 64)
            )
        return model.to(self.device)

    def loss(self, model: nn.Module, split: Split, index: Tensor) -> Tensor:
        """Mean loss in nats a byte of those windows of a split."""
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = model(split.inputs[index])  # (B, L, vocabulary)
        return F.cross_entropy(logits.flatten(0, 1).float(), split.targets[index].flatten())


class Training:
    """One training; `step` makes the next of its steps, of which `losses` keeps the losses on the device."""

    def __init__(self, setup: Setup, make: Make, num_steps: int) -> None:
        self.setup = setup
        self.model = setup.network()
        self.optimizers = make(self.model, num_steps)
        self.schedulers = [
            LambdaLR(optimizer, partial(warm_up_and_cosine, num_steps=num_steps))
            for optimizer in self.optimizers
            if not isinstance(optimizer, MuLO)
        ]
        self.rng = torch.Generator().manual_seed(0)
        self.losses: list[Tensor] = []

    def step(self) -> None:
        train = self.setup.text.train
        index = torch.randint(len(train), (self.setup.batch_size,), generator=self.rng).to(self.setup.device)
        loss = self.setup.loss(self.model, train, index)
        self.model.zero_grad()
        loss.backward()
        for changing in (*self.optimizers, *self.schedulers):
            changing.step()
        self.losses.append(loss.detach())


def warm_up_and_cosine(step: int, num_steps: int) -> float:
    """Factor on the learning rate."""
    progress = (step + 1) / num_steps
    return min(progress / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))


def muon(model: nn.Module, num_steps: int, lr: float) -> list[torch.optim.Optimizer]:
    roles = infer_roles(model)
    hidden = [param for name, param in model.named_parameters() if roles[name].role == "hidden"]
    others = [param for name, param in model.named_parameters() if roles[name].role != "hidden"]
    return [torch.optim.Muon(hidden, lr=lr, adjust_lr_fn="match_rms_adamw"), torch.optim.AdamW(others, lr=lr)]


METHODS: dict[str, Make] = {
    "mulo-norm": lambda model, num_steps: [MuLO(model, "mulo-norm", num_training_steps=num_steps)],
    **{f"Muon, {lr:g}": partial(muon, lr=lr) for lr in RATES},
    **{f"AdamW, {lr:g}": lambda model, _, lr=lr: [torch.optim.AdamW(model.parameters(), lr=lr)] for lr in RATES},
}


def row(name: str, setup: Setup, make: Make, num_steps: int) -> Row:
    forget_peak(setup.device)
    training = Training(setup, make, num_steps)
    began = time.perf_counter()
    for _ in range(num_steps):
        training.step()
    synchronize(setup.device)
    spent = time.perf_counter() - began
    losses = torch.stack(training.losses)
    with torch.no_grad():
        batches = torch.arange(min(256, len(setup.text.val)), device=setup.device).split(setup.batch_size)
        val_loss = torch.stack([setup.loss(training.model, setup.text.val, index) for index in batches]).mean()
    return Row(
        question=__doc__.splitlines()[0],
        setting={
            "parameters": sum(param.numel() for param in training.model.parameters()),
            "batch": f"{setup.batch_size} x {setup.text.train.inputs.shape[1]}",
            "optimizer": name,
        },
        figures={
            "steps": num_steps,
            "training loss, last tenth": losses[-max(1, num_steps // 10) :].mean().item(),
            "training loss, whole run": losses.mean().item(),
            "val loss": val_loss.item(),
            "ms a step": 1e3 * spent / num_steps,
            "peak memory, GiB": peak_bytes(setup.device) / 2**30,
        },
        note="Losses in nats a byte. One training each; forward passes under bfloat16, weights in float32.",
    )


if __name__ == "__main__":
    bench("language", rows)
