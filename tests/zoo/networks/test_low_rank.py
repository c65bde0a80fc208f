"""Whatever is said of an adapter is said of B A: the factors may be mixed by any invertible matrix."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from zoo.networks import low_rank
from zoo.networks.adapters import adapt, merge
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import GroupAxis, ParamLayout, SymmetryGroup, low_rank_groups
from zoo.networks.symmetry import numbers_outside

RNG = torch.Generator().manual_seed(0)


def population(base, count=4, **options):
    """Layout, base and random networks (N, P) float64 of adapters, and the products of each layer (N, ...)."""
    model = adapt(base, **options)
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    layout = ParamLayout.of(model, shared=frozen | {name for name, _ in model.named_buffers()})
    params = torch.randn(count, layout.num_params, generator=RNG, dtype=torch.float64)
    return model.double(), layout, params


def computed(model, layout, params, inputs):
    results = []
    for row in params:
        model.load_state_dict({name: value.double() for name, value in layout.unflatten(row).items()}, strict=False)
        results.append(model.eval()(inputs).detach())
    return torch.stack(results)


def products(layout, params):
    """All products B A of each network, formed, as one row (N, ...)."""
    parts = []
    for group in layout.groups:
        up, down = low_rank.factors(layout, group, params)
        parts.append((up @ down).flatten(1))
    return torch.cat(parts, 1)


NETWORKS = [
    (MLP(6, (5, 4), 3), torch.randn(7, 6, generator=RNG).double()),
    (CNN(1, (4, 5), 3), torch.randn(7, 1, 6, 6, generator=RNG).double()),
    (ByteTransformer(9, 6, 8, 1, 2), torch.randint(9, (3, 6), generator=RNG)),
]


@pytest.mark.parametrize(("base", "inputs"), NETWORKS, ids=["mlp", "cnn", "transformer"])
def test_mixing_components_and_the_canonical_form_leave_the_function_as_it_is(base, inputs):
    model, layout, params = population(base, rank=3, alpha=4)
    params /= 4
    assert all(group.kind == "linear" for group in layout.groups)
    expected = computed(model, layout, params, inputs)
    mixed = low_rank.apply(layout, params, low_rank.sample(layout, len(params), RNG))
    assert (mixed - params).abs().max() > 0.1
    form = low_rank.canonical(layout, mixed)
    for other in (mixed, form, low_rank.align(layout, mixed, params[1])):
        torch.testing.assert_close(computed(model, layout, other, inputs), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(form, low_rank.canonical(layout, params))
    assert low_rank.distances(layout, params, mixed).diagonal().max() < 1e-6
    merged = merge(model)  # of the last network
    torch.testing.assert_close(merged(inputs), expected[-1], rtol=1e-3, atol=1e-4)
    assert merged.state_dict().keys() == base.state_dict().keys()


def test_the_canonical_form_is_balanced_ordered_and_has_signs():
    _, layout, params = population(MLP(6, (5,), 3), rank=4)  # above the rank that the last matrix can have
    form = low_rank.canonical(layout, params)
    torch.testing.assert_close(products(layout, form), products(layout, params))
    for group in layout.groups:
        up, down = low_rank.factors(layout, group, form)
        sizes = up.mT @ up
        torch.testing.assert_close(sizes, down @ down.mT)
        spectrum = sizes.diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(sizes, torch.diag_embed(spectrum), rtol=0, atol=1e-9)
        assert (spectrum.diff(dim=1) <= 1e-12).all()
        assert (up.gather(1, up.abs().argmax(1, keepdim=True)) >= 0).all()


def test_inner_products_distances_and_means_are_those_of_the_products():
    _, layout, params = population(MLP(6, (5,), 4), count=5, rank=2, train="*.bias")
    first, second = params[:3], params[3:]
    plain = numbers_outside(layout, low_rank.linear_groups(layout))
    assert int(plain.sum()) == 9
    mine, theirs = (torch.cat([products(layout, p), p[:, plain]], 1) for p in (first, second))
    torch.testing.assert_close(low_rank.inner_products(layout, first, second), mine @ theirs.T)
    torch.testing.assert_close(low_rank.distances(layout, first, second), torch.cdist(mine, theirs))
    torch.testing.assert_close(low_rank.distances(layout, first), torch.cdist(mine, mine), rtol=1e-6, atol=1e-6)
    weights = {group.name: 3.0 for group in layout.groups}
    scaled = 9 * products(layout, first) @ products(layout, second).T + first[:, plain] @ second[:, plain].T
    torch.testing.assert_close(low_rank.inner_products(layout, first, second, weights), scaled)
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    average = low_rank.mean(layout, first, shares)
    torch.testing.assert_close(average[plain], shares @ first[:, plain])
    for group in layout.groups:
        up, down = low_rank.factors(layout, group, first)
        u, s, vh = torch.linalg.svd(torch.einsum("n,noi->oi", shares, up @ down))
        up, down = low_rank.factors(layout, group, average[None])
        torch.testing.assert_close((up @ down)[0], u[:, :2] * s[:2] @ vh[:2])
    mixed = low_rank.apply(layout, first, low_rank.sample(layout, 3, RNG))
    torch.testing.assert_close(low_rank.mean(layout, mixed, shares), average)


def test_aligned_factors_are_those_of_the_reference_where_the_products_are():
    _, layout, params = population(MLP(6, (5,), 4), rank=2)
    mixed = low_rank.apply(layout, params[:1], low_rank.sample(layout, 1, RNG))
    torch.testing.assert_close(low_rank.align(layout, mixed, params[0]), low_rank.canonical(layout, params[:1]))
    near = mixed + 0.01 * torch.randn(mixed.shape, generator=RNG, dtype=torch.float64)
    aligned = low_rank.align(layout, near, params[0])
    middle = (aligned + low_rank.canonical(layout, params[:1])) / 2
    expected = low_rank.mean(layout, torch.cat([near, params[:1]]))
    assert low_rank.distances(layout, middle, expected[None]) < 0.05 * low_rank.distances(layout, middle * 0, middle)


def test_alignment_is_exact_and_the_same_for_all_factors_of_a_product():
    _, layout, params = population(MLP(6, (5,), 4), rank=3, train="*.bias")
    reference = low_rank.canonical(layout, params[:1])[0]
    aligned = low_rank.align(layout, params, reference)
    mixed = low_rank.apply(layout, params, low_rank.sample(layout, len(params), RNG))
    torch.testing.assert_close(low_rank.align(layout, mixed, reference), aligned, rtol=1e-5, atol=1e-8)
    least = (aligned - reference).square().sum(1)
    for size in (1e-3, 0.1, 1.0):  # turned a little or far, no rotation of components is nearer
        turns = {
            group.name: torch.matrix_exp(size * (drawn - drawn.mT))
            for group in layout.groups
            for drawn in [torch.randn(len(params), group.size, group.size, generator=RNG, dtype=torch.float64)]
        }
        turned = low_rank.apply(layout, aligned, turns)
        assert ((turned - reference).square().sum(1) >= least - 1e-9).all()


def test_what_stands_between_the_factors_takes_the_symmetry_away():
    pair = {"a.lora_A.weight": (2, 6), "a.lora_B.weight": (5, 2)}

    def kinds(**more):
        return [
            group.kind for group in low_rank_groups(pair | {name.replace("__", "."): s for name, s in more.items()})
        ]

    assert kinds() == ["linear"]
    assert kinds(a__lora_magnitude_vector=(5,), a__lora_B__bias=(5,), b__lora_E=(2, 1)) == ["linear"]
    assert kinds(a__lora_E=(2, 1)) == ["permutation"]
    assert kinds(a__lora_E=(2, 2)) == kinds(a__lora_inner=(2, 2)) == kinds(a__lora_A__bias=(2,)) == []
    assert low_rank_groups({"a.lora_A.weight": (2, 6), "a.lora_B.weight": (5, 3)}) == ()


class Inner(nn.Module):
    """An adapter whose names say nothing of the matrix between its factors."""

    def __init__(self, between):
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.zeros(3, 2))
        self.between = between

    def forward(self, x):
        return self.between(x @ self.lora_A.T) @ self.lora_B.T


@pytest.mark.parametrize(
    ("between", "linear", "permuted"),
    [(nn.Identity(), True, True), (nn.ReLU(), False, True), (nn.Linear(2, 2, bias=False), False, False)],
    ids=["product", "relu", "matrix"],
)
def test_a_symmetry_is_found_by_running_the_network(between, linear, permuted):
    model = Inner(between)
    inputs = torch.randn(20, 6, generator=RNG)

    def forward(values):
        return torch.func.functional_call(model, values, (inputs,))

    (group,) = low_rank_groups({"lora_A": (2, 6), "lora_B": (3, 2)})
    assert low_rank.holds(forward, model.state_dict(), group) == linear
    assert low_rank.holds(forward, model.state_dict(), replace(group, kind="permutation")) == permuted
    assert not low_rank.holds(lambda values: inputs, model.state_dict(), group)


def test_layouts_without_products_and_bad_arguments_are_refused():
    layout = ParamLayout.of(MLP(6, (5,), 4))
    with pytest.raises(ValueError, match="any invertible matrix may mix, got 4 tensors"):
        low_rank.canonical(layout, torch.zeros(1, layout.num_params))
    _, layout, params = population(MLP(6, (5,), 4), rank=2)
    with pytest.raises(ValueError, match=r"mixing names \['other'\]"):
        low_rank.apply(layout, params, {"other": torch.eye(2)[None]})
    with pytest.raises(ValueError, match="a linear one with two axes"):
        SymmetryGroup("a", 2, (GroupAxis("x", 0),), "linear")


def test_layouts_with_a_base_and_linear_groups_are_kept_by_json():
    _, layout, _ = population(CNN(1, (4,), 3), rank=2)
    assert ParamLayout.from_json(layout.to_json()) == layout
    assert layout.base.num_params == ParamLayout.of(CNN(1, (4,), 3)).num_params
