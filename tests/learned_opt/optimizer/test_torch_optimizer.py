"""torch.optim semantics of learned optimizers."""

import copy
import io
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from learned_opt import LearnedOptimizer, MlpRule, MuLO, NormalizedRule, Pretrained, load_pretrained
from learned_opt.optimizer.loading import ThetaMismatchError
from learned_opt.optimizer.skipped_steps import NonFiniteGradientError
from learned_opt.optimizer.torch_optimizer import RECOMMENDED
from learned_opt.rules.celo2 import Celo2Rule
from learned_opt.rules.kernels.native_mlp import is_available
from tests.ambient import AMBIENTS

RULES = {"mulo": MlpRule(8), "mulo-norm": NormalizedRule(), "celo2": Celo2Rule()}


def pretrained(name: str, seed: int = 0) -> Pretrained:
    rule, rng = RULES[name], torch.Generator().manual_seed(seed)
    theta = rule.init_theta(rng)
    return Pretrained(rule, theta + 0.01 * torch.randn(theta.shape, generator=rng), name)


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3)).to(dtype)


def batch(i: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(i)
    x = torch.randn(32, 6, generator=rng)
    return x, (x[:, :3] + x[:, 3:]).argmax(1)


def loss_of(model: nn.Module, i: int) -> torch.Tensor:
    x, y = batch(i)
    dtype = next(model.parameters()).dtype
    return F.cross_entropy(model(x.to(dtype)).float(), y)


def train(model, optimizer, start: int, stop: int) -> list[float]:
    losses = []
    for i in range(start, stop):
        optimizer.zero_grad()
        loss = loss_of(model, i)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


every_rule = pytest.mark.parametrize("name", list(RULES))


def test_normalized_rule_trains_from_its_untrained_start():
    model = make_model()
    losses = train(model, LearnedOptimizer(model, pretrained("mulo-norm"), num_training_steps=100), 0, 100)
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])


