"""What torch asks of its own optimizers, asked of every optimizer in the package.

After the questions of `torch.testing._internal.common_optimizers` and torch's `test/test_optim.py`.
"""

import copy
import io
import pickle
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers

from learned_opt import LearnedOptimizer, MuLO, available, load_pretrained
from learned_opt.optimizer.torch_optimizer import RECOMMENDED

T = 30
every_optimizer = pytest.mark.parametrize("name", available())
pytestmark = pytest.mark.filterwarnings("ignore:parameters do not tell", "ignore:num_training_steps is not given")

load = cache(load_pretrained)


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3)).to(dtype)


def make(name: str, model: nn.Module, **options) -> LearnedOptimizer:
    return LearnedOptimizer(model, load(name), **{"num_training_steps": T, **options})


def loss_of(model: nn.Module, i: int = 0) -> torch.Tensor:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(i), dtype=torch.float32)
    dtype = next(model.parameters()).dtype
    return F.mse_loss(model(x.to(dtype)).float(), x[:, :3] - x[:, 3:])


def train(model, optimizer, steps) -> list[float]:
    losses = []
    for i in steps:
        optimizer.zero_grad()
        loss = loss_of(model, i)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def reloaded(how, model, optimizer, fresh_model, fresh_optimizer) -> tuple[nn.Module, LearnedOptimizer]:
    """A training that was kept in one of the ways there are; what goes through state dicts is put into fresh ones."""
    if how == "deepcopy":
        return copy.deepcopy((model, optimizer))
    if how == "pickle":
        return pickle.loads(pickle.dumps((model, optimizer)))
    if how == "state dict":
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        fresh_model.load_state_dict(saved[0])
        fresh_optimizer.load_state_dict(saved[1])
    else:
        options = StateDictOptions(flatten_optimizer_state_dict=how == "flat")
        states = copy.deepcopy(get_state_dict(model, optimizer, options=options))
        named = {"model_state_dict": states[0], "optim_state_dict": states[1]}
        set_state_dict(fresh_model, fresh_optimizer, **named, options=options)
    return fresh_model, fresh_optimizer


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


SCHEDULERS = {
    "constant": lambda o: schedulers.ConstantLR(o, factor=0.5, total_iters=5),
    "linear": lambda o: schedulers.LinearLR(o, start_factor=0.5, total_iters=5),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.99),
    "step": lambda o: schedulers.StepLR(o, 10, 0.9),
    "polynomial": lambda o: schedulers.PolynomialLR(o, T),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, T),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 10),
    "lambda": lambda o: schedulers.LambdaLR(o, lambda i: min(1.0, (i + 1) / 5)),
    "multiplicative": lambda o: schedulers.MultiplicativeLR(o, lambda _: 0.99),
    "one cycle": lambda o: schedulers.OneCycleLR(o, max_lr=1.0, total_steps=T),
    "cyclic": lambda o: schedulers.CyclicLR(o, 0.1, 1.0),
    "chained": lambda o: schedulers.ChainedScheduler([schedulers.StepLR(o, 10), schedulers.ConstantLR(o, 0.5)]),
    "sequential": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=5), schedulers.CosineAnnealingLR(o, T)], milestones=[5]
    ),
    "plateau": schedulers.ReduceLROnPlateau,
}


@pytest.mark.filterwarnings("ignore:a scheduler cycles the momentum")
@pytest.mark.parametrize("kind", SCHEDULERS)
@every_optimizer
def test_the_loss_falls_under_every_scheduler(name, kind):
    model = make_model()
    optimizer = make(name, model, lr=torch.tensor(1.0) if kind in ("cosine", "step", "one cycle") else 1.0)
    scheduler, losses = SCHEDULERS[kind](optimizer), []
    for _ in range(T):
        losses += train(model, optimizer, [0])
        scheduler.step(*([losses[-1]] if kind == "plateau" else []))
    assert losses[-1] < 0.95 * losses[0]


def test_a_cycled_momentum_is_said_to_have_no_effect():
    model = make_model()
    optimizer = make("mulo-norm", model)
    schedulers.OneCycleLR(optimizer, max_lr=1.0, total_steps=T)
    with pytest.warns(UserWarning, match="cycles the momentum"):
        train(model, optimizer, range(2))


@every_optimizer
def test_tensor_and_float_learning_rates_are_the_same(name):
    models = make_model(), make_model()
    for model, lr in zip(models, (0.3, torch.tensor(0.3)), strict=True):
        train(model, make(name, model, lr=lr), range(3))
    torch.testing.assert_close(weights(models[0]), weights(models[1]))
    with pytest.raises(ValueError, match="lr must be one number"):
        make(name, make_model(), lr=torch.ones(2))


