"""How much memory and time does a generator of a large network need?

    python -m scripts.bench.generator_memory [--width 2048] [--device auto] [--num-steps 3] [--record]

The network is an MLP 784-W-W-W-10 as chunk tokens (W = 2048: 10 million parameters; W = 9900: 204 million). The
recurrence runs over all tokens, the denoiser on sampled windows in training and on all windows in sampling. Prints
parameters, seconds for each step (median) and peak memory: resident on the CPU, allocated on a GPU.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from generator import ObjectiveConfig, ParamNormalizer, RecurrentDiffusionTransformer
from generator.model.context import NetworkContext
from generator.model.transformer import model_widths
from generator.prompts.prompt import Prompt
from generator.sampler import make_scheduler, sample_params
from generator.training.losses import training_losses
from generator.training.pairs import PairConfig, batch_rng, draw_pairs
from generator.trajectories import Trajectories
from zoo.networks.architectures import MLP
from zoo.networks.layout import ParamLayout

from ..allocator import keep_freed_memory
from ..rows import Row
from .command import bench
from .generator_table import PACKAGES
from .measure import forget_peak, peak_bytes, seconds

WINDOW = 64
LARGE = 9900  # width


def rows(
    *,
    width: int = 2048,
    chunk_width: int = 1024,
    device: torch.device | str = "auto",
    num_steps: int = 3,
    windows: int = 8,
) -> Iterator[Row]:
    """Training, then sampling.

    Args:
        windows: that a training step denoises
    """
    keep_freed_memory()  # as training does
    work = Work(width, chunk_width, torch.device(device), num_windows=windows)
    yield row(work, work.training, Work.train, num_steps)
    yield row(work, "sampling, 1 step", lambda work: work.sample(1), num_steps)


def stage(device: torch.device, size: str, budget: float) -> Iterator[Row]:
    """Twenty denoising steps of a whole network, then training steps on sampled windows."""
    for shape in shapes(size):
        work = Work(*shape, device)
        yield row(work, "sampling, 20 steps", lambda work: work.sample(20), 3 if size == "full" else 1)
        forget_peak(device)
        yield row(work, work.training, Work.train, 10 if size == "full" else 2)


def shapes(size: str) -> list[tuple[int, int]]:
    """Widths of network and chunks in a stage."""
    return [(LARGE, 16_384), (LARGE, 8192)] if size == "full" else [(64, 1024)]


@dataclass
class Work:
    """What a generator of one large network does: training and sampling.

    Args:
        width: W.
        chunk_width: numbers in a token.
        device: where to.
        num_windows: that a training step denoises.
    """

    width: int
    chunk_width: int
    device: torch.device
    num_windows: int = 8

    def __post_init__(self) -> None:
        forget_peak(self.device)
        layout = ParamLayout.of(MLP(784, (self.width, self.width, self.width), 10))
        params = torch.randn(1, 2, layout.num_params) * 0.02
        at_hand = params[0].to(self.device)
        normalizer = ParamNormalizer.fit("chunk", [layout], [at_hand], chunk_width=self.chunk_width)
        self.runs = Trajectories(layout, params, {"val_loss": torch.tensor([[2.3, 0.5]])})
        self.context = NetworkContext.of(normalizer, layout).to(self.device)
        nodes, edges = model_widths([self.context.tokenizer])
        ranges = {"val_loss": (0.1, 2.3)}
        model = RecurrentDiffusionTransformer(nodes, edges, ranges, use_latent=False, width=256, window=WINDOW)
        self.model = model.to(self.device)
        self.precision = torch.autocast(self.device.type, torch.bfloat16)

    @property
    def training(self) -> str:
        """What a training step is called in the table."""
        return f"training, {self.num_windows} of {math.ceil(self.context.tokenizer.groups[0].size / WINDOW)} windows"

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), 1e-4)

    def train(self) -> None:
        """One training step."""
        objective = ObjectiveConfig(
            energy_score=False, function_weight=0.0, function_energy_weight=0.0, windows_per_step=self.num_windows
        )
        rng, batch = batch_rng(0, 0), draw_pairs(self.runs, PairConfig(batch_size=1), batch_rng(0, 0)).to(self.device)
        losses = training_losses(self.model, self.context, batch, objective, rng=rng, precision=self.precision)
        self.optimizer.zero_grad()
        losses["total"].backward()
        self.optimizer.step()

    def sample(self, num_steps: int) -> None:
        """One network."""
        prompt = Prompt.of({"loss": 0.5}, ["val_loss"], 1).to(self.device)
        with self.precision:
            sample_params(self.model, self.context, make_scheduler("sample"), prompt, num_inference_steps=num_steps)


def row(work: Work, step: str, action: Callable[[Work], None], num_steps: int) -> Row:
    """Median time of `action`, and the peak memory since the work was prepared."""
    times = seconds(lambda: action(work), work.device, num_steps)
    return Row(
        question=__doc__.splitlines()[0],
        setting={
            "parameters": work.context.layout.num_params,
            "tokens": work.context.tokenizer.groups[0].size,
            "generator's parameters": work.model.num_parameters(),
            "device": work.device.type,
            "step": step,
        },
        figures={"seconds": statistics.median(times), "peak memory, GiB": peak_bytes(work.device) / 2**30},
        spread={"seconds": (min(times), max(times))},
        note=f"Median and range of {num_steps} step(s); the peak is resident on the CPU, allocated on a GPU.",
    )


if __name__ == "__main__":
    bench("generator", rows, packages=PACKAGES)