@every_rule
def test_resume_is_bit_exact(name):
    model = make_model()
    optimizer = LearnedOptimizer(model, pretrained(name), num_training_steps=20, weight_decay=0.1)
    train(model, optimizer, 0, 7)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 7, 20)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = make_model(seed=5)
    resumed = LearnedOptimizer(again, pretrained(name), num_training_steps=20, weight_decay=0.1)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.inner_step == 7
    train(again, resumed, 7, 20)
    assert equal(model, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_keep_float32_state_through_a_resume(dtype):
    model = make_model(dtype=dtype)
    optimizer = LearnedOptimizer(model, pretrained("mulo-norm"), num_training_steps=20)
    train(model, optimizer, 0, 5)
    again = make_model(dtype=dtype)
    again.load_state_dict(model.state_dict())
    resumed = LearnedOptimizer(again, pretrained("mulo-norm"), num_training_steps=20)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    states = [(name, value.dtype) for state in resumed.state.values() for name, value in state.items()]
    assert all(kept == (dtype if name == "remainder" else torch.float32) for name, kept in states)
    assert all(p.dtype == dtype for p in again.parameters())
    assert train(model, optimizer, 5, 20) == train(again, resumed, 5, 20)
    assert equal(model, again)


def test_resume_with_other_meta_weights_is_refused():
    model = make_model()
    optimizer = LearnedOptimizer(model, pretrained("mulo-norm"), num_training_steps=20)
    train(model, optimizer, 0, 2)
    other = LearnedOptimizer(make_model(), pretrained("mulo-norm", seed=1), num_training_steps=20)
    with pytest.raises(ThetaMismatchError, match=optimizer.pretrained.hash):
        other.load_state_dict(optimizer.state_dict())


def test_the_state_of_other_weights_of_the_package_names_them():
    state = LearnedOptimizer(make_model(), "mulo").state_dict()
    with pytest.raises(ThetaMismatchError, match="make it with theta='mulo'"):
        MuLO(make_model()).load_state_dict(state)


def test_a_refused_state_leaves_the_weights_that_were_not_named_as_they_were():
    model, longer = make_model(), torch.nn.Sequential(make_model(), torch.nn.Linear(2, 2))
    optimizer = MuLO(model, num_training_steps=9)
    train(model, optimizer, 0, 2)
    before = optimizer.pretrained
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(MuLO(longer).state_dict())
    assert optimizer.pretrained is before
    assert optimizer.param_groups[0]["theta_hash"] == before.hash
    train(model, optimizer, 2, 3)


def test_horizon_is_restored_or_changed_on_resume():
    model = make_model()
    optimizer = LearnedOptimizer(model, pretrained("mulo-norm"), num_training_steps=20)
    train(model, optimizer, 0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unset = LearnedOptimizer(make_model(), pretrained("mulo-norm"))
    unset.load_state_dict(optimizer.state_dict())
    assert unset.num_training_steps == 20
    longer = LearnedOptimizer(make_model(), pretrained("mulo-norm"), num_training_steps=40)
    longer.load_state_dict(optimizer.state_dict())
    assert longer.num_training_steps == 40
    longer.num_training_steps = 50
    assert longer.num_training_steps == 50


def test_beyond_the_horizon_it_warns_once_and_goes_on():
    model = make_model()
    optimizer = LearnedOptimizer(model, pretrained("mulo-norm"), num_training_steps=3)
    train(model, optimizer, 0, 3)
    before = [p.clone() for p in model.parameters()]
    with pytest.warns(UserWarning, match="beyond num_training_steps=3"):
        train(model, optimizer, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 4, 6)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_without_a_horizon_it_says_so():
    with pytest.warns(UserWarning, match="num_training_steps is not given"):
        LearnedOptimizer(make_model(), pretrained("mulo-norm"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LearnedOptimizer(make_model(), pretrained("mulo"))


@every_rule
def test_lr_scheduler_scales_the_update(name):
    moved = []
    for factor in (1.0, 0.5):
        model, start = make_model(), make_model()
        optimizer = LearnedOptimizer(model, pretrained(name), num_training_steps=10)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _, factor=factor: factor)
        train(model, optimizer, 0, 1)
        scheduler.step()
        moved.append([p - q for p, q in zip(model.parameters(), start.parameters(), strict=True)])
    for whole, half in zip(*moved, strict=True):
        torch.testing.assert_close(whole, 2 * half, rtol=1e-3, atol=1e-6)


@every_rule
@pytest.mark.parametrize("ambient", ["autocast", "another device by default"])
def test_a_step_is_the_same_whatever_a_program_has_set_for_torch(name, ambient):
    models = [make_model(), make_model()]
    for model, setting in zip(models, (nullcontext, AMBIENTS[ambient]), strict=True):
        optimizer = MuLO(model, pretrained(name), num_training_steps=9)
        loss_of(model, 0).backward()
        with setting():
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.step()
    assert equal(*models)


@every_rule
def test_deepcopy_continues_alike(name):
    model = make_model()
    optimizer = LearnedOptimizer(model, pretrained(name), num_training_steps=20)
    train(model, optimizer, 0, 3)
    model_copy, optimizer_copy = copy.deepcopy((model, optimizer))
    train(model, optimizer, 3, 6)
    train(model_copy, optimizer_copy, 3, 6)
    assert equal(model, model_copy)
    assert optimizer_copy.inner_step == 6


def test_maximize_is_descent_on_the_negative():
    model, mirror = make_model(), make_model()
    down = LearnedOptimizer(model, pretrained("mulo-norm"), num_training_steps=10)
    up = LearnedOptimizer(mirror, pretrained("mulo-norm"), num_training_steps=10, maximize=True)
    for i in range(3):
        down.zero_grad()
        loss_of(model, i).backward()
        down.step()
        up.zero_grad()
        (-loss_of(mirror, i)).backward()
        up.step()
    assert equal(model, mirror)


def test_closure_is_called_with_gradients_on():
    model, twin = make_model(), make_model()
    optimizer = LearnedOptimizer(model, pretrained("mulo-norm"), num_training_steps=10)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    expected = train(twin, LearnedOptimizer(twin, pretrained("mulo-norm"), num_training_steps=10), 0, 1)
    assert loss.item() == expected[0]
    assert equal(model, twin)


def test_tensors_without_gradient_stay_and_start_late():
    model = make_model()
    optimizer = LearnedOptimizer(model, pretrained("mulo-norm"), num_training_steps=30)
    frozen = model[0].weight
    frozen.requires_grad_(False)
    before = frozen.clone()
    train(model, optimizer, 0, 10)
    assert torch.equal(frozen, before)
    assert frozen not in optimizer.state
    frozen.requires_grad_(True)
    train(model, optimizer, 10, 12)
    assert not torch.equal(frozen, before)
    assert float(optimizer.state[frozen]["statistics"][0]) == 2


def test_sparse_gradients_equal_dense_ones():
    tables = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(9, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 3))
        optimizer = LearnedOptimizer(model, pretrained("mulo-norm"), num_training_steps=10)
        for i in range(3):
            optimizer.zero_grad()
            tokens = torch.randint(9, (5, 2), generator=torch.Generator().manual_seed(i))
            model(tokens).square().sum().backward()
            optimizer.step()
        tables.append(model[0].weight)
    torch.testing.assert_close(*tables)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e20])  # the square of the last one is infinite
