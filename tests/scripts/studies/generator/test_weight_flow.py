import torch

from scripts.bench.generator_rivals import outside_span
from scripts.studies.generator.weight_flow import WeightFlow, WeightFlowConfig
from zoo.networks.alignment import align
from zoo.networks.architectures import MLP
from zoo.networks.layout import ParamLayout
from zoo.networks.symmetry import apply

LAYOUT = ParamLayout.of(MLP(5, (6,), 3))
SMALL = WeightFlowConfig(num_components=3, width=32, time_width=4, num_steps=600, num_sampling_steps=10)


def reordered_networks(num_networks):
    """Networks that are one and the same but for small noise and the order of their units."""
    rng = torch.Generator().manual_seed(0)
    params = torch.randn(LAYOUT.num_params, generator=rng)
    params = params + 0.1 * torch.randn(num_networks, LAYOUT.num_params, generator=rng)
    (group,) = LAYOUT.groups
    orders = torch.stack([torch.randperm(group.size, generator=rng) for _ in range(num_networks)])
    return apply(LAYOUT, params, {group.name: orders})


def asked(number):
    return {"val_loss": torch.zeros(number)}


def test_networks_of_a_flow_are_like_those_it_was_fitted_to_and_lie_in_their_span():
    learned = reordered_networks(10)
    flow = WeightFlow.fit(LAYOUT, learned, SMALL)
    made = flow(None, asked(20), torch.Generator().manual_seed(1))
    aligned = align(LAYOUT, learned, learned[0]).params
    assert (made - aligned.mean(0)).norm(dim=1).mean() < 1.5 * (aligned - aligned.mean(0)).norm(dim=1).mean()
    assert outside_span(LAYOUT, made, learned) < 1e-6
    assert outside_span(LAYOUT, made + torch.randn_like(made), learned) > 0.1


def test_a_flow_follows_from_its_seeds():
    learned, config = reordered_networks(4), WeightFlowConfig(num_components=0, width=8, time_width=2, num_steps=3)
    first, again, other = (WeightFlow.fit(LAYOUT, learned, config, seed=seed) for seed in (0, 0, 1))
    one, same, unlike = (flow(None, asked(2), torch.Generator().manual_seed(1)) for flow in (first, again, other))
    assert torch.equal(one, same)
    assert not torch.equal(one, unlike)
    assert one.shape == (2, LAYOUT.num_params)
