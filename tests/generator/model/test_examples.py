"""What the model is shown of examples: what the frozen base computes on them, whatever kind of network it is."""

import copy

import pytest
import torch
from torch.nn import functional as F

from generator.model.context import NetworkContext
from generator.model.examples import ExampleDescriber, FrozenBase, ObservedExamples
from generator.tokens.normalizer import ParamNormalizer
from tests.zoo.checkpoints.test_adapters import digits_task
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


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"bias": "all"}])
def test_the_base_of_adapters_of_peft_is_seen_as_that_of_ours(kind):
    peft = pytest.importorskip("peft")
    task, network = adapters_on("mlp")
    config = peft.LoraConfig(r=2, target_modules=BASES["mlp"][1], **kind)
    theirs = digits_task(lambda: peft.get_peft_model(copy.deepcopy(network), config))
    inputs = task.dataset.train.inputs[:6].unflatten(0, (2, 3))
    torch.testing.assert_close(FrozenBase(theirs)(inputs), FrozenBase(task)(inputs))


def test_of_frozen_layers_without_adapters_nothing_is_seen():
    def head_alone():
        network = adapters_on("mlp")[1]
        network.layers[0].requires_grad_(False)
        return network

    task = digits_task(head_alone)
    normalizer = ParamNormalizer.fit("chunk", [task.layout], [torch.randn(3, task.layout.num_params)])
    context = NetworkContext.of(normalizer, task.layout, task)
    assert task.layout.base is not None
    assert context.example_options(use_start=False)["num_features"] == 64


def observed(task, members, num_examples, rng):
    """Examples of members of digits_subset, their pixels and labels."""
    indices = torch.randint(len(task.dataset.train), (len(members), num_examples), generator=rng)
    inputs, targets, _ = task.for_members(members).batch(indices, len(members))
    are_given = torch.ones(len(members), dtype=torch.bool)
    return ObservedExamples(inputs.flatten(2), F.one_hot(targets, 2).float(), are_given)


def test_it_is_learned_to_tell_the_description_of_tasks_that_it_has_not_seen():
    task, rng = get_task("digits_subset", hidden=(2,)), torch.Generator().manual_seed(0)
    members = torch.randperm(task.family.num_members, generator=rng)
    unseen, seen = members[:100].tolist(), members[100:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        describer = ExampleDescriber(64, 2, 32, 10)
    optimizer = torch.optim.AdamW(describer.parameters(), 5e-3)
    for _ in range(250):
        some = seen[torch.randint(len(seen), (16,), generator=rng)].tolist()
        told = describer(observed(task, some, 32, rng))
        optimizer.zero_grad()
        (told.values - task.describe(some)).square().mean().backward()
        optimizer.step()
    examples, wanted = observed(task, unseen, 64, rng), task.describe(unseen)
    told = describer(examples)
    assert ((told.values > 0) == (wanted > 0)).float().mean() > 0.97
    few = describer(examples._replace(features=examples.features[:, :4], labels=examples.labels[:, :4]))
    assert few.certainty.mean() < told.certainty.mean() - 0.1
    left_out = describer(examples._replace(is_given=torch.zeros(100, dtype=torch.bool)))
    assert not torch.cat(left_out).any()