@every_optimizer
def test_no_gradients_and_zero_gradients_change_nothing(name):
    model = make_model()
    optimizer, start = make(name, model, weight_decay=0.0), weights(model)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert not optimizer.state
    train(model, optimizer, range(3))
    trained, saved = weights(model), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    optimizer.step()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(weights(model), trained)
    assert not torch.equal(trained, start)
    assert optimizer.inner_step == 3
    for before, after in zip(saved["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("missing", [None, 0.0])
@every_optimizer
def test_a_missing_gradient_leaves_the_updates_of_others_alone(name, missing):
    updates = []
    for without in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16)])
        optimizer = make(name, model, roles={"*.weight": "hidden", "0.weight": "embedding"})
        tokens = torch.arange(16)
        F.cross_entropy(model[2](model[1](model[0](tokens)).relu()), tokens).backward()
        if without:
            model[0].weight.grad = None if missing is None else torch.zeros(16, 8)
        optimizer.step()
        updates.append(weights(model[1:]))
    assert torch.equal(*updates)


@every_optimizer
def test_weight_decay_zero_is_none_and_more_shrinks(name):
    norms = []
    for decay in (0.0, 3.0):
        model = make_model()
        train(model, make(name, model, weight_decay=decay), [0])  # later steps may be longer where weights are smaller
        norms.append(weights(model).norm())
    assert norms[1] < norms[0]


def test_the_learned_decay_is_the_default_and_can_be_switched_off():
    moved = []
    for options in ({}, {"weight_decay": None}, {"weight_decay": 0.0}):
        model = make_model()
        train(model, make("mulo-norm", model, **options), range(5))
        moved.append(weights(model))
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])


@pytest.mark.parametrize("maximize", [True, False])
@every_optimizer
def test_gradients_are_never_changed(name, maximize):
    model = make_model()
    optimizer = make(name, model, maximize=maximize)
    for i in range(3):
        optimizer.zero_grad()
        loss_of(model, i).backward()
        before = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), before, strict=True))


@every_optimizer
def test_default_dtype_float64(name):
    torch.set_default_dtype(torch.float64)
    try:
        model = make_model(torch.float64)
        losses = train(model, make(name, model), [0] * T)
    finally:
        torch.set_default_dtype(torch.float32)
    assert losses[-1] < losses[0]
    assert weights(model).dtype == torch.float64


@every_optimizer
def test_mixed_dtypes(name):
    model = make_model()
    model[0].to(torch.bfloat16)
    model[2].to(torch.float64)
    optimizer = make(name, model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [p.dtype for p in model.parameters()] == [torch.bfloat16] * 2 + [torch.float64] * 2 + [torch.float32] * 2
    states = [(name, value.dtype) for state in optimizer.state.values() for name, value in state.items()]
    assert all(dtype == (torch.bfloat16 if name == "remainder" else torch.float32) for name, dtype in states)


@pytest.mark.parametrize("how", ["state dict", "deepcopy", "pickle", "flat", "nested"])
@every_optimizer
def test_saved_and_resumed_is_uninterrupted(name, how):
    model = make_model()
    optimizer = make(name, model, weight_decay=0.1)
    train(model, optimizer, range(5))
    fresh = make_model()
    again, resumed = reloaded(how, model, optimizer, fresh, make(name, fresh, weight_decay=0.1))
    train(model, optimizer, range(5, 12))
    train(again, resumed, range(5, 12))
    assert torch.equal(weights(model), weights(again))
    assert resumed.inner_step == 12


def test_numbers_of_numpy_can_be_loaded_without_code():
    options = {"lr": np.float32(0.5), "weight_decay": np.float64(0.1), "depth": np.int64(3), "average": np.float64(8)}
    optimizer, file = MuLO(make_model(), **options), io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    (group, _) = torch.load(file, weights_only=True)["param_groups"]
    assert {key: group[key] for key in options} == {"lr": 0.5, "weight_decay": 0.1, "depth": 3, "average": 8.0}


def test_asking_for_state_before_the_first_step_changes_nothing():
    model, twin = make_model(), make_model()
    optimizer, other = make("mulo-norm", model), make("mulo-norm", twin)
    get_state_dict(model, optimizer)
    train(model, optimizer, range(5))
    train(twin, other, range(5))
    assert torch.equal(weights(model), weights(twin))


@every_optimizer
def test_a_checkpoint_of_the_first_release_loads(name):
    """It has no axes, whether tokens are read, or momentum, and 0 where no decay was asked for."""
    model = make_model()
    optimizer = make(name, model)
    train(model, optimizer, range(5))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for key in ("axes", "reads_tokens", "momentum"):
            del group[key]
        group["weight_decay"] = 0.0
    again = copy.deepcopy(model)
    resumed = make(name, again)
    resumed.load_state_dict(saved)
    train(model, optimizer, range(5, 9))
    train(again, resumed, range(5, 9))
    assert torch.equal(weights(model), weights(again))


def test_state_of_another_optimizer_is_refused_in_words():
    model = make_model()
    with pytest.raises(ValueError, match="of another kind"):
        make("mulo-norm", model).load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())


