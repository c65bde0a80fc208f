import torch
from torch import nn

from zoo.networks.architectures import CNN
from zoo.networks.initialization import derive_seed, init_mup, run_seed
from zoo.networks.layout import ParamLayout


def test_seeds_are_fixed_for_ever():
    """Zoos record seeds: changing this derivation would change what a recorded plan means."""
    assert run_seed(0, 0) == 8215880369793859364
    assert derive_seed(3, "data order") == 4444691719823327357


def test_seeds_differ_between_zoos_and_runs():
    seeds = {run_seed(zoo, run) for zoo in range(20) for run in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert run_seed(1, 12) != run_seed(11, 2)


def test_mup_leaves_norms_and_embeddings():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 8)
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 3)

    torch.manual_seed(0)
    for model in (Model(), CNN(1, (4, 6), 3)):
        layout = ParamLayout.of(model)
        before = layout.views(layout.flatten(model))
        init_mup(model, layout)
        after = layout.views(layout.flatten(model))
        for slot in layout:
            is_kept = slot.role not in ("input", "hidden", "output", "bias")
            assert torch.equal(before[slot.name], after[slot.name]) == (is_kept or not before[slot.name].any())
