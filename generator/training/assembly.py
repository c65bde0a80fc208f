"""From zoos to an untrained model: statistics of training runs, and the options that follow from their networks.

Legend: N networks, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from generator.model.context import NetworkContext
from generator.model.fingerprints import num_fingerprints
from generator.model.transformer import RecurrentDiffusionTransformer, model_widths
from generator.tokens.normalizer import ParamNormalizer
from generator.tokens.tokenizer import ChunkTokenizer
from generator.training.config import GeneratorConfig
from generator.trajectories import Trajectories
from zoo.networks import low_rank
from zoo.tasks.task import Task

_NETWORKS_FOR_STATISTICS: Final = 8192
_MAX_NUMBERS: Final = 2**29  # numbers read for the statistics of one zoo


def assemble(
    runs: Sequence[Trajectories], tasks: Sequence[Task | None], config: GeneratorConfig
) -> tuple[RecurrentDiffusionTransformer, ParamNormalizer, list[NetworkContext]]:
    """Untrained model, statistics fitted on the training runs, and the context of each zoo.

    The model's initial weights follow from the seed of the optimization.
    """
    prediction, are_adapters = config.objective.prediction, any(low_rank.has_adapters(one.layout) for one in runs)
    if prediction != "sample" and (are_adapters or config.model.get("num_corrections")):
        raise ValueError(
            "adapters are compared by products, and corrections run the networks that are predicted: use "
            f"prediction='sample', not {prediction!r}"
        )
    rng = torch.Generator().manual_seed(config.optimization.seed)
    sizes = [min(_NETWORKS_FOR_STATISTICS, _MAX_NUMBERS // one.layout.num_params + 1) for one in runs]
    samples: list[Tensor | Iterator[Tensor]] = [  # adapters, which are small, are looked at again
        one.sample(size, rng) if low_rank.has_adapters(one.layout) else one.sample_in_parts(size, rng)
        for one, size in zip(runs, sizes, strict=True)
    ]
    normalizer = ParamNormalizer.fit(
        config.tokenizer,
        [one.layout for one in runs],
        samples,
        chunk_width=config.chunk_width,
        recompute_batch_norm=config.recompute_batch_norm,
        statistics_per_number=config.statistics_per_number,
    )
    contexts = [
        NetworkContext.of(normalizer, one.layout, task, real if isinstance(real, Tensor) else None)
        for one, task, real in zip(runs, tasks, samples, strict=True)
    ]
    nodes, edges = model_widths([context.tokenizer for context in contexts])
    ranges = {}
    for name in config.metric_names:
        known = [one.range_of(name) for one in runs]
        ranges[name] = (min(one.low for one in known), max(one.high for one in known))
    options, centre = model_options(runs, tasks, contexts, config), None
    if config.centred:
        centre = mean_answer(contexts, samples[0], diffusion=options.get("diffusion", True))
        options["num_centred"] = len(centre)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.optimization.seed)
        model = RecurrentDiffusionTransformer(nodes, edges, ranges, **options)
    if centre is not None:
        model.centre.copy_(centre)
    told = [one.descriptions.vectors for one in runs if one.descriptions is not None]
    if told:
        model.description_reader.fit(torch.cat([vectors.flatten(0, 1) for vectors in told]))
    return model, normalizer, contexts


def model_options(
    runs: Sequence[Trajectories],
    tasks: Sequence[Task | None],
    contexts: Sequence[NetworkContext],
    config: GeneratorConfig,
) -> dict[str, Any]:
    """Options of the model: those of the config, and what follows from the networks and tasks."""
    options = {"use_latent": config.objective.energy_score, "num_task_bits": config.num_task_bits, **config.model}
    # Near a start that they share no product of adapters is zero, and draws would only disturb it.
    if not config.centred and any(low_rank.has_adapters(one.layout) for one in runs):
        drawn = [one.tokenizer.drawn_keys for one, its in zip(contexts, runs, strict=True) if not its.as_trained]
        options["drawn_blocks"] = sorted(set().union(*drawn))
    if not config.pairs.start_share and not options.get("noisy_as_start"):
        options["use_start"] = False  # no update of a start is ever trained
    if config.fingerprints:
        options["num_fingerprints"] = max(num_fingerprints(task) for task in tasks if task is not None)
    if config.pairs.num_examples is not None:
        options["examples"] = contexts[0].example_options(
            use_start=options.get("use_start", True), described=config.objective.description_weight > 0
        )
    widths = [one.descriptions.vectors.shape[2] for one in runs if one.descriptions is not None]
    return options | ({"description_width": widths[0]} if widths else {})


def mean_answer(contexts: Sequence[NetworkContext], adapters: object, *, diffusion: bool) -> Tensor:
    """The mean (P,) of adapters (N, P), normalised, to which answers in one pass are added."""
    layout = contexts[0].layout
    if (
        not isinstance(adapters, Tensor)
        or len(contexts) > 1
        or diffusion
        or isinstance(contexts[0].tokenizer, ChunkTokenizer)
    ):
        raise ValueError(
            "centred answers, in one pass, are of one zoo of adapters, in neuron tokens: set centred=False"
        )
    return contexts[0].scale.normalize(low_rank.mean(layout, adapters))
