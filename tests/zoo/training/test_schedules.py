import itertools

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, SequentialLR

from zoo.training.schedules import Schedule

NUM_MAIN = 20  # steps after the warm-up


@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
@pytest.mark.parametrize("name", ["constant", "cosine", "wsd"])
def test_equals_torch_schedulers(name, warmup_steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    num_steps = warmup_steps + NUM_MAIN
    stages = {
        "constant": [(ConstantLR(optimizer, factor=1.0), NUM_MAIN)],
        "cosine": [(CosineAnnealingLR(optimizer, T_max=NUM_MAIN, eta_min=0.1), NUM_MAIN)],
        "wsd": [
            (ConstantLR(optimizer, factor=1.0), NUM_MAIN - NUM_MAIN // 5),
            (LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=NUM_MAIN // 5), NUM_MAIN // 5),
        ],
    }[name]
    if warmup_steps:  # torch before 2.12 starts a stage that follows one of no steps a step late
        warmup = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
        stages = [(warmup, warmup_steps), *stages]
    ends = list(itertools.accumulate(length for _, length in stages))
    scheduler = SequentialLR(optimizer, [stage for stage, _ in stages], milestones=ends[:-1])
    schedule = Schedule(name, warmup_steps, final_factor=0.1)
    for inner_step in range(num_steps):
        assert schedule.factor(inner_step, num_steps) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"name": "step"}, "schedule"), ({"warmup_steps": -1}, "warmup"), ({"final_factor": 2.0}, "final_factor")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**options)
