from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.initialization import Initializer, derive_seed, run_seed
from zoo.networks.layout import ParamLayout
from zoo.networks.parametrization import parametrize


def test_seeds_are_fixed_for_ever():
    """Zoos record seeds: changing this derivation would change what a recorded plan means."""
    assert run_seed(0, 0) == 8215880369793859364
    assert derive_seed(3, "data order") == 4444691719823327357


def test_seeds_differ_between_zoos_and_runs():
    seeds = {run_seed(zoo, run) for zoo in range(20) for run in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert run_seed(1, 12) != run_seed(11, 2)


class Accumulated(nn.Module):
    """What it is built from changes whenever it is built."""

    shared: ClassVar[Tensor] = torch.zeros(2)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(self.shared.add_(1).clone())


class Chosen(nn.Module):
    """Reads what was drawn: directly, or in a way that no operator shows."""

    def __init__(self, *, hidden):
        super().__init__()
        drawn = torch.rand(3)
        size = drawn.argmax().tolist() if hidden else float(drawn.max())
        self.weight = nn.Parameter(torch.full((2,), float(size)))


class Spoilt(nn.Linear):
    """Changes in place what building has only filled once."""

    def __init__(self):
        super().__init__(3, 2)
        with torch.no_grad():
            self.bias.fill_(1).add_(torch.rand(2)).mul_(3)
            self.weight.copy_(nn.init.orthogonal_(torch.empty(2, 3)))


BUILDS = {
    "mlp": lambda: MLP(6, (5, 4), 3),
    "mup": lambda: parametrize(MLP(6, (5,), 3)),
    "cnn": lambda: CNN(1, (3, 2), 4),
    "transformer": lambda: ByteTransformer(16, 8, 8, 1, 2),
    "torch's transformer": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "spoilt": Spoilt,
    "reads": lambda: Chosen(hidden=False),
    "reads unseen": lambda: Chosen(hidden=True),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_networks_are_those_that_are_built_under_their_seeds(build):
    layout, seeds = ParamLayout.of(build()), [3, 2**61 + 1, 3, 7]
    state = torch.random.get_rng_state()
    params = Initializer(build, layout)(seeds)
    assert torch.equal(torch.random.get_rng_state(), state)
    for row, seed in zip(params, seeds, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(row, layout.flatten(build()))


def test_only_what_repeats_is_repeated():
    builds = BUILDS | {"accumulates": Accumulated}
    built = {name for name, build in builds.items() if Initializer(build, ParamLayout.of(build()))._program is None}
    assert built == {"reads", "reads unseen", "accumulates"}
