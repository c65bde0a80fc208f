"""How many inner steps a second does meta-training do?

    python -m scripts.bench.bench_meta_train [--num-repeats 9] [--record]

One outer step of PES: 8 antithetic pairs of 64-32-10 MLPs on the digits, batch 64, a truncation of 50 steps; an inner
step is one update of one network, gradient included. Rules: small_fc_lopt with 32 hidden units and the normalised
rule. Once in one process with two threads, once in two processes of one thread that split the pairs and average their
gradients (`num_devices=2` of `scripts.meta_train`).
"""

from __future__ import annotations

import os
import socket
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from learned_opt import MlpRule, NormalizedRule, UpdateRule
from learned_opt.meta_training import Devices, FabricDevices, TaskFamily, synthetic_data
from learned_opt.meta_training.estimators import PES, FullUnrollES
from learned_opt.meta_training.objective import LogLossObjective
from learned_opt.meta_training.task_distribution import mlp_task
from learned_opt.meta_training.truncated_step import LogUniformHorizon, TruncatedStep

from ..allocator import keep_freed_memory
from ..rows import Row
from .command import bench
from .measure import forget_peak, peak_bytes, seconds

NUM_PAIRS = 8
TRUNCATION = 50
RULES: dict[str, UpdateRule] = {"small_fc_lopt, H = 32": MlpRule(hidden=32), "normalised": NormalizedRule()}
PES_METHOD, FULL_UNROLL = "PES", "full-unroll ES"


def rows(*, num_repeats: int = 9) -> Iterator[Row]:
    for name in RULES:
        yield row(name, "1 x 2", outer_steps(name, num_repeats))
    with TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(one_of_two, (port, num_repeats, folder), nprocs=2)
        for name, measured in torch.load(Path(folder) / "seconds.pt").items():
            yield row(name, "2 x 1", measured)


def one_of_two(rank: int, port: int, num_repeats: int, folder: str) -> None:
    """A process that holds half of the pairs."""
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", plugins=[LightningEnvironment()])
    fabric.launch()
    torch.set_num_threads(1)
    devices = FabricDevices(fabric)
    measured = {name: outer_steps(name, num_repeats, devices) for name in RULES}
    if rank == 0:
        torch.save(measured, Path(folder) / "seconds.pt")
    devices.close()


def outer_steps(rule: str, num_repeats: int, devices: Devices | None = None) -> list[float]:
    """Wall times of outer steps."""
    keep_freed_memory()
    step = outer_step(RULES[rule], NUM_PAIRS, TRUNCATION, torch.device("cpu"), devices=devices)
    return seconds(step, torch.device("cpu"), num_repeats)


def outer_step(
    rule: UpdateRule,
    num_pairs: int,
    num_inner_steps: int,
    device: torch.device,
    *,
    method: str = PES_METHOD,
    devices: Devices | None = None,
) -> Callable[[], object]:
    """A function that does one outer step, of a truncation or a whole training of that many inner steps."""
    devices = devices or Devices()
    family = TaskFamily([mlp_task(synthetic_data.digits_images(8), [32]).to(device)], batch_size=64)
    theta = rule.init_theta(torch.Generator().manual_seed(0)).to(device)
    rng = torch.Generator().manual_seed(0)
    if method == FULL_UNROLL:
        objective = LogLossObjective()
        whole = FullUnrollES(rule, lambda _: (family, num_inner_steps), objective, num_pairs=num_pairs, std=0.01)
        return lambda: whole.estimate(theta, rng)
    held = devices.share(num_pairs)
    unroll = TruncatedStep(
        rule, family, LogUniformHorizon(100, 1000), num_groups=num_pairs, group_range=range(held.start, held.stop)
    )
    estimator = PES([unroll], truncation_length=num_inner_steps, std=0.01, devices=devices)
    return lambda: estimator.estimate(theta, rng)


def row(rule: str, processes: str, times: list[float]) -> Row:
    """Inner steps a second."""
    num_steps = 2 * NUM_PAIRS * TRUNCATION
    return Row(
        question=__doc__.splitlines()[0],
        setting={"rule": rule, "processes x threads": processes},
        figures={"inner steps/s": num_steps / statistics.median(times)},
        spread={"inner steps/s": (num_steps / max(times), num_steps / min(times))},
        note=f"One outer step of PES, {NUM_PAIRS} antithetic pairs of MLPs 64-32-10 on the digits, batch 64, a "
        f"truncation of {TRUNCATION} steps; gradients included. Median and range of {len(times)} repeats.",
    )


def stage(device: torch.device, size: str, budget: float) -> Iterator[Row]:
    """Updates of single parameters a second, by the number of particles."""
    full = size == "full"
    num_inner_steps, num_repeats = (50, 3) if full else (4, 2)
    num_params = 64 * 32 + 32 + 32 * 10 + 10
    for num_pairs in (512, 4096, 64) if full else (2, 4):
        for name, method in zip(RULES, (PES_METHOD, FULL_UNROLL), strict=True):
            forget_peak(device)
            step = outer_step(RULES[name], num_pairs, num_inner_steps, device, method=method)
            num_updates = 2 * num_pairs * num_inner_steps * num_params
            rates = [num_updates / time for time in seconds(step, device, num_repeats)]
            yield Row(
                question="How many parameter updates a second does meta-training do on this device?",
                setting={"rule": name, "estimator": method, "particles": 2 * num_pairs},
                figures={"updates/s": statistics.median(rates), "peak memory, GiB": peak_bytes(device) / 2**30},
                spread={"updates/s": (min(rates), max(rates))},
                note=f"MLPs 64-32-10 on the digits ({num_params:,} parameters), batch 64, {num_inner_steps} inner "
                f"steps, gradients included; one graph on CUDA. Median and range of {num_repeats} outer steps.",
            )


if __name__ == "__main__":
    bench("meta_train", rows)
