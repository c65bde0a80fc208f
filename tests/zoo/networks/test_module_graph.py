import random

import numpy as np
import torch
from torch import nn

from zoo.networks.module_graph import ModuleGraph


class Stateful(nn.Module):
    """Changes itself in the forward pass, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("count", torch.zeros(()))
        self.seen: list[object] = []
        self.last = None

    def forward(self, x):
        self.count += 1
        self.seen.append(x)
        self.last = self.layer(x) + torch.randn(3) + random.random() + float(np.random.rand())
        return self.last


def test_tracing_leaves_the_module_and_the_random_state_alone():
    module, called = Stateful(), []
    module.layer.register_forward_hook(lambda *_: called.append(1))
    states = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    assert ModuleGraph(module).ends(["layer.weight"], []) == ({"layer.weight"}, {"layer.weight"})
    assert (module.count, module.seen, module.last, called) == (0, [], None, [])
    assert states == (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


def test_what_depends_on_data_tells_nothing():
    graph = ModuleGraph(Branching())
    assert graph.ends(["layer.weight"], []) is None
    assert graph.use_of("layer.weight") is None


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.unused = nn.Linear(4, 4)

    def forward(self, tokens):
        x = self.table(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_branches_of_a_residual_stream_are_neither_first_nor_last():
    matrices = ["head.weight", "blocks.0.weight", "blocks.1.weight", "unused.weight"]
    first, last = ModuleGraph(Residual()).ends(matrices, ["table.weight"])
    assert first == set()
    assert last == {"head.weight"}