@every_optimizer
def test_step_hooks_and_state_hooks_run(name):
    model = make_model()
    optimizer, seen = make(name, model), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before step"))
    optimizer.register_step_post_hook(lambda o, *_: seen.append(o.inner_step))
    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda _, state: {"wrapped": state})
    train(model, optimizer, [0])
    saved = optimizer.state_dict()
    assert seen == ["before step", 1, "before saving"]

    again = make(name, make_model())
    again.register_load_state_dict_pre_hook(lambda _, state: state["wrapped"])
    again.register_load_state_dict_post_hook(lambda o: seen.append(o.inner_step))
    again.load_state_dict(saved)
    assert seen[3:] == [1]


def test_a_hook_may_replace_the_state_of_half_precision():
    model = make_model(torch.bfloat16)
    optimizer = make("mulo-norm", model)
    train(model, optimizer, [0])
    twin = make_model(torch.bfloat16)
    other = make("mulo-norm", twin)

    def doubled(_, state):
        state = copy.deepcopy(state)
        for entry in state["state"].values():
            entry["momentum"] *= 2
        return state

    other.register_load_state_dict_pre_hook(doubled)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.state[twin[0].weight]["momentum"], 2 * optimizer.state[model[0].weight]["momentum"])


def test_names_are_those_of_the_model():
    model = make_model()
    for params in (model, model.named_parameters()):
        saved = make("mulo", params).state_dict()
        assert saved["param_groups"][0]["param_names"] == [name for name, _ in model.named_parameters()]


@every_optimizer
def test_a_backbone_can_be_unfrozen(name):
    model = make_model()
    backbone, head = model[:4], model[4]
    optimizer = make(name, head)
    train(model, optimizer, range(3))
    frozen = weights(backbone)
    optimizer.add_param_group({"params": backbone.parameters(), "lr": 0.5})
    assert optimizer.param_groups[1]["roles"] == ["input", "bias", "hidden", "bias"]
    train(model, optimizer, range(3, 6))
    assert not torch.equal(weights(backbone), frozen)
    assert optimizer.inner_step == 6
    twin = make_model()
    resumed = make(name, twin[4])
    resumed.add_param_group({"params": twin[:4].parameters(), "lr": 0.5})
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(model, optimizer, [6, 7]) == train(twin, resumed, [6, 7])


@pytest.mark.parametrize(
    "params",
    [
        [1, 2],
        {"a": nn.Parameter(torch.ones(2))},
        [{"lr": 1.0}],
        [{"params": {nn.Parameter(torch.ones(2))}}],
        [nn.Parameter(torch.ones(2)).double() * 2],
        torch.ones(2),
        [],
        [{"params": []}, {"params": [3]}],
    ],
    ids=str,
)
def test_bad_parameters_are_refused_as_torch_refuses_them(params):
    with pytest.raises((TypeError, ValueError, KeyError)) as reference:
        torch.optim.AdamW(params)
    with pytest.raises(reference.type):
        MuLO(params)


def test_a_parameter_in_two_groups_is_refused():
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match="more than one parameter group"):
        MuLO([{"params": [weight]}, {"params": [weight]}])


@pytest.mark.parametrize("option", ["foreach", "fused", "capturable", "differentiable"])
def test_implementations_are_not_chosen_by_the_user(option):
    with pytest.raises(TypeError, match=option):
        MuLO(make_model(), **{option: True})


