import itertools

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, SequentialLR

from zoo.schedules import Schedule

NUM_STEPS = 20


@pytest.mark.parametrize("warmup_steps", [0, 5])
@pytest.mark.parametrize("name", ["constant", "cosine", "wsd"])
def test_equals_torch_schedulers(name, warmup_steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    num_main = NUM_STEPS - warmup_steps
    warmup = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
    stages = {
        "constant": [(warmup, warmup_steps), (ConstantLR(optimizer, factor=1.0), num_main)],
        "cosine": [(warmup, warmup_steps), (CosineAnnealingLR(optimizer, T_max=num_main, eta_min=0.1), num_main)],
        "wsd": [
            (warmup, warmup_steps),
            (ConstantLR(optimizer, factor=1.0), num_main - num_main // 5),
            (LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=num_main // 5), num_main // 5),
        ],
    }[name]
    ends = list(itertools.accumulate(length for _, length in stages))
    scheduler = SequentialLR(optimizer, [stage for stage, _ in stages], milestones=ends[:-1])
    schedule = Schedule(name, warmup_steps, final_factor=0.1)
    for inner_step in range(NUM_STEPS):
        assert schedule.factor(inner_step, NUM_STEPS) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"name": "step"}, "schedule"), ({"warmup_steps": -1}, "warmup"), ({"final_factor": 2.0}, "final_factor")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**options)
