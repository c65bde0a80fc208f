"""Do learned optimizers, meta-trained on losses of examples alone, train policies by the policy gradient?

    python -m scripts.bench.optimizers_on_policies [--optimizers mulo-norm ...] [--record]    (six minutes on one core)

Policies of the cart-pole (MLP 4-16-2, eight episodes an update, 60 updates); Adam and Muon at a grid of constant rates,
the learned ones as they are. All begin with the same policies and meet the same episodes. Prints a table: mean
return on test episodes over all policies, and its range over seeds (of episodes and initial policies).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from learned_opt import load_pretrained
from learned_opt.rules.population import PopulationOptimizer
from zoo import get_task, train_population
from zoo.networks.initialization import run_seed
from zoo.training.muon import Muon
from zoo.training.optimizers import Adam, InnerOptimizer

from ..rows import Row
from .command import bench

RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
LEARNED = ("mulo-norm", "mulo-wide", "mulo")
LOOKED_AT = (10, 20, 40, 60)
NUM_EPISODES = 8


def rows(
    *, optimizers: Sequence[str] = ("Adam", "Muon", *LEARNED), num_policies: int = 32, seeds: Sequence[int] = (0, 1, 2)
) -> Iterator[Row]:
    for setting, optimizer in methods():
        if setting["optimizer"] in optimizers:
            yield row(setting, optimizer, seeds, num_policies)


def methods() -> Iterator[tuple[dict[str, str | float], InnerOptimizer]]:
    """Every optimizer, and what the table says of it."""
    for rate in RATES:
        yield {"optimizer": "Adam", "learning rate": rate}, Adam(rate)
    for rate in RATES:
        yield {"optimizer": "Muon", "learning rate": rate}, Muon(rate, adam_lr=rate)
    for name in LEARNED:
        learned = load_pretrained(name)
        yield {"optimizer": name}, PopulationOptimizer(learned.rule, learned.theta)


def row(setting: dict[str, str | float], optimizer: InnerOptimizer, seeds: Sequence[int], num_policies: int) -> Row:
    returns = torch.tensor([mean_returns(optimizer, seed, num_policies) for seed in seeds])  # (seeds, LOOKED_AT)
    names = [f"return after {step} updates" for step in LOOKED_AT]
    return Row(
        question=__doc__.splitlines()[0],
        setting=setting,
        figures=dict(zip(names, returns.mean(0).tolist(), strict=True)),
        spread=dict(zip(names, zip(returns.amin(0).tolist(), returns.amax(0).tolist(), strict=True), strict=True)),
        seeds=seeds,
        note=f"Cart-pole, policies 4-16-2, {NUM_EPISODES} episodes an update; mean test return of {num_policies} "
        "policies and its range over seeds.",
    )


def mean_returns(optimizer: InnerOptimizer, seed: int, num_policies: int) -> list[float]:
    task = get_task("cartpole")
    snapshots = train_population(
        task,
        optimizer,
        [run_seed(seed, run) for run in range(num_policies)],
        num_steps=LOOKED_AT[-1],
        batch_size=NUM_EPISODES,
        snapshot_steps=LOOKED_AT,
        data_seed=seed,
    )
    return [task.evaluate(snapshot.params, "test")["return"].mean().item() for snapshot in snapshots]


if __name__ == "__main__":
    bench("learned_opt", rows, num_threads=1)
