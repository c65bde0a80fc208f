"""How many times faster do policies of the cart-pole learn as a population than one after another in Gymnasium?

    python -m scripts.bench.bench_policies    (about three minutes on two free cores)

The rival is a plain loop in the same process: one nn.Module acts in Gymnasium's own vectorised CartPole-v1, eight
episodes at once, and learns by the same policy gradient with loss.backward() and fused Adam. Both train from the
beginning; a step of the environment counts while its episode lasts. Measurements alternate; figures are medians with
the range in brackets. Prints a table and, with --record, puts its rows into scripts/bench/results. Needs gymnasium.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import gymnasium
import torch

from zoo import get_task, train_population
from zoo.networks.initialization import run_seed
from zoo.tasks.policies import PolicyTask, leave_one_out_advantages
from zoo.training.optimizers import Adam

from ..rows import Row
from .command import bench

NUM_EPISODES = 8  # a minibatch
LEARNING_RATE = 0.01


class Measured(NamedTuple):
    """Updates of one policy and steps of one environment, per second of wall time, and the mean return at the end."""

    updates: float
    env_steps: float
    final_return: float


def rows(*, num_repeats: int = 3, num_policies: int = 256, num_updates: int = 80) -> Iterator[Row]:
    task = get_task("cartpole")
    assert isinstance(task, PolicyTask)
    alone, together = [], []
    for seed in range(num_repeats):
        alone.append(one_policy(task, seed, num_updates))
        together.append(population(task, seed, num_policies, num_updates))
    setting = {"threads": torch.get_num_threads(), "updates": num_updates}
    yield row({"method": "one policy, Gymnasium"} | setting, alone, alone)
    yield row({"method": f"population of {num_policies}"} | setting, together, alone)


def one_policy(task: PolicyTask, seed: int, num_updates: int) -> Measured:
    """A policy trained in Gymnasium."""
    env = gymnasium.make_vec("CartPole-v1", NUM_EPISODES, vectorization_mode="vector_entry_point")
    torch.manual_seed(seed)
    model = task.make_model()
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    num_steps, lengths = 0, torch.zeros(0)
    began = time.perf_counter()
    for update in range(num_updates):
        lengths, log_probs = play(env, model, seed=1000 * seed + update)
        advantages = leave_one_out_advantages(lengths[None], len(log_probs))[0]  # (T, B)
        optimizer.zero_grad()
        (-(log_probs * advantages).sum() / NUM_EPISODES).backward()
        optimizer.step()
        num_steps += int(lengths.sum())
    seconds = time.perf_counter() - began
    return Measured(num_updates / seconds, num_steps / seconds, lengths.mean().item())


def play(env: gymnasium.vector.VectorEnv, model: torch.nn.Module, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lengths (B,) of the first episode in each environment, and log-probabilities (T, B) of the actions taken."""
    states, _ = env.reset(seed=seed)
    goes_on = torch.ones(NUM_EPISODES, dtype=torch.bool)
    lengths, chosen = torch.zeros(NUM_EPISODES), []
    while goes_on.any():
        log_probs = model(torch.from_numpy(states)).log_softmax(-1)  # (B, 2)
        actions = torch.multinomial(log_probs.detach().exp(), 1)
        chosen.append(log_probs.gather(1, actions)[:, 0])
        lengths += goes_on
        states, _, failed, is_over, _ = env.step(actions[:, 0].numpy())
        goes_on = goes_on & ~torch.from_numpy(failed | is_over)
    return lengths, torch.stack(chosen)


def population(task: PolicyTask, seed: int, num_policies: int, num_updates: int) -> Measured:
    """Many policies trained at once; the steps are counted in a second training, which is not timed."""
    seeds = [run_seed(seed, run) for run in range(num_policies)]

    def train(steps: tuple[int, ...]) -> list[torch.Tensor]:
        snapshots = train_population(
            task,
            Adam(LEARNING_RATE),
            seeds,
            num_steps=num_updates,
            batch_size=NUM_EPISODES,
            snapshot_steps=steps,
            data_seed=seed,
        )
        return [snapshot.params.clone() for snapshot in snapshots]

    began = time.perf_counter()
    train((num_updates,))
    seconds = time.perf_counter() - began
    looked_at = tuple(range(0, num_updates, max(1, num_updates // 20)))
    returns = torch.stack([task.evaluate(params, "val")["return"] for params in train(looked_at)])
    num_steps = returns.mean().item() * NUM_EPISODES * num_updates * num_policies
    return Measured(num_updates * num_policies / seconds, num_steps / seconds, returns[-1].mean().item())


def row(setting: dict[str, str | int], results: list[Measured], baseline: list[Measured]) -> Row:
    figures, spread = {}, {}
    for field, unit in (("updates", "policy-updates/s"), ("env_steps", "environment steps/s")):
        values, others = ([getattr(one, field) for one in some] for some in (results, baseline))
        figures[unit] = statistics.median(values)
        figures[f"times {unit}"] = figures[unit] / statistics.median(others)
        spread[unit] = (min(values), max(values))
    return Row(
        question=__doc__.splitlines()[0],
        setting=setting,
        figures=figures | {"mean return at the end": statistics.mean(one.final_return for one in results)},
        spread=spread,
        seeds=range(len(results)),
        note=f"MLP 4-16-2, {NUM_EPISODES} episodes an update. Median and range of {len(results)} repeats.",
    )


if __name__ == "__main__":
    bench("policies", rows, packages=("torch", "numpy", "gymnasium"), num_threads=2)
