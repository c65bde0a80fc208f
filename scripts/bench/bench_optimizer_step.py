"""What does one step of a learned optimizer cost, beside AdamW, Muon and a plain implementation?

    OMP_NUM_THREADS=1 python -m scripts.bench.bench_optimizer_step [--device auto] [--num-steps 7] [--record]

Rows: median and fastest step (on the CPU in CPU time of the process, which other load does not stretch), temporary
memory of one step (by how much it raises the peak; on the CPU in a process of its own), and the state. Shapes: one
matrix of a million numbers; the matrices of a transformer block of width 768; on a GPU also all tensors of ViT-B/16 and
of GPT-2 small, and steps replayed from a CUDA graph. Gradients are given, so nothing but the optimizer runs.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import torch
from torch import nn

from learned_opt import MlpRule, MuLO, NormalizedRule, Pretrained, TensorSpec, UpdateRule

from ..rows import Row
from .command import bench
from .measure import forget_peak, peak_bytes, seconds, used_bytes

Tensors = Sequence[tuple[str, tuple[int, ...]]]  # role and shape of each
Step = Callable[[], object]
Build = Callable[[list[dict]], list[torch.optim.Optimizer]]  # of parameter groups that carry roles

_BLOCK: Tensors = [("hidden", (768, 768))] * 4 + [("hidden", (3072, 768)), ("hidden", (768, 3072))]
_BLOCK_VECTORS: Tensors = [("norm", (768,))] * 4 + [("bias", (768,))] * 5 + [("bias", (3072,))]
SHAPES: dict[str, Tensors] = {
    "64 x 64": [("hidden", (64, 64))],
    "1024 x 1024": [("hidden", (1024, 1024))],
    "transformer block, width 768": _BLOCK,
    "ViT-B/16": [
        ("input", (768, 3, 16, 16)),
        ("embedding", (197, 768)),
        *[*_BLOCK, *_BLOCK_VECTORS] * 12,
        *[("norm", (768,))] * 2,
        ("output", (1000, 768)),
    ],
    "GPT-2 small": [
        ("embedding", (50257, 768)),
        ("embedding", (1024, 768)),
        *[*_BLOCK, *_BLOCK_VECTORS] * 12,
        *[("norm", (768,))] * 2,
    ],
}
LARGE = ("GPT-2 small", "ViT-B/16")  # too slow for a CPU
TINY = "64 x 64"  # tells nothing, quickly


def rows(*, device: torch.device | str = "auto", num_steps: int = 7) -> Iterator[Row]:
    device = torch.device(device)
    titles = [title for title in SHAPES if title != TINY and (device.type != "cpu" or title not in LARGE)]
    for title, name in product(titles, [*OPTIMIZERS, *(GRAPHS if device.type == "cuda" else ())]):
        if name != PLAIN or len(SHAPES[title]) == 1:
            yield row(name, title, device, num_steps)


def stage(device: torch.device, size: str, budget: float) -> Iterator[Row]:
    """Learned optimizers beside AdamW and Muon on the tensors of whole networks."""
    titles, num_steps = (LARGE, 10) if size == "full" else ((TINY,), 2)
    graphs = GRAPHS if device.type == "cuda" else ()
    first, last = ("mulo-norm", MUON, *graphs[:1], "AdamW fused"), ("mulo, H = 32", *graphs[1:])  # compiles kernels
    for title, name in (*product(titles, first), *product(titles, last)):
        yield row(name, title, device, num_steps)


def row(name: str, title: str, device: torch.device, num_steps: int) -> Row:
    step, optimizers = make(name, SHAPES[title], device)
    times = [1e3 * time for time in seconds(step, device, num_steps, by_cpu=device.type == "cpu")]
    num_params = sum(math.prod(shape) for _, shape in SHAPES[title])
    grown = temporaries(name, SHAPES[title]) if device.type == "cpu" else peak_growth(step, device)
    figures = {"ms": statistics.median(times), "temporaries, MiB": grown / 2**20}
    if optimizers:
        figures["state, bytes a parameter"] = sum(map(state_bytes, optimizers)) / num_params
    clock = "CPU time of the process" if device.type == "cpu" else "wall time"
    return Row(
        question=__doc__.splitlines()[0],
        setting={"tensors": title, "parameters": num_params, "optimizer": name, "threads": torch.get_num_threads()},
        figures=figures,
        spread={"ms": (min(times), max(times))},
        note=f"Median and range of {num_steps} steps, {clock}. Temporaries: by how much a step raises the "
        "peak of memory.",
    )


def make(name: str, tensors: Tensors, device: torch.device) -> tuple[Step, list[torch.optim.Optimizer]]:
    """A step to call, and what does it; nothing for the plain implementation."""
    torch.manual_seed(0)
    params = [nn.Parameter(0.03 * torch.randn(shape, device=device)) for _, shape in tensors]
    for param in params:
        param.grad = torch.randn_like(param)
    if name == PLAIN:
        return plain_step(params), []
    groups = [{"params": [param], "role": role} for param, (role, _) in zip(params, tensors, strict=True)]
    optimizers = OPTIMIZERS[name.removesuffix(IN_GRAPH)](groups)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()

    return captured(step) if name.endswith(IN_GRAPH) else step, optimizers


def captured(step: Step) -> Step:
    """The step as a CUDA graph, which starts all its kernels at once."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):  # state and libraries
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def plain_step(params: list[nn.Parameter]) -> Step:
    """The published rule as one would write it: all 39 features of the whole tensor at once."""
    rule = MlpRule(32, reference=True)
    (param,) = params
    theta = rule.init_theta(torch.Generator().manual_seed(0)).to(param.device)
    specs, values = [TensorSpec("w", "hidden", param.shape[1], tuple(param.shape))], [param.detach()[None]]
    assert param.grad is not None
    grads, state = [param.grad[None]], rule.init_state(specs, values)

    def step() -> None:
        rule.update(theta, specs, values, grads, state, inner_step=0, num_steps=None)

    return step


