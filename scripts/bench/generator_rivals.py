"""Are generated networks as good, new and diverse as trained ones? DeepWeightFlow's recipe under the same protocol.

    python -m scripts.bench.generator_rivals ZOO [PIPELINE ...] [--num-components 99 0] [--seeds 0 1 2] [--record]

The rival is fitted to the last networks of 100 training runs (its setting), copies and averages are made of the same.
Its published settings for Iris are `--num-components 0 --dropout .4 --time-width 4`, for MNIST `--num-components 99`.
Pipelines that were trained on the zoo are asked for the floor, the median over runs of the lowest validation loss.
Novelty is measured against the runs that a row's networks were learned from, diversity against held-out runs of equal
loss. How much of a network's variance is outside the span of the rival's 100 networks, units matched, says whether it
could have been made by adding and subtracting these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from generator import ParameterPipeline, PipelineSampler, Testbed
from generator.evaluation.baselines import MatchedAverage, NoisyCopy
from generator.evaluation.collapse import Behaviour, collapse_report
from generator.evaluation.novelty import OVERLAP_SPLITS, against, pool_at
from generator.evaluation.testbed import METRIC, Sampler
from generator.trajectories import Trajectories
from zoo.networks.alignment import align
from zoo.networks.layout import ParamLayout
from zoo.storage.zoo import Zoo

from ..rows import Row, over_seeds
from ..studies.generator.weight_flow import WeightFlow, WeightFlowConfig
from .command import bench
from .generator_editing import widths

_NUM_LEARNED_FROM = 100


def rows(
    zoo: str,
    *pipelines: str,
    max_runs: int = 0,
    from_starts: bool = False,
    noises: Sequence[float] = (0.0, 0.1),
    averaged: Sequence[int] = (4, 2),
    num_components: Sequence[int] = (99, 0),
    dropout: float = WeightFlowConfig.dropout,
    time_width: int = WeightFlowConfig.time_width,
    seeds: Sequence[int] = (0, 1, 2),
    number: int = 64,
) -> Iterator[Row]:
    """A row for each kind of networks.

    Args:
        zoo: of one architecture
        pipelines: folders of pipelines of several seeds that were trained on it
        max_runs: that the pipelines were trained on, the first ones; 0 for all
        from_starts: whether pipelines update the initial networks of held-out runs, not noise
        noises: of the copies, to the size of what is copied
        averaged: how many networks the averages are of
        num_components: of the rival; 0 for the numbers themselves
        dropout: of the rival
        time_width: of the rival
        seeds: of the rival, and of all noise
        number: of networks of each kind, at most as many as there are held-out runs
    """
    few, whole = (Testbed.from_zoo(Zoo.open(zoo), max_runs=most) for most in (_NUM_LEARNED_FROM, max_runs or None))
    finals, number = last_networks(few.train), min(number, len(whole.unseen))
    kinds: dict[str, Callable[[int], Sampler]] = {
        f"copies with noise of {noise:g}" if noise else "copies": lambda seed, noise=noise: NoisyCopy(few.train, noise)
        for noise in noises
    }
    for count in averaged:
        kinds[f"averages of {count}, matched"] = lambda seed, count=count: MatchedAverage(few.train, count)
    for components in num_components:
        config = WeightFlowConfig(num_components=components, dropout=dropout, time_width=time_width)
        kinds[f"DeepWeightFlow, {components or 'no'} components"] = lambda seed, config=config: WeightFlow.fit(
            few.task.layout, finals, config, seed=seed
        )
    source = whole.task.config.get("source", whole.task.name)  # of a real table
    setting = {"network": "-".join(map(str, widths(whole.task))), "task": str(source)}
    for name, make in kinds.items():
        found = [measured(few, finals, make(seed), number, seed) for seed in seeds]
        yield row_of(setting | {"made by": name, "from runs": len(few.train)}, found, seeds, number)
    if pipelines:
        found = []
        for seed, folder in enumerate(pipelines):
            sampler = PipelineSampler(ParameterPipeline.from_pretrained(folder), whole.task, use_start=from_starts)
            found.append(measured(whole, finals, sampler, number, seed))
        origin = ", one update of unseen starts" if from_starts else ""
        made = {"made by": f"generator, asked for the floor{origin}", "from runs": len(whole.train)}
        yield row_of(setting | made, found, range(len(pipelines)), number)
    held_out = last_networks(whole.unseen)[:number]
    for testbed in {len(one.train): one for one in (few, whole)}.values():
        made = {"made by": "training, held-out runs", "from runs": len(testbed.train)}
        found = [measured(testbed, finals, lambda *_: held_out, number, 0)]
        yield row_of(setting | made, found, (0,), number)


def measured(testbed: Testbed, learned: Tensor, sampler: Sampler, number: int, seed: int) -> dict[str, float]:
    """Figures of a sampler's networks against a testbed's training runs, and against the span of networks (N, P)."""
    asked = torch.full((number,), testbed.floor)
    params = sampler(testbed.starts(number), {METRIC: asked}, torch.Generator().manual_seed(seed)).cpu()
    losses = testbed.val_loss(params)
    pool = pool_at(testbed.train, losses.log().mean().exp())
    known = Behaviour.of(testbed.task, pool, OVERLAP_SPLITS)
    ours, real = (against(testbed, some, pool, known) for some in (params, testbed.real_at(losses)))
    diversity = collapse_report(testbed, testbed.starts(number), params, testbed.floor).measures
    return {
        "accuracy, %": 100 * ours.accuracies.mean().item(),
        "best, %": 100 * ours.accuracies.max().item(),
        "val loss": losses.log().mean().exp().item(),
        "distance to the nearest, to held-out runs'": (ours.distances.mean() / real.distances.mean()).item(),
        "largest IoU of errors": ours.overlaps.mean().item(),
        "held-out runs' IoU": real.overlaps.mean().item(),
        "distance of outputs, to real": diversity["log-prob distance"].generated / diversity["log-prob distance"].real,
        "outside the span, %": 100 * outside_span(testbed.task.layout, params, learned),
    }


def outside_span(layout: ParamLayout, params: Tensor, learned: Tensor) -> float:
    """Share of the variance of networks (B, P) that no combination of networks (N, P) explains.

    The latter's units are matched to those of the first; the former's too, or left as they are, whichever gives less.
    """
    known, moved = (align(layout, some, learned[0]).params.double() for some in (learned, params))
    mean = known.mean(0)
    basis = torch.linalg.svd(known - mean, full_matrices=False).Vh[: len(known) - 1]
    apart = torch.stack((moved, params.double())) - mean  # (2, B, P)
    outside = (apart - apart @ basis.T @ basis).square().sum(2) / apart.square().sum(2)
    return outside.amin(0).mean().item()


def last_networks(runs: Trajectories) -> Tensor:
    """The last snapshots (R, P) of all runs."""
    return runs.read(torch.arange(len(runs)), runs.counts - 1)


def row_of(setting: dict[str, str | int], found: Sequence[dict[str, float]], seeds: Sequence[int], number: int) -> Row:
    """Mean and range over seeds."""
    note = (
        f"{number} networks of each kind and seed; mean and range over seeds. Distances and errors as in tests A and B."
    )
    return Row(
        question=str(__doc__).splitlines()[0], setting=setting, **over_seeds(found), seeds=tuple(seeds), note=note
    )


if __name__ == "__main__":
    bench("generator", rows, num_threads=1)
