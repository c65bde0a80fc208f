"""What is said of runs that train nothing, or hardly anything."""

import warnings

import pytest
import torch
from torch import nn

from learned_opt import MuLO, tensor_specs
from learned_opt.optimizer.remarks import LATE_STEP, NUM_IN_A_ROW


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def train(model: nn.Module, optimizer: MuLO, num_steps: int = 1, schedule=None) -> None:
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def test_parameters_that_were_replaced():
    """As `to_empty` and quantisation do it."""
    model = make_model().to("meta")
    optimizer = MuLO(model, num_training_steps=50)
    model = model.to_empty(device="cpu")
    with pytest.warns(UserWarning, match="changed nothing, because no parameter had a gradient") as said:
        train(model, optimizer, 2 * NUM_IN_A_ROW)
    assert len(said) == 1
    assert optimizer.inner_step == 0


def test_a_step_without_gradients_now_and_then_is_no_matter():
    model = make_model()
    optimizer = MuLO(model, num_training_steps=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(3 * NUM_IN_A_ROW):
            optimizer.zero_grad()
            optimizer.step() if i % 2 else train(model, optimizer)


def test_rates_of_other_optimizers_in_groups_and_in_schedules():
    model = make_model()
    with pytest.warns(UserWarning, match="training hardly moves"):
        MuLO([{"params": [model[0].bias], "lr": 1e-4}], num_training_steps=9)
    optimizer = MuLO(model, num_training_steps=2 * LATE_STEP)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=2 * LATE_STEP, cycle_momentum=False)
    with pytest.warns(UserWarning, match="training hardly moves") as said:
        train(model, optimizer, LATE_STEP + 2, schedule)
    assert len(said) == 1


def test_long_warm_ups_ends_of_runs_and_frozen_models_are_no_remark():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for factor in (lambda step: step / 10_000, lambda step: max(0.01, 1 - step / LATE_STEP)):
            model = make_model()
            optimizer = MuLO(model, num_training_steps=2 * LATE_STEP)
            train(model, optimizer, LATE_STEP + 2, torch.optim.lr_scheduler.LambdaLR(optimizer, factor))
        model.requires_grad_(False)
        optimizer.zero_grad()
        for _ in range(NUM_IN_A_ROW + 1):
            optimizer.step()


def test_they_point_at_the_program():
    model = make_model()
    optimizer = MuLO(model, num_training_steps=2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=9)
    with pytest.warns(UserWarning, match=r"momentum|beyond num_training_steps") as said:
        train(model, optimizer, 3, schedule)
    assert [remark.filename for remark in said] == [__file__] * 2


class Untraced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) if x.sum() > 0 else self.other(x)


@pytest.mark.parametrize("call", [MuLO, tensor_specs, lambda model: MuLO(model.parameters())])
def test_guesses_point_at_the_program(call):
    with pytest.warns(UserWarning, match="were guessed") as said:
        call(Untraced())
    assert [remark.filename for remark in said] == [__file__]
