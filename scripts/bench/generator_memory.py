"""How much memory and time does a generator of a large network need?

    python -m scripts.bench.generator_memory [--width 2048] [--device cpu] [--num-steps 3] [--record]

The network is an MLP 784-W-W-W-10 as chunk tokens (W = 2048: 10 million parameters; W = 9900: 204 million). The
recurrence runs over all tokens, the denoiser on sampled windows in training and on all windows in sampling. Prints
parameters, seconds for each step (median) and peak memory: resident on the CPU, allocated on a GPU.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

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

from ..rows import Row, tables
from .generator_table import PACKAGES
from .record import record

CHUNK_WIDTH = 1024
WINDOW = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-steps", type=int, default=3)
    parser.add_argument("--windows", type=int, default=8, help="windows that a training step denoises")
    parser.add_argument("--record", action="store_true", help="put the rows into scripts/bench/results")
    options = parser.parse_args()
    device = torch.device(options.device)

    context, runs = make_context(options.width, device)
    nodes, edges = model_widths([context.tokenizer])
    model = RecurrentDiffusionTransformer(
        nodes, edges, {"val_loss": (0.1, 2.3)}, use_latent=False, width=256, window=WINDOW
    ).to(device)
    setting = {
        "parameters": context.layout.num_params,
        "tokens": context.tokenizer.groups[0].size,
        "generator's parameters": model.num_parameters(),
        "device": device.type,
    }
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    objective = ObjectiveConfig(
        energy_score=False, function_weight=0.0, function_energy_weight=0.0, windows_per_step=options.windows
    )
    precision = torch.autocast(device.type, torch.bfloat16)

    def train() -> None:
        batch = draw_pairs(runs, PairConfig(batch_size=1), batch_rng(0, 0)).to(device)
        loss = training_losses(model, context, batch, objective, rng=batch_rng(0, 0), precision=precision)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    rows = [row({**setting, "step": "training"}, train, options.num_steps)]
    prompt = Prompt.of({"loss": 0.5}, ["val_loss"], 1)
    scheduler = make_scheduler("sample")

    def sample() -> None:
        with precision:
            sample_params(model, context, scheduler, prompt, num_inference_steps=1)

    rows.append(row({**setting, "step": "sampling"}, sample, options.num_steps))
    print(tables(rows))
    if options.record:
        print(f"recorded in {record('generator', rows, packages=PACKAGES, device=options.device)}")


def make_context(width: int, device: torch.device) -> tuple[NetworkContext, Trajectories]:
    """Context of the network, and one run of two random snapshots."""
    layout = ParamLayout.of(MLP(784, (width, width, width), 10))
    params = torch.randn(1, 2, layout.num_params) * 0.02
    normalizer = ParamNormalizer.fit("chunk", [layout], [params[0]], chunk_width=CHUNK_WIDTH)
    runs = Trajectories(layout, params, {"val_loss": torch.tensor([[2.3, 0.5]])})
    return NetworkContext.of(normalizer, layout).to(device), runs


def row(setting: dict[str, str | int], action: Callable[[], None], num_steps: int) -> Row:
    """Median time of `action` after a warm-up, and the peak memory since the program began."""
    on_gpu = setting["device"] == "cuda"
    seconds = []
    for _ in range(num_steps + 1):
        if on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        action()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Row(
        question=__doc__.splitlines()[0],
        setting=setting,
        figures={
            "seconds": statistics.median(seconds[1:]),
            "peak memory, GiB": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else resident,
        },
        spread={"seconds": (min(seconds[1:]), max(seconds[1:]))},
        note=f"Median and range of {num_steps} steps; peak since the program began, resident on the CPU, "
        "allocated on a GPU.",
    )


if __name__ == "__main__":
    main()
