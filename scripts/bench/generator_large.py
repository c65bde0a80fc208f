"""Does a generator of a large network do more than averages and noise? Samples beside the snapshots they learned from.

    python -m scripts.bench.generator_large out/resnet18 --zoo out/zoos/resnet18 [--samples 10] [--record]

The zoo is one run; the first is the output of `scripts.train_generator experiment=generator_resnet18`. Accuracy is on
test images; overlap is of the errors on validation and test images together with those of the snapshot with which they
overlap most. Distances are Euclidean, over what is trained. Memory holds all snapshots once; about five minutes of one
core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from generator import ParameterPipeline
from generator.training.tasks import task_of
from zoo import Zoo
from zoo.networks.metrics import mean_over_pairs, wrong_prediction_iou
from zoo.tasks.task import Task

from ..rows import Row
from .command import bench

QUESTION = "Does a generator of a large network do more than averages and noise?"
NOISE_LEVELS = (0.01, 0.03, 0.1, 0.2)  # in units of each tensor's root mean square
IMAGES_PER_PASS = 250
SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class Snapshots:
    """The snapshots of one run, about their mean, and what they predict.

    Attributes:
        task: that they are of.
        mean: (P,).
        deviations: (S, P) of the snapshots.
        predictions: (S, E) classes of val and test images.
    """

    task: Task
    mean: Tensor
    deviations: Tensor
    predictions: Tensor

    @classmethod
    def of(cls, zoo: Zoo) -> Snapshots:
        (run,) = zoo.split("train")
        params = torch.from_numpy(zoo.params[[run]][0])
        mean, task = params.mean(0), task_of(zoo)
        predictions = torch.stack([predicted(task, one) for one in params])
        return cls(task, mean, params.sub_(mean), predictions)

    def __len__(self) -> int:
        return len(self.deviations)

    def __getitem__(self, index: int) -> Tensor:
        return self.mean + self.deviations[index]


def rows(pipeline: str, *, zoo: str, samples: int = 6, steps: int = 8) -> Iterator[Row]:
    """Samples of a generator, the snapshots of its run, and what averages and noise make of these.

    Args:
        pipeline: output of `scripts.train_generator`.
        zoo: that it was trained on.
        samples: networks of each kind.
        steps: of denoising.
    """
    snapshots = Snapshots.of(Zoo.open(zoo))
    rng = torch.Generator().manual_seed(0)
    pipe = ParameterPipeline.from_pretrained(pipeline)

    def generated(_: int) -> Tensor:
        return pipe(num_samples=1, num_inference_steps=steps, generator=rng).params[0]

    everything = {SNAPSHOTS: (snapshots.__getitem__, len(snapshots)), "generated": (generated, samples)}
    everything["mean of the snapshots"] = (lambda _: snapshots.mean, 1)
    everything |= {name: (make, samples) for name, make in controls(snapshots, rng).items()}
    for name, (make, count) in everything.items():
        yield row(name, snapshots, make, count)


def controls(snapshots: Snapshots, rng: torch.Generator) -> dict[str, Callable[[int], Tensor]]:
    """Networks that know the snapshots and have learned nothing, by what they are."""
    layout, count = snapshots.task.layout, len(snapshots)
    deviation = snapshots.deviations.std(0)

    def noised(level: float) -> Tensor:
        params = snapshots[int(torch.randint(count, (), generator=rng))]
        for slot in layout:
            if slot.kind == "param":
                part = params[slot.span]
                part += level * part.square().mean().sqrt() * torch.randn(part.shape, generator=rng)
        return params

    def mixed(_: int) -> Tensor:
        weights = torch.rand(count, generator=rng).log().neg()  # uniform over all mixtures
        return snapshots.mean + (weights / weights.sum()) @ snapshots.deviations

    def between(_: int) -> Tensor:
        one, other = torch.randperm(count, generator=rng)[:2].tolist()
        return snapshots[one].lerp(snapshots[other], float(torch.rand((), generator=rng)))

    def independent(_: int) -> Tensor:
        return snapshots.mean + deviation * torch.randn(deviation.shape, generator=rng)

    made = {"between two snapshots": between, "mixtures of all": mixed, "every number by itself": independent}
    return made | {f"snapshots with noise {level:g}": lambda _, level=level: noised(level) for level in NOISE_LEVELS}


def row(name: str, snapshots: Snapshots, make: Callable[[int], Tensor], count: int) -> Row:
    """Figures of `count` networks, which are made one after the other; running statistics that are counts are kept."""
    task, trained = snapshots.task, slice(0, snapshots.task.layout.num_trainable)
    predictions, offsets = [], []
    for index in range(count):
        params = make(index)
        predictions.append(snapshots.predictions[index] if name == SNAPSHOTS else predicted(task, params))
        offsets.append((params - snapshots.mean)[trained])
    answers, found, apart = targets(task), torch.stack(predictions), torch.stack(offsets)
    num_test = len(task.dataset.test)
    accuracy = 100 * (found == answers)[:, -num_test:].double().mean(1)
    itself = torch.eye(count, dtype=torch.bool) if name == SNAPSHOTS else torch.zeros(count, len(snapshots)).bool()
    to_snapshots = torch.tensor([[(one - other[trained]).norm() for other in snapshots.deviations] for one in apart])
    overlap = wrong_prediction_iou(found, answers, snapshots.predictions)
    figures = {
        "accuracy, mean, %": accuracy.mean().item(),
        "best, %": accuracy.max().item(),
        "worst, %": accuracy.min().item(),
        "distance to the nearest snapshot": to_snapshots.masked_fill(itself, torch.inf).min(1).values.mean().item(),
        "to the mean": apart.norm(dim=1).mean().item(),
        "overlap of errors": overlap.masked_fill(itself, 0).max(1).values.mean().item(),
    }
    if count > 1:
        figures["to each other"] = mean_over_pairs(torch.cdist(apart, apart)).item()
    return Row(
        question=QUESTION,
        setting={"networks": name, "number": count},
        figures=figures,
        note=f"ResNet-18, {task.layout.num_params:,} numbers, {len(snapshots)} snapshots of the last epoch of one "
        "fine-tuning. Noise is in units of the root mean square of each tensor. Running statistics of BatchNorm are "
        "part of every network: generated, averaged and mixed like weights, left as they are by noise. One seed.",
    )


def targets(task: Task) -> Tensor:
    return torch.cat([task.dataset.val.targets, task.dataset.test.targets])


@torch.no_grad()
def predicted(task: Task, params: Tensor) -> Tensor:
    """Classes (E,) that a network (P,) predicts of val and test images."""
    images = torch.cat([task.dataset.val.inputs, task.dataset.test.inputs])
    return torch.cat([task.predict(params[None], some)[0].argmax(-1) for some in images.split(IMAGES_PER_PASS)])


if __name__ == "__main__":
    bench("large", rows, packages=("torch", "timm", "diffusers"), num_threads=1)
