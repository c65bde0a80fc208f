from itertools import permutations as all_orders

import pytest
import torch
from torch import nn

from zoo.networks import symmetry
from zoo.networks.alignment import align
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import GroupAxis, ParamLayout, SymmetryGroup

ARCHITECTURES = {
    "one hidden layer": lambda: MLP(12, (16,), 5),
    "three hidden layers": lambda: MLP(12, (16, 24, 16), 5),
    "cnn": lambda: CNN(1, (16, 32, 32), 10),
    "transformer": lambda: ByteTransformer(width=16, num_blocks=2, num_heads=4),
    "linear": lambda: MLP(12, (), 5),
}


def initialised(build, num, seed=0):
    """Layout and `num` networks (num, P) as the module initialises them."""
    torch.manual_seed(seed)
    modules = [build() for _ in range(num)]
    layout = ParamLayout.of(modules[0])
    return layout, torch.stack([layout.flatten(module) for module in modules])


@pytest.fixture(params=ARCHITECTURES, ids=str)
def networks(request):
    return initialised(ARCHITECTURES[request.param], 6)


def distance(layout, first, second):
    return (first - second)[..., : layout.num_trainable].double().norm(dim=-1)


def test_align_undoes_a_random_permutation_exactly(networks):
    layout, params = networks
    permuted = symmetry.apply(layout, params, symmetry.sample(layout, len(params), torch.Generator().manual_seed(1)))
    permutations, aligned = align(layout, permuted, params)
    assert torch.equal(aligned, params)
    assert torch.equal(symmetry.apply(layout, permuted, permutations), aligned)


def test_align_never_moves_networks_apart(networks):
    layout, params = networks
    reference = params[0]
    aligned = align(layout, params, reference).params
    assert torch.equal(aligned[0], reference)
    assert (distance(layout, aligned, reference) <= distance(layout, params, reference)).all()
    again = align(layout, aligned, reference).params
    torch.testing.assert_close(distance(layout, again, reference), distance(layout, aligned, reference))


def test_one_group_is_matched_optimally():
    layout, params = initialised(lambda: MLP(3, (5,), 2), 4)
    aligned = align(layout, params[1:], params[0]).params
    orders = torch.tensor(list(all_orders(range(5))))
    for row, found in zip(params[1:], aligned, strict=True):
        everything = symmetry.apply(layout, row.expand(len(orders), -1), {"hidden.0": orders})
        shortest = distance(layout, everything, params[0]).min()
        torch.testing.assert_close(distance(layout, found, params[0]), shortest)


def test_several_groups_come_near_the_optimum():
    layout, params = initialised(lambda: MLP(4, (4, 4), 2), 8)
    aligned = align(layout, params[1:], params[0]).params
    orders = list(all_orders(range(4)))
    pairs = torch.tensor([(first, second) for first in orders for second in orders])
    for row, found in zip(params[1:], aligned, strict=True):
        choice = {"hidden.0": pairs[:, 0], "hidden.1": pairs[:, 1]}
        shortest = distance(layout, symmetry.apply(layout, row.expand(len(pairs), -1), choice), params[0]).min()
        assert distance(layout, found, params[0]) < 1.15 * shortest


def test_networks_are_aligned_independently_of_their_batch(networks):
    layout, params = networks
    together = align(layout, params, params.flip(0)).params
    for n in range(len(params)):
        alone = align(layout, params[n : n + 1], params.flip(0)[n]).params
        assert torch.equal(alone[0], together[n])


def test_bad_input_is_refused():
    layout, params = initialised(lambda: MLP(4, (3,), 2), 2)
    with pytest.raises(ValueError, match="finite"):
        align(layout, params * torch.nan, params[0])
    with pytest.raises(ValueError, match=r"\(N, P\)"):
        align(layout, params[0], params[0])
    with pytest.raises(ValueError, match="parameters, got a vector of"):
        align(layout, params[:, :-1], params[0])


def test_a_quadratic_assignment_is_refused():
    recurrent = (GroupAxis("weight_hh_l0", 0), GroupAxis("weight_hh_l0", 1))
    module = nn.RNN(3, 4)
    layout = ParamLayout.of(module, groups=(SymmetryGroup("hidden", 4, recurrent),))
    params = layout.flatten(module).unsqueeze(0)
    with pytest.raises(ValueError, match="quadratic assignment"):
        align(layout, params, params)
