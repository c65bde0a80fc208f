"""Weights in half precision: what rounding takes is kept, through resumes and whatever is skipped."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from learned_opt import LearnedOptimizer, MuLO
from zoo.networks.architectures import MLP
from zoo.tasks.datasets import get_dataset

T = 100


@pytest.fixture(scope="module")
def digits():
    train = get_dataset("digits").train
    return torch.as_tensor(train.inputs).flatten(1), torch.as_tensor(train.targets)


def make(dtype: torch.dtype, **options) -> tuple[nn.Module, LearnedOptimizer]:
    torch.manual_seed(0)
    model = MLP(64, (16,), 10).to(torch.bfloat16).to(dtype)  # all begin at the same weights
    return model, MuLO(model, **{"num_training_steps": T, "lr": 0.01} | options)


def train(model, optimizer, digits, start=0, stop=T) -> None:
    inputs, targets = digits
    for i in range(start, stop):
        rows = torch.arange(64 * i, 64 * i + 64) % len(inputs)
        optimizer.zero_grad()
        loss_of(model, inputs[rows], targets[rows]).backward()
        optimizer.step()


def loss_of(model, inputs, targets) -> torch.Tensor:
    return F.cross_entropy(model(inputs.to(next(model.parameters()).dtype)).float(), targets)


def test_bfloat16_weights_reach_the_loss_of_float32_where_they_fall_short_without(digits):
    losses = {}
    for name, dtype, kahan_sum in (
        ("float32", torch.float32, True),
        ("kept", torch.bfloat16, True),
        ("lost", torch.bfloat16, False),
    ):
        model, optimizer = make(dtype, theta="mulo", num_training_steps=None, lr=0.003, kahan_sum=kahan_sum)
        train(model, optimizer, digits)
        with torch.no_grad():
            losses[name] = float(loss_of(model, *digits))
    gained = abs(losses["lost"] - losses["float32"])
    assert gained > 0.01
    assert abs(losses["kept"] - losses["float32"]) < gained / 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_resumed_run_is_the_uninterrupted_one(digits, dtype):
    model, optimizer = make(dtype)
    train(model, optimizer, digits, 0, 5)
    again, resumed = make(dtype, kahan_sum=False)  # what is saved with remainders goes on with them
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    remainders = [state["remainder"] for state in resumed.state.values()]
    assert any(remainder.any() for remainder in remainders)
    assert all(remainder.dtype == dtype for remainder in remainders)
    for pair in ((model, optimizer), (again, resumed)):
        train(*pair, digits, 5, 10)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_and_remainders_are_the_sum_that_float32_would_hold(digits):
    (coarse, optimizer), (fine, other) = make(torch.bfloat16), make(torch.float32)
    inputs, targets = digits
    for i in range(5):  # both take the gradients of the coarse weights
        optimizer.zero_grad()
        loss_of(coarse, inputs[:64], targets[:64]).backward()
        for a, b in zip(coarse.parameters(), fine.parameters(), strict=True):
            b.grad = a.grad.float()
            if i == 2:
                a.grad.fill_(float("nan"))
                b.grad.fill_(float("nan"))
        optimizer.step()
        other.step()
    for a, b in zip(coarse.parameters(), fine.parameters(), strict=True):
        both = a.float() + optimizer.state[a]["remainder"].float()
        torch.testing.assert_close(both, b, rtol=2**-15, atol=1e-5)
