"""Pipelines on the Hugging Face Hub, with a card that says what can be asked, of what, and how well it is met."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from zoo.hub import card, facts
from zoo.storage.zoo import Zoo

if TYPE_CHECKING:
    from generator.saved_pipeline import SavedPipeline


def pipeline_card(
    pipe: SavedPipeline,
    repo_id: str,
    *,
    license: str | None = None,
    zoos: Sequence[Zoo] = (),
    results: Mapping[str, Mapping[str, float]] | None = None,
) -> bytes:
    """The card of a pipeline: what it says of itself, the zoos that it learned from, and what was measured."""
    model = pipe.model
    ranges = {name: f"{known.low:.4g} to {known.high:.4g}" for name, known in model.ranges.items()}
    reads_images = model.config["num_fingerprints"] or pipe.normalizer.config["recompute_batch_norm"]
    known = {
        "can be asked for": ", ".join(f"{name} from {bounds}" for name, bounds in ranges.items()) or "nothing",
        "starts": "a network to begin with, or none" if model.config["use_start"] else "none, networks from noise",
        "networks": "; ".join(
            f"{layout.num_params:,} numbers in {len(layout.slots)} tensors" for layout in pipe.normalizer.layouts
        ),
        "tokens": pipe.normalizer.config["tokenizer"],
        "numbers of the generator": f"{sum(param.numel() for param in model.parameters()):,}",
        "needs the task when it samples": "yes" if reads_images else "no",
    }
    if model.config["num_task_bits"]:
        known["task bits"] = str(model.config["num_task_bits"])
    if reads := pipe.config["descriptions"]:
        known["descriptions in words"] = f"read by {reads}"
    asked = next(iter(ranges), "")
    prompt = f'prompt={{"{asked}": {(model.ranges[asked].low + model.ranges[asked].high) / 2:.3g}}}, ' if asked else ""
    data = [
        f"- {zoo.num_runs:,} runs of {zoo.num_snapshots} snapshots; data `{zoo.spec.data_hash or 'unknown'}`; task "
        f"`{json.dumps(dict(zoo.spec.task_config))}`"
        for zoo in zoos
    ]
    measured = [
        f"- {name}: " + ", ".join(f"{figure} {value:.4g}" for figure, value in figures.items())
        for name, figures in (results or {}).items()
    ]
    return card(
        repo_id,
        "Generates parameters of neural networks for a prompt.",
        "```python\nfrom generator import ParameterPipeline\n\n"
        f'pipe = ParameterPipeline.from_pretrained("hf://{repo_id}")\n'
        f"generated = pipe({prompt}num_samples=4)\nstates = generated.state_dicts()  # for load_state_dict\n```",
        facts(known),
        *(["## Learned from", "\n".join(data)] if data else []),
        *(["## Measured", "\n".join(measured)] if measured else []),
        tags=["parameter-generation"],
        license=license,
    )