def test_nonfinite_gradients_are_skipped_or_raise(bad):
    for choice in ("skip", "raise"):
        model = make_model()
        optimizer = LearnedOptimizer(model, pretrained("mulo-norm"), num_training_steps=9, nonfinite=choice)
        train(model, optimizer, 0, 1)
        state = copy.deepcopy(optimizer.state_dict())
        before = copy.deepcopy(model)
        loss_of(model, 1).backward()
        model[0].weight.grad[0, 0] = bad
        if choice == "raise":
            with pytest.raises(NonFiniteGradientError, match="step 1"):
                optimizer.step()
        else:
            optimizer.step()
            assert optimizer.num_skipped_steps == 1
        assert equal(model, before)
        assert optimizer.inner_step == 1
        for saved, now in zip(state["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
            assert all(torch.equal(saved[key], now[key]) for key in saved)


def test_grad_scaler_of_half_precision():
    model = make_model()
    optimizer = LearnedOptimizer(model, pretrained("mulo-norm"), num_training_steps=30)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    losses = []
    for i in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, i)
        scaler.scale(loss).backward()
        if i == 3:
            model[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert optimizer.inner_step == 29
    assert scaler.get_scale() == 2.0**9
    assert losses[-1] < 0.7 * losses[0]


@every_rule
def test_scalars_empty_and_transposed_tensors_are_updated(name):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(0, 3)), nn.Parameter(torch.randn(4, 9).T)]
    params.append(nn.Parameter(torch.randn(3, 2, 5, 5).to(memory_format=torch.channels_last)))
    before = [p.detach().clone() for p in params]
    groups = [{"params": [p], "role": "hidden" if p.ndim > 1 else "bias"} for p in params]
    optimizer = LearnedOptimizer(groups, pretrained(name), num_training_steps=5)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(p.shape)
        optimizer.step()
    for p, q in zip(params, before, strict=True):
        assert p.numel() == 0 or not torch.equal(p, q)
        assert torch.isfinite(p).all()


def test_readable_twin_of_a_rule_trains_the_same():
    model, twin = make_model(), make_model()
    theta = pretrained("mulo")
    slow = Pretrained(MlpRule(8, reference=True), theta.theta)
    train(model, LearnedOptimizer(model, theta), 0, 5)
    train(twin, LearnedOptimizer(twin, slow), 0, 5)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_model_and_explicit_groups_agree():
    model, twin = make_model(), make_model()
    roles = ["input", "bias", "hidden", "bias", "output", "bias"]
    groups = [{"params": [p], "role": role} for p, role in zip(twin.parameters(), roles, strict=True)]
    one = MuLO(model, pretrained("mulo-norm"), num_training_steps=5)
    two = MuLO(groups, pretrained("mulo-norm"), num_training_steps=5)
    train(model, one, 0, 5)
    train(twin, two, 0, 5)
    assert equal(model, twin)
    with pytest.warns(UserWarning, match="guessed"):
        three = MuLO(make_model().parameters(), pretrained("mulo-norm"), num_training_steps=5)
    assert three.param_groups[0]["roles"] == roles
    assert three.param_groups[0]["depth"] == one.param_groups[0]["depth"] == 2


