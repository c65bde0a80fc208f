"""Stage "prompting": unseen initial networks prompted with losses, and how new the answers are.

Legend: N starts, K prompts, P numbers of one network, U hidden units, E test examples.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from omegaconf import DictConfig
from rich.progress import Progress
from torch import Tensor

from generator import Alignment, PipelineSampler, Testbed, measure_alignment
from generator.evaluation import collapse_report, novelty_report
from generator.evaluation.novelty import GENERATED, HELD_OUT, NoveltyReport
from zoo import Task
from zoo.networks.initialization import derive_seed
from zoo.networks.metrics import r2_log

from ..cli import console
from .build import open_zoo
from .stage import StageResult
from .train import open_pipeline

METRIC: Final = "val_loss"
LEVELS: Final = (0.1, 0.25, 0.5, 0.75, 0.9)
SHOWN_SETS: Final = (GENERATED, HELD_OUT, "noise 0.05", "noise 0.1", "noise 0.2", "average of 4")
MAX_WRONG: Final = 12
_NETWORKS_AT_ONCE: Final = 256


def run(config: DictConfig) -> StageResult:
    testbed = Testbed.from_zoo(open_zoo(config))
    starts = unseen_starts(testbed.task, config.prompting.num_starts, config.seed)
    rng = torch.Generator().manual_seed(config.seed)
    with Progress(console=console) as progress:
        networks, generated = generate(testbed, starts, config, rng, progress)
        bar = progress.add_task("matching with the training set", total=None)
        novelty = novelty_report(testbed, generated, testbed.floor, rng)
        progress.update(bar, total=1, completed=1)
    prompts = testbed.prompts(config.prompting.num_prompts)
    held_out = testbed.starts(len(generated))
    alignments = {
        name: measure_alignment(lambda *_, made=made: made, testbed.task, starts, prompts)
        for name, made in networks.items()
    }
    collapse = collapse_report(testbed, held_out, generated, testbed.floor).measures
    last = testbed.unseen.read(torch.arange(len(testbed.unseen)), testbed.unseen.counts - 1)
    numbers = {
        "num_starts": len(starts),
        "num_prompts": len(prompts),
        "lowest_prompt": testbed.floor,
        "alignment": {name: _figures(one) for name, one in alignments.items()},
        "held_out_final_accuracy": 1 - testbed.task.evaluate(last, "test")["error"].mean().item(),
        "novelty": _novelty_numbers(novelty),
        "collapse": {name: {"generated": one.generated, "real": one.real} for name, one in collapse.items()},
    }
    data = {
        "prompts": prompts,
        "levels": LEVELS,
        "achieved": {name: one.val["loss"].quantile(torch.tensor(LEVELS), dim=0) for name, one in alignments.items()},
        "distances": {name: novelty.sets[name].distances for name in SHOWN_SETS},
        "pictures": pictures(testbed, held_out, generated),
    }
    return StageResult(numbers, data)


def generate(
    testbed: Testbed, starts: Tensor, config: DictConfig, rng: torch.Generator, progress: Progress
) -> tuple[dict[str, Tensor], Tensor]:
    """Networks for starts (N, P) and all K prompts, and networks for held-out runs' starts and the lowest prompt.

    Returns:
        By kind (N * K, P), prompts innermost: after one update, after a second one with the same prompts, without any
        start; and (held-out starts, P).
    """
    options = config.prompting
    pipe = open_pipeline(config)
    from_start, from_noise = (
        PipelineSampler(pipe, testbed.task, use_start=use_start, num_inference_steps=options.num_inference_steps)
        for use_start in (True, False)
    )
    prompts = testbed.prompts(options.num_prompts)
    asked = prompts.repeat(len(starts))
    repeated = starts.repeat_interleave(len(prompts), dim=0)
    first = _sample(from_start, repeated, asked, rng, bar=(progress, "one update"))
    networks = {
        "one update": first,
        "second update": _sample(from_start, first, asked, rng, bar=(progress, "a second update")),
        "noise": _sample(from_noise, None, asked, rng, bar=(progress, "networks from noise")),
    }
    held_out = testbed.starts(options.num_novelty_starts)
    floor = torch.full((len(held_out),), testbed.floor)
    return networks, _sample(from_start, held_out, floor, rng, bar=(progress, "held-out starts"))


def unseen_starts(task: Task, num_starts: int, seed: int, *, stream: str = "prompting") -> Tensor:
    """Initial networks (N, P) with seeds that no run of a zoo has; streams differ."""
    return task.init(torch.Generator().manual_seed(derive_seed(seed, "unseen starts", stream)), num_starts)


def pictures(testbed: Testbed, starts: Tensor, generated: Tensor) -> dict[str, Any]:
    """First-layer weights and mistakes of the generated network of the first held-out start, not a chosen one.

    Beside it stands what training made of the same start, at the snapshot of the same loss: unit j of one is unit j of
    the other.

    Returns:
        "weights": by kind of network (U, inputs); "wrong": of each mistake the image, its class, both predictions.
    """
    task, start, made = testbed.task, starts[:1], generated[:1]
    trained = testbed.real_at(testbed.val_loss(made))
    networks = {"start": start, "generated": made, "trained": trained}
    first_layer = task.layout.slots[0].name
    test = task.dataset.test
    predicted = {name: task.predict(params, test.inputs)[0].argmax(-1) for name, params in networks.items()}
    wrong = (predicted["generated"] != test.targets).nonzero().flatten()
    return {
        "image_shape": list(test.inputs.shape[-2:]),
        "weights": {name: task.layout.unflatten(params[0])[first_layer] for name, params in networks.items()},
        "num_test": len(test),
        "num_wrong": {name: int((predicted[name] != test.targets).sum()) for name in ("generated", "trained")},
        "num_both_wrong": int(((predicted["trained"] != test.targets)[wrong]).sum()),
        "wrong": [
            {
                "image": test.inputs[i, 0],
                "class": int(test.targets[i]),
                "generated": int(predicted["generated"][i]),
                "trained": int(predicted["trained"][i]),
            }
            for i in wrong[:MAX_WRONG].tolist()
        ],
    }


def _sample(
    sampler: PipelineSampler,
    starts: Tensor | None,
    asked: Tensor,
    rng: torch.Generator,
    *,
    bar: tuple[Progress, str],
) -> Tensor:
    """Networks (N, P) for starts (N, P) and prompts (N,)."""
    progress, description = bar
    row = progress.add_task(description, total=len(asked))
    parts = []
    for index in torch.arange(len(asked)).split(_NETWORKS_AT_ONCE):
        parts.append(sampler(None if starts is None else starts[index], {METRIC: asked[index]}, rng).cpu())
        progress.advance(row, len(index))
    return torch.cat(parts)


def _figures(alignment: Alignment) -> dict[str, float]:
    return {
        "r2_log": alignment.r2_log,
        "r2_log_test": r2_log(alignment.test["loss"], alignment.prompts).item(),
        "spearman": alignment.spearman,
        "achieved_at_lowest_prompt": alignment.val["loss"][:, 0].log().mean().exp().item(),
        "test_accuracy_at_lowest_prompt": alignment.lowest_accuracy,
    }


def _novelty_numbers(report: NoveltyReport) -> dict[str, Any]:
    verdicts = {"distance": report.distance, "overlap": report.overlap}
    return {
        "num_networks": len(report.sets[GENERATED].distances),
        "sets": {
            name: {
                "distance": one.distances.mean().item(),
                "overlap": one.overlaps.mean().item(),
                "accuracy": one.accuracies.mean().item(),
            }
            for name, one in report.sets.items()
        },
        "passed": {name: verdict.passed for name, verdict in verdicts.items()},
        "verdicts": {name: verdict.text for name, verdict in verdicts.items()},
    }
