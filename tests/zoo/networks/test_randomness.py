import random

import numpy as np
import torch
from torch import nn

from zoo.networks.randomness import draws_random_numbers, preserved_randomness, seeded_module


def states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def test_a_seeded_module_is_what_torch_makes_under_that_seed():
    before = states()
    module = seeded_module(lambda: nn.Linear(3, 2), 2**61 + 1)
    assert states() == before
    torch.manual_seed(2**61 + 1)
    assert torch.equal(module.weight, nn.Linear(3, 2).weight)


def test_all_generators_are_left_as_they_were():
    before = states()
    with preserved_randomness():
        torch.rand(3), random.random(), np.random.rand(3)
    assert states() == before


def test_dropout_draws_while_it_trains():
    inputs = torch.ones(4, 3)
    assert draws_random_numbers(nn.Dropout(0.5).train(), inputs)
    assert not draws_random_numbers(nn.Dropout(0.5).eval(), inputs)