@every_optimizer
def test_compiled_step(name):
    models = make_model(), make_model()
    for model, wrap in zip(models, (lambda step: step, lambda step: torch.compile(step, backend="eager")), strict=True):
        optimizer = make(name, model)
        step = wrap(optimizer.step)
        for i in range(3):
            optimizer.zero_grad()
            loss_of(model, i).backward()
            step()
    assert torch.equal(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize("horizon", [float(T), torch.tensor(T), np.int64(T), np.ceil(T - 0.5)], ids=repr)
def test_horizons_of_any_numeric_type_are_kept_as_integers(horizon):
    optimizer = MuLO(make_model(), num_training_steps=horizon)
    assert type(optimizer.num_training_steps) is int
    assert optimizer.pretrained.name == RECOMMENDED[True]


@pytest.mark.parametrize("horizon", [np.bool_(True), 10**400, torch.tensor([3, 4])], ids=["bool", "huge", "two"])
def test_what_is_no_horizon_is_refused(horizon):
    with pytest.raises(ValueError, match="num_training_steps must be"):
        MuLO(make_model(), num_training_steps=horizon)


def test_a_role_of_matrices_is_not_for_the_biases_beside_them():
    model = make_model()
    plain = MuLO(model, num_training_steps=T).param_groups[0]
    roles = {"0.*": "input", "2.*": "hidden", "4.*": "output"}
    assert MuLO(model, num_training_steps=T, roles=roles).param_groups[0] == plain
    groups = [{"params": model[i].parameters(), "role": roles[f"{i}.*"]} for i in (0, 2, 4)]
    groups = MuLO(groups, num_training_steps=T).param_groups
    assert [role for group in groups for role in group["roles"]] == plain["roles"]
    assert groups[0]["depth"] == plain["depth"]
    for vector in (nn.Parameter(torch.ones(())), model[0].bias):
        with pytest.raises(ValueError, match="the role 'hidden' is one of matrices, got shapes"):
            MuLO([{"params": [vector], "role": "hidden"}], num_training_steps=T)
        MuLO([{"params": [vector], "role": "bias"}], num_training_steps=T)


def test_an_infinite_horizon_is_none():
    assert MuLO(make_model(), num_training_steps=float("inf")).num_training_steps is None
    assert make("mulo-norm", make_model(), num_training_steps=float("inf")).num_training_steps is None


def test_a_run_that_skips_every_step_says_so_once():
    model = make_model()
    optimizer = make("mulo-norm", model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(25):
            optimizer.zero_grad()
            loss_of(model, i).backward()
            model[2].weight.grad[0, 0] = float("nan")
            optimizer.step()
    assert optimizer.num_skipped_steps == 25
    assert len(caught) == 1
    assert "2.weight" in str(caught[0].message)


def test_flattened_parameters_are_refused():
    weight = nn.Parameter(torch.ones(6))
    weight._fsdp_flattened = True
    with pytest.raises(ValueError, match="FSDP1"):
        MuLO([weight])


def test_lazy_modules_are_refused_in_words():
    with pytest.raises(ValueError, match="run a batch"):
        MuLO(nn.Sequential(nn.LazyLinear(3)))


class Experts(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.experts = nn.Parameter(weight)


@every_optimizer
def test_a_stack_of_experts_is_trained_as_its_matrices(name):
    """Also where some experts have no tokens in a step."""
    torch.manual_seed(0)
    stack = Experts(torch.randn(3, 4, 6))
    single = nn.ModuleList([nn.Linear(6, 4, bias=False) for _ in range(3)])
    for layer, matrix in zip(single, stack.experts.detach(), strict=True):
        layer.weight.data.copy_(matrix)
    optimizers = [
        make(name, stack, roles={"experts": "hidden"}, depth=2),
        make(name, single, roles={"*": "hidden"}, depth=2),
    ]
    for i in range(4):
        grad = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(i))
        grad[i % 2] = 0.0
        stack.experts.grad = grad
        for layer, part in zip(single, grad, strict=True):
            layer.weight.grad = part.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(stack.experts, torch.stack([layer.weight for layer in single]), rtol=1e-4, atol=1e-5)


@every_optimizer
def test_a_transposed_weight_is_trained_as_its_transpose(name):
    moved = []
    for make_layer, flip in ((nn.Conv2d, False), (nn.ConvTranspose2d, True)):
        layer = make_layer(6, 4, 1, bias=False)
        torch.manual_seed(0)
        start = torch.randn(4, 6, 1, 1)
        layer.weight.data.copy_(start.transpose(0, 1) if flip else start)
        optimizer = make(name, layer, roles={"weight": "hidden"})
        for i in range(3):
            grad = torch.randn(4, 6, 1, 1, generator=torch.Generator().manual_seed(i))
            layer.weight.grad = grad.transpose(0, 1).contiguous() if flip else grad
            optimizer.step()
        moved.append(layer.weight.detach().transpose(0, 1) if flip else layer.weight.detach())
    torch.testing.assert_close(*moved, rtol=1e-4, atol=1e-5)