def learned(rule: UpdateRule) -> Build:
    untrained = Pretrained(rule, rule.init_theta(torch.Generator().manual_seed(0)))
    return lambda groups: [MuLO(groups, untrained, num_training_steps=1000)]


def adamw(groups: list[dict], **options: bool) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(_params(groups), **options)]


def muon(groups: list[dict]) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices and fused AdamW for all else, as it is meant to be used."""
    hidden = [group for group in groups if group["role"] == "hidden"]
    others = [group for group in groups if group["role"] != "hidden"]
    return [torch.optim.Muon(_params(hidden)), *(adamw(others, fused=True) if others else [])]


MUON = "torch.optim.Muon"
PLAIN = "small_fc_lopt, plain, H = 32"
OPTIMIZERS: dict[str, Build] = {
    "AdamW fused": lambda groups: adamw(groups, fused=True),
    "AdamW foreach": lambda groups: adamw(groups, foreach=True),
    MUON: muon,
    "mulo-norm": learned(NormalizedRule()),
    "mulo-norm-scalars": learned(NormalizedRule(feedback=False)),
    "mulo, H = 32": learned(MlpRule(32)),
    "mulo, H = 8": learned(MlpRule(8)),
    PLAIN: learned(MlpRule(32)),  # replaced by `plain_step`
}
IN_GRAPH = ", CUDA graph"
GRAPHS = tuple(f"{name}{IN_GRAPH}" for name in ("mulo-norm", "mulo, H = 32"))


def _params(groups: list[dict]) -> list[nn.Parameter]:
    return [param for group in groups for param in group["params"]]


def temporaries(name: str, tensors: Tensors) -> int:
    """`peak_growth` on the CPU, in a process of its own."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # so that the C library gives back what is freed
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_growth_from_nothing, name, tensors).result()


def _growth_from_nothing(name: str, tensors: Tensors) -> int:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    for size in (64, 600):  # loads libraries and their buffers
        make(name, [("hidden", (size, size))], device)[0]()
    step, _ = make(name, tensors, device)
    step()  # makes the state
    return peak_growth(step, device)


def peak_growth(step: Step, device: torch.device) -> int:
    """Bytes by which a step raises the peak over what lives between steps; a graph keeps its own between them."""
    forget_peak(device)
    before = used_bytes(device)
    step()
    return peak_bytes(device) - before


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in tensors if isinstance(value, torch.Tensor))


if __name__ == "__main__":
    bench("optimizer_step", rows, packages=("torch",))
