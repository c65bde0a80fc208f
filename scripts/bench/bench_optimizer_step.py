"""What does one step of a learned optimizer cost, beside AdamW, Muon and a plain implementation?

    OMP_NUM_THREADS=1 python -m scripts.bench.bench_optimizer_step [--device cpu] [--num-steps 7] [--record]

Rows: median and fastest step (on the CPU in CPU time of the process, which other load does not stretch), temporary
memory of one step (by how much it raises the peak of a process of its own; on a GPU peak allocated), and the state.
Shapes: one matrix of a million numbers; the matrices of a transformer block of width 768; on a GPU also those of
ViT-B/16. Gradients are given, so nothing but the optimizer runs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn

from learned_opt import MlpRule, MuLO, NormalizedRule, Pretrained, TensorSpec, UpdateRule

from ..rows import Row, tables
from .record import record

BLOCK = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "1024 x 1024": [(1024, 1024)],
    "transformer block, width 768": BLOCK,
    "ViT-B/16": [(768, 768), *BLOCK * 12, (768, 1000)] + [(768,)] * 110,
}
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-steps", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="put the rows into scripts/bench/results")
    options = parser.parse_args()
    shapes = SHAPES if options.device != "cpu" else {k: v for k, v in SHAPES.items() if k != "ViT-B/16"}
    rows = []
    for title, tensors in shapes.items():
        for name in candidates(tensors):
            rows.append(row(name, title, tensors, options.device, options.num_steps))
            print(tables(rows[-1:]), flush=True)
    print(tables(rows))
    if options.record:
        print(f"recorded in {record('optimizer_step', rows, packages=('torch',), device=options.device)}")


def candidates(tensors: Sequence[tuple[int, ...]]) -> list[str]:
    """Optimizers that can be run on these shapes."""
    names = list(OPTIMIZERS)
    return names if len(tensors) == 1 else [name for name in names if name != PLAIN]


def row(name: str, title: str, tensors: list[tuple[int, ...]], device: str, num_steps: int) -> Row:
    step, params, optimizer = make(name, tensors, device)
    step()
    times = [1e3 * seconds(step, device) for _ in range(num_steps)]
    num_params = sum(param.numel() for param in params)
    figures: dict[str, float] = {"ms": statistics.median(times), "temporaries, MiB": temporaries(name, tensors, device)}
    if optimizer is not None:
        figures["state, bytes a parameter"] = state_bytes(optimizer) / num_params
    clock = "CPU time of the process" if device == "cpu" else "wall time"
    return Row(
        question=__doc__.splitlines()[0],
        setting={"tensors": title, "parameters": num_params, "optimizer": name, "threads": torch.get_num_threads()},
        figures=figures,
        spread={"ms": (min(times), max(times))},
        note=f"Median and range of {num_steps} steps, {clock}. Temporaries: by how much a step raises the "
        "peak of memory.",
    )


def make(
    name: str, tensors: list[tuple[int, ...]], device: str
) -> tuple[Step, list[nn.Parameter], torch.optim.Optimizer | None]:
    """A step to call, the parameters it changes, and its optimizer."""
    torch.manual_seed(0)
    params = [nn.Parameter(0.03 * torch.randn(shape, device=device)) for shape in tensors]
    for param in params:
        param.grad = torch.randn_like(param)
    if name == PLAIN:
        return plain_step(params), params, None
    optimizer = OPTIMIZERS[name](params)
    return optimizer.step, params, optimizer


def untrained(rule: UpdateRule) -> Pretrained:
    return Pretrained(rule, rule.init_theta(torch.Generator().manual_seed(0)))


def plain_step(params: list[nn.Parameter]) -> Step:
    """The published rule as one would write it: all 39 features of the whole tensor at once."""
    rule = MlpRule(32, reference=True)
    theta, (param,) = rule.init_theta(torch.Generator().manual_seed(0)), params
    specs, values = [TensorSpec("w", "hidden", param.shape[1], tuple(param.shape))], [param.detach()[None]]
    assert param.grad is not None
    grads, state = [param.grad[None]], rule.init_state(specs, values)

    def step() -> None:
        rule.update(theta, specs, values, grads, state, inner_step=0, num_steps=None)

    return step


def learned(rule: UpdateRule) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    def build(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [{"params": [p], "role": "hidden" if p.ndim > 1 else "bias"} for p in params]
        return MuLO(groups, untrained(rule), num_training_steps=1000)

    return build


def muon(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon([p for p in params if p.ndim == 2])


PLAIN = "small_fc_lopt, plain, H = 32"
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "AdamW fused": lambda params: torch.optim.AdamW(params, fused=True),
    "AdamW foreach": lambda params: torch.optim.AdamW(params, foreach=True),
    "torch.optim.Muon": muon,
    "mulo-norm": learned(NormalizedRule()),
    "mulo-norm-scalars": learned(NormalizedRule(feedback=False)),
    "mulo, H = 32": learned(MlpRule(32)),
    "mulo, H = 8": learned(MlpRule(8)),
    PLAIN: learned(MlpRule(32)),  # replaced by `plain_step`
}


def seconds(step: Step, device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    synchronize(device)
    start = clock()
    step()
    synchronize(device)
    return clock() - start


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def temporaries(name: str, tensors: list[tuple[int, ...]], device: str) -> float:
    """MiB by which a step raises the peak over what lives between steps."""
    if device != "cpu":
        step, _, _ = make(name, tensors, device)
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # so that the C library gives back what is freed
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_growth, name, tensors).result()


def _peak_growth(name: str, tensors: list[tuple[int, ...]]) -> float:
    """As `temporaries`, from the kernel's account of resident memory (Linux)."""
    torch.set_num_threads(1)
    for shapes in ([(64, 64)], [(600, 600)]):  # loads libraries and their buffers
        step, _, _ = make(name, shapes, "cpu")
        step()
    step, _, _ = make(name, tensors, "cpu")
    step()  # makes the state
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status_kib("VmRSS")
    step()
    return (_status_kib("VmHWM") - before) / 2**10


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in tensors if isinstance(value, torch.Tensor))


if __name__ == "__main__":
    main()
