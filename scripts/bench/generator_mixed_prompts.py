"""Can it be told that a prompt mixes examples of two tasks?

    python -m scripts.bench.generator_mixed_prompts FOLDER [FOLDER ...] --zoo out/zoos/lora_images [--record]

FOLDERs are outputs of `scripts.train_generator experiment=generator_adapters` that differ in seed. For each test task
of the zoo there are three prompts: 64 examples of it, 32 of it and 32 of another task, and 64 of it of which half have
another one's label. Each quantity is judged by the area under its ROC curve: the share of pairs of a clean and a
spoilt prompt of which it is larger for the spoilt one; .5 is guessing. One minute of one core.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from generator import ParameterPipeline
from generator.model.examples import label_shares
from generator.prompts.examples import Examples
from zoo import Zoo
from zoo.tasks.task import Batch

from ..rows import Row
from .command import bench
from .generator_adapters import Tasks, generated
from .generator_table import PACKAGES

Prompt = tuple[Tensor, Tensor]


def rows(*folders: str, zoo: str) -> Iterator[Row]:
    """What tells spoilt prompts.

    Args:
        folders: outputs of trainings
        zoo: of adapters
    """
    tasks = Tasks(Zoo.open(zoo), "test")
    prompts = spoilt(tasks.shown)
    found = []
    for folder in folders:
        pipe = ParameterPipeline.from_pretrained(folder)
        found.append({name: quantities(pipe, tasks, prompt) for name, prompt in prompts.items()})
    for quantity in found[0]["clean"]:
        figures = {
            f"AUC, {name}": [area(one["clean"][quantity], one[name][quantity]) for one in found]
            for name in prompts
            if name != "clean"
        }
        yield Row(
            question=__doc__.splitlines()[0],
            setting={"quantity": quantity},
            figures={name: statistics.fmean(values) for name, values in figures.items()},
            spread={name: (min(values), max(values)) for name, values in figures.items()} if len(folders) > 1 else {},
            note=f"Clean and spoilt prompts of {len(tasks.runs)} tasks never seen; {len(folders)} generator seed(s).",
        )


def spoilt(shown: Batch) -> dict[str, Prompt]:
    """Prompts of each task by what was done to them."""
    inputs, targets, _ = shown
    half = inputs.shape[1] // 2
    others = inputs.roll(1, 0), targets.roll(1, 0)
    wrong = torch.cat((targets[:, :half], targets[:, half:].roll(1, 1)), 1)
    return {
        "clean": (inputs, targets),
        "two tasks": (
            torch.cat((inputs[:, :half], others[0][:, :half]), 1),
            torch.cat((targets[:, :half], others[1][:, :half]), 1),
        ),
        "wrong labels": (inputs, wrong),
    }


@torch.no_grad()
def quantities(pipe: ParameterPipeline, tasks: Tasks, prompt: Prompt) -> dict[str, Tensor]:
    """What may tell, (N,) each: how adapters do on their own prompts, and how far apart the encoder puts examples."""
    params = generated(pipe, prompt, tasks)
    encoder, kind = pipe.model.example_encoder, pipe.model.example_kind
    assert encoder is not None
    assert kind is not None
    examples = Examples(*prompt, torch.ones(len(params), dtype=torch.bool))
    context = pipe._context(tasks.task.layout, tasks.task)
    features, labels, _ = context.observed(examples, kind)
    z = torch.nn.functional.gelu(encoder.features(features) + encoder.label(labels))
    shares = label_shares(examples, kind.num_classes)
    mean = shares.mT @ z / shares.sum(1)[..., None].clamp(min=1)
    within = (z - shares @ mean).square().mean((1, 2))
    return {
        "loss of the adapter on its prompt": tasks.task.loss(params, Batch(*prompt)),
        "spread of the encoder within classes": within,
    }


def area(clean: Tensor, other: Tensor) -> float:
    is_other = torch.cat((torch.zeros_like(clean), torch.ones_like(other)))
    return float(roc_auc_score(is_other.numpy(), torch.cat((clean, other)).numpy()))


if __name__ == "__main__":
    bench("examples", rows, packages=PACKAGES, num_threads=1)
