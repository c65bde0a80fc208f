"""Arithmetic on another device gives the numbers of the CPU, there."""

import pytest
import torch

from zoo.networks.architectures import MLP
from zoo.networks.layout import ParamLayout
from zoo.operations import (
    average,
    compress,
    dare,
    exponential_average,
    extrapolate,
    greedy_soup,
    rescale,
    task_arithmetic,
    ties,
)

LAYOUT = ParamLayout.of(MLP(4, (3,), 2))
SCALES = {"hidden.0": torch.tensor([[1.5, 0.5, 2.0]] * 4)}

CALLS = {
    "average": lambda networks, base: average(networks, [1.0, 2.0, 0.5, 1.0]),
    "exponential_average": lambda networks, base: exponential_average(networks, 0.5),
    "greedy_soup": lambda networks, base: greedy_soup(networks, lambda params: params.norm(dim=1)).params,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare": lambda networks, base: dare(networks, base, torch.Generator().manual_seed(0)),
    "extrapolate": lambda networks, base: extrapolate(networks, (0, 1, 2, 4), 9),
    "compress": lambda networks, base: compress(networks[0] - base).dense(),
    "rescale": lambda networks, base: rescale(LAYOUT, networks, SCALES),
}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_numbers_are_those_of_the_cpu(device, name):
    networks = torch.randn(4, LAYOUT.num_params, generator=torch.Generator().manual_seed(1))
    base = torch.randn(LAYOUT.num_params, generator=torch.Generator().manual_seed(2))
    there = CALLS[name](networks.to(device), base.to(device))
    assert there.device.type == torch.device(device).type
    torch.testing.assert_close(there.cpu(), CALLS[name](networks, base), rtol=1e-4, atol=1e-5)
