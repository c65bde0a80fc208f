from __future__ import annotations

import pytest
import torch
from learned_opt.meta_training.truncation import Clocks, LogUniformHorizon


def test_horizons_are_log_uniform() -> None:
    horizons = LogUniformHorizon(10, 1000).sample(torch.Generator().manual_seed(0), 20_000)
    assert horizons.min() == 10
    assert horizons.max() == 1000
    assert (horizons < 100).float().mean() == pytest.approx(0.5, abs=0.02)


def test_bad_range_is_refused() -> None:
    with pytest.raises(ValueError, match="low 20, high 10"):
        LogUniformHorizon(20, 10)


def test_each_group_restarts_at_its_own_horizon() -> None:
    clocks = Clocks.start(torch.tensor([2, 3]))
    clocks.advance()
    clocks.advance()
    assert clocks.finished().tolist() == [True, False]
    clocks.restart(torch.tensor([0]), torch.tensor([5]))
    clocks.advance()
    assert clocks.inner_step.tolist() == [1, 3]
    assert clocks.finished().tolist() == [False, True]


def test_staggered_first_trainings_differ_and_last_at_least_one_step() -> None:
    clocks = Clocks.start(torch.full((50,), 100))
    clocks.stagger(torch.Generator().manual_seed(0))
    assert clocks.num_steps.min() >= 1
    assert clocks.num_steps.max() <= 100
    assert len(clocks.num_steps.unique()) > 20


def test_rules_get_integers_while_clocks_agree() -> None:
    clocks = Clocks.start(torch.tensor([4, 4]))
    assert clocks.for_rule(2, torch.device("cpu")) == (0, 4)
    clocks.inner_step[1] = 3
    inner_step, num_steps = clocks.for_rule(2, torch.device("cpu"))
    assert isinstance(inner_step, torch.Tensor)
    assert inner_step.tolist() == [0, 3, 0, 3]
    assert num_steps.tolist() == [4, 4, 4, 4]
