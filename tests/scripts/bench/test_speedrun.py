"""The small speed-run: its rule, its search, and a contestant of one's own through the whole of it."""

import math

import pytest
import torch

from scripts.bench import speedrun
from scripts.bench.speedrun import STRIDE, Course, fewest_steps

COURSE = Course(8, 1, 2, num_steps=128, target=2.0, bound=0.02)


def my_optimizer(model: torch.nn.Module, rate: float, num_steps: int) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), rate)


def test_runs_pass_by_their_mean_and_number():
    assert COURSE.margin([1.98]) == pytest.approx(0)
    assert COURSE.margin([1.985]) < 0
    assert COURSE.margin([1.985] * 3) > 0
    assert COURSE.margin([1.95, 2.02, 2.02]) < 0


@pytest.mark.parametrize("needed", [3, 9, 100, 128, 131, 700])
@pytest.mark.parametrize("slope", [0.1, 0.35, 1.0])
def test_the_search_ends_where_one_stride_less_fails(needed, slope):
    asked = []

    def losses(num_steps: int) -> list[float]:
        asked.append(num_steps)
        return [1.98 - slope * math.log(num_steps / needed)]

    found = fewest_steps(COURSE, losses)
    assert found % STRIDE == 0
    assert found - STRIDE < needed <= found
    assert len(asked) == len(set(asked)) < 16


def test_a_target_out_of_reach_is_said():
    with pytest.raises(ValueError, match=r"the target of 2.0 is not reached in \d+ steps"):
        fewest_steps(COURSE, lambda num_steps: [2.5])


def test_a_contestant_of_ones_own_gets_a_row(tmp_path, monkeypatch):
    monkeypatch.setitem(speedrun.COURSES, "0.5M", Course(8, 1, 2, num_steps=16, target=4.6, bound=0.02))
    options = {"contestants": ["mine"], "make": f"{__name__}:my_optimizer", "rates": [3e-3], "folder": f"{tmp_path}"}
    sweep, row = speedrun.rows(**options, device="cpu")
    assert sweep.figures["rates tried"] >= 1
    assert row.setting == {"optimizer": "mine"}
    assert row.figures["validation loss"] < 4.6 - 0.02 / 3**0.5
    assert row.figures["steps"] % STRIDE == 0
    monkeypatch.setattr("scripts.studies.optimizers.outside.training.train", None)  # all is kept in the folder
    assert list(speedrun.rows(**options, device="cpu")) == [sweep, row]
    assert list(speedrun.rows(**options, device="cpu", sweep_only=True)) == [sweep]
    assert list(speedrun.rows(**options, device="cpu", rate=sweep.figures["learning rate"])) == [row]
