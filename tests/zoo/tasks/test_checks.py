"""Data, modules and objectives that do not fit together are refused before anything is trained, in one line."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from zoo.tasks.datasets import Dataset, Split
from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.policies import PolicyTask
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task

N = 12
INPUTS = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
SIGNS = (INPUTS[:, 0] > 0).long()
PLANE = 2 * INPUTS[:, :1] - INPUTS[:, 1:2]


def dataset(targets, num_classes=0, inputs=INPUTS):
    part = Split(inputs, targets)
    return Dataset("own", part, part, part, num_classes, "own-1")


def make_task(data, objective, num_outputs):
    return Task("own", data, lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, num_outputs)), objective)


@pytest.mark.parametrize(
    ("objective", "targets", "num_classes", "num_outputs", "message"),
    [
        ("squared_error", PLANE[:, 0], 0, 1, r"expected targets \(n, 1\) .* got \(n,\); use targets.unsqueeze"),
        ("squared_error", PLANE, 0, 2, r"expected targets \(n, 2\) .* got \(n, 1\)"),
        ("squared_error", SIGNS[:, None], 0, 1, "expected targets of float32, as outputs are, got int64"),
        ("squared_error", PLANE.double(), 0, 1, "expected targets of float32, as outputs are, got float64"),
        ("binary_cross_entropy", 2 * SIGNS - 1, 2, 1, "expected labels from 0 to 1, got -1 in"),
        ("binary_cross_entropy", SIGNS.float(), 2, 1, "expected labels that are integers, got float32"),
        ("binary_cross_entropy", SIGNS[:, None], 2, 1, r"expected labels \(n,\) .* got \(n, 1\); use labels.squeeze"),
        ("binary_cross_entropy", SIGNS, 2, 2, "expected one output"),
        ("cross_entropy", SIGNS + 1, 2, 2, "expected labels from 0 to 1, got 2 in"),
        ("cross_entropy", SIGNS.where(SIGNS > 0, -100), 2, 2, "expected labels from 0 to 1, got -100 in"),
        ("cross_entropy", SIGNS.float(), 2, 2, r"expected labels of int64, got float32; convert them with .long\(\)"),
        ("cross_entropy", SIGNS.byte(), 2, 2, "expected labels of int64, got uint8"),
        ("cross_entropy", nn.functional.one_hot(SIGNS), 2, 2, r"expected labels \(n,\) .*argmax"),
        ("cross_entropy", SIGNS, 3, 2, "expected 3 outputs, one for each class, got 2"),
    ],
)
def test_targets_that_do_not_fit_are_refused(objective, targets, num_classes, num_outputs, message):
    with pytest.raises(ValueError, match=f"^task 'own': train split: {message}"):
        make_task(dataset(targets, num_classes), OBJECTIVES[objective], num_outputs)


def test_all_splits_are_looked_through():
    data = dataset(SIGNS, 2)
    late = replace(data, test=Split(INPUTS, 2 * SIGNS - 1))
    with pytest.raises(ValueError, match="test split: expected labels from 0 to 1, got -1"):
        make_task(late, OBJECTIVES["cross_entropy"], 2)
    missing = replace(data, val=Split(INPUTS.where(INPUTS < 1, torch.nan), SIGNS))
    with pytest.raises(ValueError, match=r"val split of 'own': expected finite inputs, got .* NaN or infinite"):
        make_task(missing, OBJECTIVES["cross_entropy"], 2)
    wider = replace(data, val=Split(torch.zeros(N, 5), SIGNS))
    with pytest.raises(ValueError, match=r"as in the train split, float32 \(n, 4\), got float32 \(n, 5\)"):
        make_task(wider, OBJECTIVES["cross_entropy"], 2)
    foreign = replace(data, val=Split(INPUTS.numpy(), SIGNS))
    with pytest.raises(ValueError, match=r"val split of 'own': expected inputs .* to be tensors .*from_numpy"):
        make_task(foreign, OBJECTIVES["cross_entropy"], 2)
    shorter = replace(data, val=Split(INPUTS, SIGNS[1:]))
    with pytest.raises(ValueError, match="got 12 inputs and 11 targets"):
        make_task(shorter, OBJECTIVES["cross_entropy"], 2)


class Careless:
    """Squared error that broadcasts."""

    name = "careless"

    def loss(self, outputs, targets):
        return (outputs - targets).square().flatten(1).mean(1)

    error = loss


def test_an_objective_of_ones_own_must_not_broadcast():
    make_task(dataset(PLANE), Careless(), 1)
    with pytest.raises(ValueError, match=r"outputs \(8, 1\) and targets \(8,\) broadcast against each other"):
        make_task(dataset(PLANE[:, 0]), Careless(), 1)


def test_outputs_must_have_a_row_for_each_example():
    with pytest.raises(ValueError, match=r"expected outputs \(8, ..., K\) for 8 examples, got \(8,\)"):
        Task("own", dataset(PLANE), lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), OBJECTIVES["squared_error"])


def test_policies_have_one_output_for_each_action():
    task = get_task("cartpole", horizon=5)
    with pytest.raises(ValueError, match="expected 2 outputs, one for each action of 'cartpole'"):
        PolicyTask("own", task.dataset, lambda: nn.Linear(4, 3), task.environment)
