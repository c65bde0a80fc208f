"""The pretended device refuses what a GPU refuses, and computes what the CPU computes."""

import pytest
import torch
from torch import nn

from zoo.devices import widest_float

from .pretended_device import SynchronizationError, no_synchronization, pretended_device


@pytest.fixture
def device():
    with pretended_device() as sim:
        yield sim


def test_devices_cannot_be_mixed(device):
    there = torch.ones(3, device=device)
    assert (there * 2).device == device
    with pytest.raises(RuntimeError, match="expected all tensors on sim"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="expected all tensors on sim"):
        torch.ones(3)[there.long()]


def test_scalars_and_indices_of_the_cpu_are_taken(device):
    there = torch.arange(4.0).to(device)
    assert (there + torch.tensor(1.0)).tolist() == [1, 2, 3, 4]
    assert there[torch.tensor([3, 0])].tolist() == [3, 0]
    assert there[[1, 2]].tolist() == [1, 2]


def test_there_is_no_float64(device):
    with pytest.raises(TypeError, match="no float64"):
        torch.zeros(2, device=device).double()
    assert widest_float(device) == torch.float32
    assert widest_float(torch.device("cpu")) == torch.float64


def test_random_numbers_need_a_generator_of_the_device(device):
    with pytest.raises(RuntimeError, match="draw on the CPU"):
        torch.randn(3, generator=torch.Generator(), device=device)


def test_waiting_for_the_device_can_be_forbidden(device):
    there = torch.ones(3, device=device)
    with no_synchronization():
        total = there.sum()
        for wait in (total.item, there.cpu, there.nonzero, lambda: bool(total > 0)):
            with pytest.raises(SynchronizationError):
                wait()
    assert total.item() == 3


def test_training_gives_the_numbers_of_the_cpu(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    inputs, states = torch.randn(5, 8), {}
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for place in ("cpu", device):
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
        model.load_state_dict(start)
        model.to(place)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs.to(place)).square().mean().backward()
            optimizer.step()
        states[str(place)] = {name: value.cpu() for name, value in model.state_dict().items()}
    cpu, sim = states.values()
    for name, value in cpu.items():
        torch.testing.assert_close(sim[name], value, rtol=1e-5, atol=1e-6)


def test_copies_to_the_device_and_masks_wait_too(device):
    here, there = torch.ones(3), torch.ones(3, device=device)
    with no_synchronization():
        for wait in (
            lambda: here.to(device),
            lambda: there.copy_(here),
            lambda: there[there > 0],
            lambda: there[[0, 2]],
            lambda: torch.tensor([1.0], device=device),
        ):
            with pytest.raises(SynchronizationError):
                wait()
        there.copy_(here.to(device, non_blocking=True))
        there[1:] = 2.0


def test_what_comes_from_the_device_must_be_waited_for(device):
    here, there = torch.ones(3), torch.ones(3, device=device)
    for race in (lambda: there.to("cpu", non_blocking=True), lambda: here.copy_(there, non_blocking=True)):
        with pytest.raises(RuntimeError, match="may be read before it is there"):
            race()