def test_groups_have_their_own_lr_and_decay():
    model = make_model()
    groups = [
        {"params": model[0].parameters(), "role": "hidden", "lr": 0.0},
        {"params": list(model[2:].parameters()), "role": "hidden", "weight_decay": 0.1},
    ]
    optimizer = MuLO(groups, pretrained("mulo"))
    before = copy.deepcopy(model)
    train(model, optimizer, 0, 2)
    assert torch.equal(before[0].weight, model[0].weight)
    assert not torch.equal(before[2].weight, model[2].weight)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [None, 0.1]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "role": "bias"})
    assert optimizer.param_groups[2]["lr"] == 1.0


def test_weight_decay_spares_biases_and_norms_of_a_model():
    optimizer = MuLO(make_model(), pretrained("mulo"), weight_decay=0.1)
    assert [(g["weight_decay"], set(g["roles"])) for g in optimizer.param_groups] == [
        (0.1, {"input", "hidden", "output"}),
        (0.0, {"bias"}),
    ]


def test_compiled_model_has_the_same_roles():
    model = make_model()
    plain = MuLO(model, pretrained("mulo"))
    compiled = MuLO(torch.compile(model, backend="eager"), pretrained("mulo"))
    assert plain.param_groups[0]["roles"] == compiled.param_groups[0]["roles"]
    assert plain.param_groups[0]["param_names"] == compiled.param_groups[0]["param_names"]


class WithTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(x + self.table.mean(0) if x.sum() > 0 else x)


def test_what_is_guessed_is_said_once_and_can_be_given():
    with pytest.warns(UserWarning, match="guessed.*table: input") as caught:
        MuLO(WithTable(), pretrained("mulo"))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = MuLO(WithTable(), pretrained("mulo"), roles={"tab*": "embedding"})
    assert optimizer.param_groups[0]["roles"][0] == "embedding"


