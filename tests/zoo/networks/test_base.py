import torch
from torch import nn

from zoo.networks.base import hash_of, shared_names, sharing_copy, with_own_memory


class Normed(nn.Module):
    """A frozen layer, statistics that training changes, and buffers that are constant, drawn, or not saved."""

    def __init__(self, frozen):
        super().__init__()
        self.frozen, self.norm, self.head = frozen, nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.register_buffer("mask", torch.ones(4))
        self.register_buffer("drawn", torch.randn(4))
        self.register_buffer("unsaved", torch.ones(4), persistent=False)

    def forward(self, x):
        return self.head(self.norm(self.frozen(x)) * self.mask * self.drawn)


def build(seed):
    frozen = nn.Linear(3, 4).requires_grad_(False)
    nn.init.eye_(frozen.weight)
    nn.init.zeros_(frozen.bias)
    torch.manual_seed(seed)
    return Normed(frozen)


def test_what_training_leaves_alone_and_no_seed_changes_is_shared():
    assert shared_names(build(0), build(1), torch.randn(5, 3)) == {"frozen.weight", "frozen.bias", "mask"}


def test_the_hash_tells_names_types_shapes_and_bits():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True), "c": torch.ones(2, dtype=torch.bfloat16)}
    known = hash_of(tensors)
    assert hash_of(dict(reversed(tensors.items()))) == known
    assert hash_of({}) == ""
    changes = [
        {"a": tensors["a"].view(3, 2)},
        {"a": tensors["a"].double()},
        {"b": torch.tensor(False)},
        {"c": -tensors["c"]},
        {"a": torch.where(tensors["a"] == 0, -0.0, tensors["a"])},
    ]
    assert len({known, *(hash_of(tensors | change) for change in changes)}) == 1 + len(changes)


def test_a_sharing_copy_has_the_same_memory_and_its_own_settings():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    module.append(module[0])  # tied
    twin = sharing_copy(module)
    for name, tensor in module.state_dict(keep_vars=True).items():
        assert (twin.state_dict()[name].data_ptr() == tensor.data_ptr()) == isinstance(tensor, nn.Parameter)
    twin.requires_grad_(False)
    twin[1].eps = 1.0
    twin.double()
    assert twin[0].weight is twin[2].weight
    assert all(param.requires_grad and param.dtype == torch.float32 for param in module.parameters())
    assert module[1].eps == 1e-5
    twin = sharing_copy(module)
    twin[0].requires_grad_(False)
    with_own_memory(twin)
    assert twin[0].weight.data_ptr() == module[0].weight.data_ptr()
    assert twin[1].weight.data_ptr() != module[1].weight.data_ptr()
