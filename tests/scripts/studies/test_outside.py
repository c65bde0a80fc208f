"""The panel of other people's tasks: how it is divided, swept, kept and judged; the trainings themselves are slow."""

import math
from collections import defaultdict

import pytest
import torch
from torch import nn

from scripts.studies.optimizers.outside.methods import OutsideMethod, learned, outside_rivals
from scripts.studies.optimizers.outside.models import import_torchvision
from scripts.studies.optimizers.outside.report import REFERENCE, panel_rows
from scripts.studies.optimizers.outside.tasks import OutsideTask, Problem, outside_tasks
from scripts.studies.optimizers.outside.training import Trainings, looks, train


def noisy_quadratic() -> Problem:
    model = nn.Linear(4, 1, bias=False)

    def loss(rng: torch.Generator) -> torch.Tensor:
        x = torch.randn(16, 4, generator=rng)
        return (model(x) - x.sum(1, keepdim=True)).square().mean() + 0.1

    return Problem(model, loss)


TASK = OutsideTask("quadratic", "toy", "dev", noisy_quadratic, 128)


def sgd(model: nn.Module, rate: float, num_steps: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), rate)


def test_what_is_reported_is_of_other_families_than_what_choices_are_made_on():
    panels = defaultdict(set)
    for task in outside_tasks():
        panels[task.family].add(task.panel)
        assert looks(task.num_steps)[-1] == task.num_steps
    assert len({task.name for task in outside_tasks()}) == len(outside_tasks()) >= 30
    assert not any({"dev", "outside"} <= found for found in panels.values())
    with pytest.raises(ValueError, match="panels must be among"):
        outside_tasks(["inside"])


def test_a_sweep_goes_on_until_the_best_rate_has_worse_neighbours(tmp_path):
    method = OutsideMethod("SGD", sgd, (3e-3, 1e-2), has_cosine=True)
    swept = Trainings(tmp_path, (0, 1)).sweep(TASK, method, 64)
    assert swept.is_inside
    assert len(swept.rates) > 2
    assert len(swept.runs) == 2
    again = Trainings(tmp_path, (0, 1), train_missing=False).sweep(TASK, method, 64)
    assert again == swept
    assert Trainings(tmp_path, (0, 1, 2), train_missing=False).sweep(TASK, method, 64) is None


def test_what_counts_is_what_would_be_kept():
    """Averages are measured where the method has any, after every power of two steps, and training goes on."""
    run = train(TASK, learned("mulo-norm")[1], 1.0, 128, seed=0)
    assert list(run.losses) == [64, 128]
    assert max(run.losses.values()) < run.start / 2
    exploded = train(TASK, OutsideMethod("SGD", sgd), 1e4, 64, seed=0)
    assert exploded.losses[64] == 10 * exploded.start


def test_tables_of_a_small_panel(tmp_path):
    adamw = next(method for method in outside_rivals() if method.name == REFERENCE)
    rows = list(panel_rows(Trainings(tmp_path), [TASK], [adamw], learned("mulo-norm")))
    ours = {row.setting["method"]: row.figures for row in rows if "geometric mean" in row.figures}
    assert ours[REFERENCE]["geometric mean"] == 1
    assert all(math.isfinite(figures["worst"]) for figures in ours.values())
    assert {row.setting["steps"] for row in rows if "after so many steps" in row.question} == {64, 128}


@pytest.mark.slow
@pytest.mark.parametrize("task", outside_tasks(), ids=lambda task: task.name)
def test_every_task_can_be_learned(task):
    import_torchvision()
    for name in ("timm", "transformers", "peft"):
        pytest.importorskip(name)
    num_steps = 256 if task.family == "small batches" else 64  # which shows no more than 64 examples, one by one
    run = train(task, learned("mulo-norm")[0], 1.0, num_steps, seed=0)
    assert run.losses[num_steps] < run.start