def test_bad_input_is_refused():
    model, theta = make_model(), pretrained("mulo")
    with pytest.raises(ValueError, match="no parameters"):
        MuLO(nn.ReLU(), theta)
    with pytest.raises(ValueError, match="empty"):
        MuLO([], theta)
    with pytest.raises(TypeError, match="single tensor"):
        MuLO(model[0].weight, theta)
    with pytest.raises(ValueError, match="complex"):
        MuLO([nn.Parameter(torch.ones(2, dtype=torch.complex64))], theta)
    with pytest.raises(ValueError, match="lr must be"):
        MuLO(model, theta, lr=-1.0)
    with pytest.raises(ValueError, match="weight_decay must be"):
        MuLO([{"params": [model[0].bias], "weight_decay": -1.0}], theta)
    for horizon in (0, -3, 2.5, float("nan"), "long", "100", True):
        with pytest.raises(ValueError, match="num_training_steps must be"):
            MuLO(model, theta, num_training_steps=horizon)
    for options in ({"lr": "0.1"}, {"lr": None}, {"lr": float("inf")}, {"weight_decay": "0"}, {"average": False}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be a finite number"):
            MuLO(model, theta, **{"num_training_steps": 5, **options})
    for depth in (0, -1, 2.5, "2", True):
        with pytest.raises(ValueError, match="depth must be an integer"):
            MuLO(model, theta, num_training_steps=5, depth=depth)
    with pytest.raises(ValueError, match="roles must be roles by name"):
        MuLO(model, theta, num_training_steps=5, roles=["hidden"])
    with pytest.raises(ValueError, match="num_training_steps is one for all groups, 5, got 100"):
        MuLO([{"params": [model[0].bias], "num_training_steps": 100}], theta, num_training_steps=5)
    with pytest.raises(TypeError, match="a model or an iterable of parameters or groups, got a method"):
        MuLO(model.parameters, theta)
    with pytest.raises(TypeError, match="all parameters or all groups"):
        MuLO([{"params": [model[0].bias]}, model[0].weight], theta)
    with pytest.raises(ValueError, match="nonfinite must be"):
        MuLO(model, theta, nonfinite="ignore")
    with pytest.raises(ValueError, match="roles needs the model"):
        MuLO(model.parameters(), theta, roles={"x": "input"})
    with pytest.raises(ValueError, match="role of"):
        MuLO([{"params": [model[0].weight], "role": "matrix"}], theta)
    with pytest.raises(KeyError, match="no pretrained optimizer 'adam'"):
        MuLO(model, "adam")


@pytest.mark.parametrize("name", ["mulo", "mulo-norm"])
def test_state_of_other_shapes_is_refused_before_a_kernel_writes_beyond_it(name):
    def stepped(width: int) -> tuple[nn.Linear, MuLO]:
        model = nn.Linear(3, width)
        optimizer = MuLO(model, pretrained(name), num_training_steps=9)
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        return model, optimizer

    (model, optimizer), (_, other) = stepped(4), stepped(5)
    with pytest.raises(ValueError, match=r"of another model: momentum of weight has shape"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.state[model.weight]["momentum"].numel() % model.weight.numel() == 0
    with pytest.raises(ValueError, match=r"what state_dict\(\) of an optimizer gives, got the keys"):
        optimizer.load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", ["mulo", "mulo-norm"])
def test_state_is_resumed_whatever_its_strides(name):
    def take_steps(model: nn.Module, optimizer: MuLO) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()

    model = nn.Linear(3, 4)
    optimizer = MuLO(model, pretrained(name), num_training_steps=9)
    take_steps(model, optimizer)
    other = copy.deepcopy(model)
    resumed = MuLO(other, pretrained(name), num_training_steps=9)
    saved = copy.deepcopy(optimizer.state_dict())
    for tensors in saved["state"].values():
        tensors.update({key: value.mT.contiguous().mT for key, value in tensors.items() if value.ndim > 1})
    resumed.load_state_dict(saved)
    for each in ((model, optimizer), (other, resumed)):
        take_steps(*each)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.skipif(not is_available(), reason="no C compiler")
def test_a_parameter_that_is_replaced_by_a_larger_one_needs_new_state():
    model = nn.Linear(3, 4)
    optimizer = MuLO(model, pretrained("mulo"), num_training_steps=9)
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    larger = nn.Parameter(torch.ones(6, 3))
    larger.grad = torch.ones(6, 3)
    optimizer.state[larger] = optimizer.state.pop(model.weight)
    optimizer.param_groups[0]["params"][0] = larger
    with pytest.raises(ValueError, match=r"optimizer.state.pop\(parameter\)"):
        optimizer.step()
    optimizer.state.pop(larger)
    optimizer.step()
    assert not torch.equal(larger, torch.ones(6, 3))


def test_the_weights_in_the_package_train_a_model():
    """Neither a learning rate nor a file is given, nor need a horizon be."""
    for options in ({}, {"num_training_steps": 100}, {"theta": "mulo"}):
        model = make_model()
        optimizer = MuLO(model, **options)
        assert optimizer.pretrained.name == options.get("theta", RECOMMENDED["num_training_steps" in options])
        losses = train(model, optimizer, 0, 100)
        assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    scalars = LearnedOptimizer(make_model(), "mulo-norm-scalars", num_training_steps=5).pretrained.rule
    assert scalars.num_theta < load_pretrained("mulo-norm").rule.num_theta


@pytest.mark.parametrize(("began", "goes_on"), [({"num_training_steps": 20}, {}), ({}, {"num_training_steps": 20})])
def test_a_loaded_state_says_which_of_the_recommended_weights_go_on(began, goes_on):
    """A script that resumes need not know whether the number of steps was given, unless it names other weights."""
    model, resumed = make_model(), make_model()
    optimizer = MuLO(model, **began)
    train(model, optimizer, 0, 5)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    other = MuLO(resumed, **goes_on)
    assert other.pretrained.hash != optimizer.pretrained.hash
    other.load_state_dict(saved)
    assert other.pretrained.hash == optimizer.pretrained.hash
    optimizer.num_training_steps = other.num_training_steps
    assert train(model, optimizer, 5, 10) == train(resumed, other, 5, 10)
    with pytest.raises(ThetaMismatchError, match="make it with theta="):
        MuLO(resumed, RECOMMENDED[not began], **goes_on).load_state_dict(saved)
