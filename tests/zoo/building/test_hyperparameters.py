import pytest
import torch

from zoo.building.hyperparameters import draw, make_optimizer
from zoo.training.muon import Muon
from zoo.training.optimizers import Adam, Sgd
from zoo.training.schedules import Schedule

SEEDS = list(range(2000))


def test_draws_depend_on_the_seed_and_the_name_alone():
    values = draw({"uniform": [2, 4]}, SEEDS, "lr")
    assert torch.equal(values[[7, 3]], draw({"uniform": [2, 4]}, [7, 3], "lr"))
    assert not torch.equal(values, draw({"uniform": [2, 4]}, SEEDS, "weight_decay"))


def test_draws_have_the_distribution_asked_for():
    uniform = draw({"uniform": [2, 4]}, SEEDS, "lr")
    assert 2 <= uniform.min() < 2.01
    assert 3.99 < uniform.max() < 4
    assert uniform.mean() == pytest.approx(3, abs=0.05)
    log_uniform = draw({"log_uniform": [1e-4, 1e-2]}, SEEDS, "lr")
    assert log_uniform.log10().mean() == pytest.approx(-3, abs=0.05)
    choice = draw({"choice": [0.0, 0.1, 5.0]}, SEEDS, "lr")
    assert [(choice == value).double().mean().item() for value in (0.0, 0.1, 5.0)] == pytest.approx(
        [1 / 3] * 3, abs=0.05
    )
    assert (draw(0.3, SEEDS[:4], "lr") == 0.3).all()


def test_optimizers_are_made_from_plain_options():
    optimizer, drawn = make_optimizer({"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}, [1, 2])
    assert optimizer == Sgd(0.1, 0.9, nesterov=True)
    assert drawn == {}
    optimizer, drawn = make_optimizer({"name": "muon", "adam_lr": {"choice": [0.01]}, "schedule": "cosine"}, [1, 2])
    assert isinstance(optimizer, Muon)
    assert optimizer.schedule == Schedule("cosine")
    assert drawn.keys() == {"adam_lr"}
    assert drawn["adam_lr"].tolist() == [0.01, 0.01]
    assert make_optimizer({"name": "adam", "warmup_steps": 7}, [1])[0] == Adam(schedule=Schedule(warmup_steps=7))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "lion"}, r"optimizer must be one of \['adam', 'muon', 'sgd'\], got 'lion'"),
        ({"lr": 0.1}, "optimizer must be one of"),
        ({"name": "sgd", "beta1": 0.9}, r"'sgd' has the options .* got \['beta1'\]"),
        ({"name": "sgd", "lr": {"uniform": [2, 1]}}, r"lr must be uniform with low <= high, got \[2, 1\]"),
        ({"name": "sgd", "lr": {"log_uniform": [0, 1]}}, "lr must be log_uniform with 0 < low <= high"),
        ({"name": "sgd", "lr": {"normal": [0, 1]}}, "lr must be a number or one of"),
        ({"name": "sgd", "lr": {"choice": []}}, "something to choose from"),
        ({"name": "sgd", "lr": {"choice": ["fast"]}}, "lr must be a number or one of .* got {'choice': \\['fast'\\]}"),
        ({"name": "sgd", "lr": {"uniform": 3}}, "lr must be a number or one of"),
        ({"name": "sgd", "lr": "fast"}, "lr of Sgd must be a number, a range such as"),
        ({"name": "sgd", "lr": -1}, "lr of Sgd must be finite and >= 0"),
        ({"name": "sgd", "schedule": "step"}, "schedule must be one of"),
    ],
)
def test_bad_options_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(config, [1, 2])
