"""What the model is shown of examples: what the frozen base computes on them, whatever kind of network it is."""

import pytest
import torch

from generator.model.examples import FrozenBase
from tests.zoo.tasks.test_libraries import extra
from zoo import get_task
from zoo.networks.randomness import seeded_module

VIT = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
BASES = {
    "mlp": ({"hidden": (6,)}, ["layers.0", "layers.1"]),
    "cnn": ({"architecture": "cnn", "channels": (4, 6)}, ["convs.0", "convs.1", "head"]),
    "vit": ({"architecture": "timm", "model": "vit_tiny_patch16_224", "model_options": VIT}, ["blocks.*", "head"]),
}


def adapters_on(base, rank=2):
    """A task of adapters on a frozen network of that kind, and that network."""
    if base == "vit":
        extra("timm")
    options, targets = BASES[base]
    network = seeded_module(get_task("warped_images", base="digits", **options).make_model, 0).eval()
    adapter = {"base": network.state_dict(), "rank": rank, "targets": targets}
    return get_task("warped_images", base="digits", adapter=adapter, **options), network


@pytest.mark.parametrize("base", BASES)
def test_of_each_adapted_layer_it_is_seen_what_is_usual_over_places(base):
    task, network = adapters_on(base)
    inputs = task.dataset.train.inputs[:6].unflatten(0, (2, 3))
    seen: list[torch.Tensor] = []
    for name, layer in network.named_modules():
        if f"{name}.lora_A" in task.layout.names:
            layer.register_forward_hook(lambda layer, _, out: seen.append(out))
    network(inputs.flatten(0, 1))
    pooled = {
        2: lambda out: out,
        3: lambda out: out.mean(1),
        4: lambda out: torch.cat((out.mean((2, 3)), out.flatten(2).std(2, correction=0)), dim=1),
    }
    expected = torch.cat([pooled[out.ndim](out) for out in seen], dim=1)
    torch.testing.assert_close(FrozenBase(task)(inputs), expected.unflatten(0, (2, 3)))
