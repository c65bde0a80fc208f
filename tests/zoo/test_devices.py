import pytest
import torch

from tests.pretended_device import pretended_device
from zoo.devices import resolve_device


def test_auto_is_a_device_that_computes():
    device = resolve_device("auto")
    assert torch.zeros(2, device=device).device == device
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu")])
def test_cpu_has_the_device_of_its_tensors(name):
    assert resolve_device(name) == torch.zeros(1).device


@pytest.mark.parametrize("name", ["sim", "sim:0"])
def test_index_is_that_of_tensors_on_the_device(name):
    with pretended_device():
        assert resolve_device(name) == torch.zeros(1, device=name).device == torch.device("sim", 0)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", "hpu", "cpu:1", "", 7, None])
def test_device_that_is_not_there_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=r"no device '.*' on this machine; choose one of \['cpu'.*'auto'"):
        resolve_device(name)


def test_pretended_device_has_one_card():
    with pretended_device(), pytest.raises(ValueError, match="sim:1"):
        resolve_device("sim:1")
