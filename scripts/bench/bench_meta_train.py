"""How many inner steps a second does meta-training do?

    python -m scripts.bench.bench_meta_train [--num-threads 2] [--num-repeats 7]

One outer step of PES: 8 antithetic pairs of 64-32-10 MLPs on the digits, batch 64, a truncation of 50 steps; an inner
step is one update of one network, gradient included. Rules: small_fc_lopt with 32 hidden units and the normalised
rule. The same setting in google/learned_optimization (JAX, compiled) does about 1,550 inner steps/s on two such cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from learned_opt import MlpRule, NormalizedRule, UpdateRule, synthetic_data
from learned_opt.estimators import PES
from learned_opt.meta_tasks import mlp_task
from learned_opt.task_problem import TaskProblem
from learned_opt.truncated_step import TruncatedStep
from learned_opt.truncation import LogUniformHorizon

NUM_PAIRS = 8
TRUNCATION = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--num-repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    print(f"{options.num_threads} thread(s), torch {torch.__version__}\n")
    print("| rule | inner steps/s, median | slowest | fastest | gradient alone |")
    print("|---|---|---|---|---|")
    gradient = rate(gradients, options.num_repeats)[0]
    for name, rule in RULES.items():
        median, slowest, fastest = rate(outer_step(rule), options.num_repeats)
        print(f"| {name} | {median:,.0f} | {slowest:,.0f} | {fastest:,.0f} | {gradient:,.0f} |", flush=True)


RULES: dict[str, UpdateRule] = {"small_fc_lopt, H = 32": MlpRule(hidden=32), "normalised": NormalizedRule()}
PROBLEM = TaskProblem([mlp_task(synthetic_data.digits_images(8), [32])], batch_size=64)


def outer_step(rule: UpdateRule) -> Callable[[], object]:
    """A function that does one outer step."""
    estimator = PES(
        [TruncatedStep(rule, PROBLEM, LogUniformHorizon(100, 1000), num_groups=NUM_PAIRS)],
        truncation_length=TRUNCATION,
        std=0.01,
    )
    theta = rule.init_theta(torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(0)
    return lambda: estimator.estimate(theta, rng)


@torch.no_grad()
def gradients() -> None:
    """The inner gradients of one outer step, without a rule."""
    params = PROBLEM.init(torch.arange(NUM_PAIRS)).repeat(2, 1)
    datasets = torch.zeros(NUM_PAIRS, dtype=torch.long)
    for examples in torch.rand(TRUNCATION, NUM_PAIRS, PROBLEM.batch_size):
        PROBLEM.loss_and_grad(params, datasets, examples)


def rate(run: Callable[[], object], num_repeats: int) -> tuple[float, float, float]:
    """Inner steps a second: median, slowest, fastest."""
    run()
    seconds = []
    for _ in range(num_repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    steps = 2 * NUM_PAIRS * TRUNCATION
    return steps / statistics.median(seconds), steps / max(seconds), steps / min(seconds)


if __name__ == "__main__":
    main()
