"""Averages of weights: equal to a loop that says what they are, in every dtype, mode and checkpoint."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from learned_opt import LearnedOptimizer, MuLO
from tests.learned_opt.optimizer.test_torch_conformance import reloaded, train

P = 8.0
pytestmark = pytest.mark.filterwarnings("ignore:num_training_steps is not given")


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).to(dtype)


def make(model: nn.Module, **options) -> MuLO:
    return MuLO(model, average=P, **options)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(some: list[torch.Tensor], others: list[torch.Tensor], **tolerance) -> None:
    torch.testing.assert_close(some, others, **({"rtol": 0, "atol": 0} | tolerance))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_a_loop_over_the_weights(dtype):
    model, twin = make_model(dtype), make_model(dtype)
    optimizer, plain = make(model), LearnedOptimizer(twin, num_training_steps=None)
    averages = [torch.zeros_like(p, dtype=torch.float64) for p in twin.parameters()]
    for t in range(12):
        train(model, optimizer, [t])
        train(twin, plain, [t])
        for average, param in zip(averages, twin.parameters(), strict=True):
            exact = param.detach().double() + plain.state[param].get("remainder", torch.zeros(())).double()
            average.add_(exact - average, alpha=(P + 1) / (t + 1 + P))
    iterates = weights(model)
    assert_equal(iterates, weights(twin))
    optimizer.eval()
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    assert_equal(weights(model), [average.to(dtype) for average in averages], **tolerance)
    optimizer.eval()  # once more changes nothing
    optimizer.train()
    assert_equal(weights(model), iterates)
    train(model, optimizer, range(12, 15))
    train(twin, plain, range(12, 15))
    assert_equal(weights(model), weights(twin))


def test_no_step_is_made_on_averages():
    model = make_model()
    optimizer = make(model)
    train(model, optimizer, range(3))
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\)"):
        train(model, optimizer, [3])


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("how", ["state dict", "deepcopy", "pickle"])
def test_saved_and_resumed_is_uninterrupted(how, mode):
    model, fresh = make_model(), make_model()
    optimizer = make(model)
    train(model, optimizer, range(5))
    getattr(optimizer, mode)()
    again, resumed = reloaded(how, model, optimizer, fresh, make(fresh))
    for net, one in ((model, optimizer), (again, resumed)):
        one.train()
        train(net, one, range(5, 9))
        one.eval()
    assert_equal(weights(model), weights(again))


def test_a_checkpoint_without_averages_begins_them_where_it_stands():
    model = make_model()
    optimizer = LearnedOptimizer(model, num_training_steps=None)
    train(model, optimizer, range(5))
    again = copy.deepcopy(model)
    resumed = make(again)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group["average"], group["train_mode"]
    resumed.load_state_dict(saved)
    train(again, resumed, [5])
    iterates = weights(again)
    resumed.eval()
    for average, start, end in zip(weights(again), weights(model), iterates, strict=True):
        torch.testing.assert_close(average, start + (P + 1) / (5 + 1 + P) * (end - start))


@pytest.mark.parametrize("average", [None, P])
def test_with_a_horizon_nothing_is_averaged_unless_asked_for(average):
    model = make_model()
    optimizer = MuLO(model, num_training_steps=10, average=average)
    train(model, optimizer, range(5))
    before = weights(model)
    optimizer.eval()
    is_same = all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    assert is_same == (average is None)


def test_a_tensor_without_gradient_keeps_its_average():
    model = make_model()
    model[0].requires_grad_(False)
    optimizer = make(model)
    train(model, optimizer, range(4))
    optimizer.eval()
    assert_equal(weights(model)[:2], weights(make_model())[:2])


def test_batch_norm_gets_the_statistics_of_the_averages():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3))
    optimizer = make(model)
    train(model, optimizer, range(30))
    optimizer.eval()
    x = torch.randn(256, 6)
    update_bn([x], model)
    torch.testing.assert_close(model[1].running_mean, model[0](x).mean(0))


@pytest.mark.parametrize("average", [-1.0, float("nan")])
def test_bad_powers_are_refused(average):
    with pytest.raises(ValueError, match="average must be"):
        MuLO(make_model(), average=average)


def test_a_horizon_that_is_taken_away_leaves_an_average():
    model = make_model()
    optimizer = MuLO(model, num_training_steps=10)
    train(model, optimizer, range(3))
    optimizer.num_training_steps = None
    before = weights(model)
    train(model, optimizer, [3])
    power, iterates = optimizer.param_groups[0]["average"], weights(model)
    optimizer.eval()
    for average, start, end in zip(weights(model), before, iterates, strict=True):
        torch.testing.assert_close(average, start + (power + 1) / (3 + 1 + power) * (end - start))


@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_a_model_saved_in_train_mode_fits_an_optimizer_saved_in_eval_mode(first):
    model, again = make_model(), make_model()
    optimizer, resumed = make(model), make(again)
    train(model, optimizer, range(5))
    iterates = copy.deepcopy(model.state_dict())
    optimizer.eval()
    for loads in ("model", "optimizer") if first == "model" else ("optimizer", "model"):
        if loads == "model":
            again.load_state_dict(iterates)
        else:
            resumed.load_state_dict(optimizer.state_dict())
    resumed.eval()
    assert_equal(weights(again), weights(model))
    resumed.train()
    assert_equal(weights(again), list(iterates.values()))


@pytest.mark.parametrize("call", [lambda net, one: train(net, one, [5]), lambda net, one: one.train()])
def test_a_model_saved_in_eval_mode_is_noticed(call, recwarn):
    """The weights that training would go on from are in neither file."""
    model, again = make_model(), make_model()
    optimizer, resumed = make(model), make(again)
    train(model, optimizer, range(5))
    iterates, saved = copy.deepcopy(model.state_dict()), optimizer.state_dict()
    again.load_state_dict(iterates)
    resumed.load_state_dict(saved)
    call(again, resumed)
    assert not [warning for warning in recwarn if "holds averages" in str(warning.message)]
    optimizer.eval()
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(saved)
    with pytest.warns(UserWarning, match="training goes on from the averages"):
        call(again, resumed)
