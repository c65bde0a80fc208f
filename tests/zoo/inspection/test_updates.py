import math

import pytest
import torch

from zoo.inspection.summary import summarize
from zoo.inspection.updates import effective_rank, update_statistics, zoo_updates
from zoo.networks.architectures import CNN
from zoo.networks.layout import ParamLayout


def test_effective_rank_counts_equal_directions():
    """k equal singular values have rank k; two of ratio 3 the exponential of their entropy."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 5, generator=generator)).Q for n in (7, 9))
    two = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    for values, expected in [([1.0] * 5, 5), ([2.0, 0, 0, 0, 0], 1), ([0.0] * 5, 0), ([3.0, 1.0, 0, 0, 0], two)]:
        matrix = left @ torch.diag(torch.tensor(values)) @ right.mT
        assert effective_rank(matrix).item() == pytest.approx(expected, rel=1e-4)
        assert effective_rank(torch.stack([matrix, matrix]).mT).tolist() == pytest.approx([expected] * 2, rel=1e-4)


def test_statistics_of_an_update_that_is_known():
    layout = ParamLayout.of(CNN(1, (4,), 3))
    start = torch.ones(2, layout.num_params)
    end = start.clone()
    views = layout.views(end)
    views["head.weight"][1, 0, 0] += 3.0
    views["head.bias"][1] += 1e-6  # below what counts as a change
    views["norms.0.running_mean"] += 1
    found = update_statistics(layout, start, end)
    assert set(found) == {slot.name for slot in layout if slot.kind == "param"}
    weight = found["head.weight"]
    assert weight.share_changed.tolist() == pytest.approx([0, 1 / 12])
    assert weight.norm.tolist() == pytest.approx([0, 3])
    assert weight.relative_norm.tolist() == pytest.approx([0, 3 / math.sqrt(12)])
    assert weight.effective_rank.tolist() == pytest.approx([0, 1])
    assert found["head.bias"].share_changed.tolist() == [0, 0]
    assert found["head.bias"].effective_rank.isnan().all()
    assert found["convs.0.weight"].effective_rank.tolist() == [0, 0]


def test_a_zoo_says_what_its_trainings_changed(small_zoo):
    updates = zoo_updates(small_zoo)
    runs = small_zoo.usable_runs()
    change = small_zoo.params[runs, -1] - small_zoo.params[runs, 0]
    slot = small_zoo.layout.slots[0]
    norms = torch.from_numpy(change[:, slot.span]).norm(dim=1)
    assert norms.min() <= updates[slot.name]["norm"] <= norms.max()
    assert summarize(small_zoo)["updates"].keys() == updates.keys()
