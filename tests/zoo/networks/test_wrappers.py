import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from zoo.networks.layout import LayoutMismatchError, ParamLayout
from zoo.networks.wrappers import unwrapped


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 3, bias=False)
        self.decoder = nn.Linear(3, 3, bias=False)
        self.decoder.weight = self.head.weight


class Holder(nn.Module):
    def __init__(self, name, module):
        super().__init__()
        self.add_module(name, module)


def parts_wrapped(model):
    model = copy.deepcopy(model)
    model.encoder = nn.DataParallel(torch.compile(model.encoder))
    model.encoder.module._orig_mod[0] = checkpoint_wrapper(model.encoder.module._orig_mod[0])
    return model


WRAPPERS = {
    "none": lambda model: model,
    "compile": torch.compile,
    "DataParallel": nn.DataParallel,
    "compile of DataParallel": lambda model: torch.compile(nn.DataParallel(model)),
    "DataParallel twice, of compile": lambda model: nn.DataParallel(nn.DataParallel(torch.compile(model))),
    "average": AveragedModel,
    "average of compile": lambda model: AveragedModel(torch.compile(model)),
    "activation checkpointing": checkpoint_wrapper,
    "Lightning Fabric": lambda model: Holder("_forward_module", Holder("module", model)),
    "FSDP": lambda model: Holder("_fsdp_wrapped_module", model),
}
NEEDS_LAYOUT = {
    "parts": parts_wrapped,
    "LightningModule": lambda model: Holder("model", model),
    "LightningModule with a compiled average": lambda model: Holder("net", torch.compile(AveragedModel(model))),
}


def same(tensors, state):
    return list(tensors) == list(state) and all(torch.equal(value, state[name]) for name, value in tensors.items())


@pytest.mark.parametrize("wrap", [*WRAPPERS.values(), *NEEDS_LAYOUT.values()], ids=[*WRAPPERS, *NEEDS_LAYOUT])
def test_names_become_those_of_the_layout(wrap):
    model = Tied()
    layout = ParamLayout.of(model)
    tensors = unwrapped(wrap(model).state_dict(), layout)
    assert same(tensors, model.state_dict())
    assert torch.equal(layout.flatten(tensors), layout.flatten(model))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_without_a_layout_what_only_wrappers_insert_is_removed(wrap):
    model = Tied()
    assert same(unwrapped(wrap(model).state_dict()), model.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, nn.DataParallel, parts_wrapped, NEEDS_LAYOUT["LightningModule"]],
    ids=lambda wrap: wrap.__name__,
)
def test_the_layout_may_be_that_of_the_wrapped_module(wrap):
    model = Tied()
    layout = ParamLayout.of(wrap(model))
    assert torch.equal(layout.flatten(unwrapped(model.state_dict(), layout)), layout.flatten(wrap(model)))


def test_a_counter_that_the_layout_has_is_kept():
    average = AveragedModel(Tied())
    layout = ParamLayout.of(average)
    assert same(unwrapped(average.state_dict(), layout), average.state_dict())
    assert "n_averaged" in unwrapped({"weight": torch.ones(2), "n_averaged": torch.tensor(3)})


def test_parts_of_the_network_itself_are_left_alone():
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "model": nn.Linear(2, 2)})
    for layout in (None, ParamLayout.of(model)):
        assert same(unwrapped(model.state_dict(), layout), model.state_dict())
        assert same(unwrapped(nn.DataParallel(model).state_dict(), layout), model.state_dict())


def test_what_the_layout_does_not_have_is_reported_not_dropped():
    model = nn.Linear(2, 2)
    layout = ParamLayout.of(model)
    extra = {**Holder("net", model).state_dict(), "loss.weight": torch.ones(3)}
    with pytest.raises(LayoutMismatchError, match=r"unexpected 'loss\.weight'"):
        layout.flatten(unwrapped(extra, layout))


def test_two_copies_of_the_network_are_refused():
    model = nn.Linear(2, 2)
    layout = ParamLayout.of(model)
    both = {**Holder("net", model).state_dict(), **Holder("ema", AveragedModel(nn.Linear(2, 2))).state_dict()}
    with pytest.raises(LayoutMismatchError, match=r"\['ema\.', 'net\.'\]; keep one"):
        unwrapped(both, layout)
    both = {**model.state_dict(), **torch.compile(nn.Linear(2, 2)).state_dict()}
    for known in (None, layout):
        with pytest.raises(LayoutMismatchError, match="twice"):
            unwrapped(both, known)
