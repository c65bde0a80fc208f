"""One battery for every inner optimizer: each must do to N networks what torch.optim does to one."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from zoo.networks.architectures import CNN, MLP
from zoo.networks.layout import ParamLayout
from zoo.training.muon import Muon, orthogonalize
from zoo.training.optimizers import Adam, Sgd
from zoo.training.schedules import Schedule

NUM_STEPS = 12
LR = torch.tensor([0.01, 0.02, 0.04], dtype=torch.float64)
DECAY = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64)


def torch_muon(model, lr, decay, **options):
    layout = ParamLayout.of(model)
    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and layout[n].role in ("input", "hidden")]
    others = [p for p in model.parameters() if all(p is not q for q in inside)]
    adamw = torch.optim.AdamW(others, lr=1e-3, weight_decay=0.0)
    return [torch.optim.Muon(inside, lr=lr, weight_decay=decay, **options), adamw] if inside else [adamw]


@dataclass
class Case:
    ours: Callable
    reference: Callable
    tolerance: float = 2e-5


CASES = {
    "sgd": Case(lambda lr, wd: Sgd(lr), lambda m, lr, wd: [torch.optim.SGD(m.parameters(), lr)]),
    "sgd_momentum": Case(
        lambda lr, wd: Sgd(lr, momentum=0.9, weight_decay=wd),
        lambda m, lr, wd: [torch.optim.SGD(m.parameters(), lr, momentum=0.9, weight_decay=wd)],
    ),
    "sgd_nesterov": Case(
        lambda lr, wd: Sgd(lr, momentum=0.8, weight_decay=wd, nesterov=True),
        lambda m, lr, wd: [torch.optim.SGD(m.parameters(), lr, momentum=0.8, weight_decay=wd, nesterov=True)],
    ),
    "adam": Case(
        lambda lr, wd: Adam(lr, weight_decay=wd, decoupled=False),
        lambda m, lr, wd: [torch.optim.Adam(m.parameters(), lr, weight_decay=wd)],
    ),
    "adamw": Case(
        lambda lr, wd: Adam(lr, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=wd),
        lambda m, lr, wd: [torch.optim.AdamW(m.parameters(), lr, betas=(0.8, 0.95), eps=1e-6, weight_decay=wd)],
    ),
    # bfloat16 products in another order: the tolerance is bfloat16's rounding times the step
    "muon": Case(lambda lr, wd: Muon(lr, weight_decay=wd, adam_lr=1e-3), torch_muon, tolerance=3e-2),
    "muon_matched": Case(
        lambda lr, wd: Muon(lr, weight_decay=wd, adam_lr=1e-3, adjust_lr_fn="match_rms_adamw"),
        lambda m, lr, wd: torch_muon(m, lr, wd, adjust_lr_fn="match_rms_adamw"),
        tolerance=3e-2,
    ),
}
ARCHITECTURES = {"mlp": lambda: MLP(6, (5, 9), 3), "cnn": lambda: CNN(1, (4, 6), 3)}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=ARCHITECTURES)
def models(request):
    torch.manual_seed(0)
    return [ARCHITECTURES[request.param]() for _ in LR]


def example_batches(model, num_steps):
    shape = (6,) if isinstance(model, MLP) else (1, 8, 8)
    rng = torch.Generator().manual_seed(1)
    for _ in range(num_steps):
        yield torch.randn(16, *shape, generator=rng), torch.randint(3, (16,), generator=rng)


def flat_gradient(layout, model):
    return torch.cat([dict(model.named_parameters())[s.name].grad.flatten() for s in layout if s.kind == "param"])


def train_reference(case, model, lr, decay):
    """Parameters after each step of torch's optimizer, and the gradients that it saw."""
    layout, trajectory, gradients = ParamLayout.of(model), [], []
    optimizers = case.reference(model, lr, decay)
    for inputs, targets in example_batches(model, NUM_STEPS):
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        gradients.append(flat_gradient(layout, model))
        for optimizer in optimizers:
            optimizer.step()
        trajectory.append(layout.flatten(model)[: layout.num_trainable])
    return torch.stack(trajectory), torch.stack(gradients)


def test_equals_torch_network_by_network(case, models):
    layout = ParamLayout.of(models[0])
    params = torch.stack([layout.flatten(model) for model in models])
    runs = [train_reference(case, m, lr, wd) for m, lr, wd in zip(models, LR.tolist(), DECAY.tolist(), strict=True)]
    optimizer = case.ours(LR, DECAY)
    state = optimizer.init_state(layout, params)
    start = params[:, : layout.num_trainable].clone()
    for i in range(NUM_STEPS):
        expected = torch.stack([trajectory[i] for trajectory, _ in runs])
        grads = torch.stack([gradients[i] for _, gradients in runs])
        optimizer.update(layout, params, grads, state, inner_step=i, num_steps=NUM_STEPS)
        error = (params[:, : layout.num_trainable] - expected).norm(dim=1) / (expected - start).norm(dim=1)
        assert error.max() < case.tolerance, f"step {i}"


def test_networks_do_not_touch_each_other(case, models):
    """A network whose gradient is NaN spoils itself only."""
    layout = ParamLayout.of(models[0])
    params = torch.stack([layout.flatten(model) for model in models])
    grads = torch.randn(3, layout.num_trainable, generator=torch.Generator().manual_seed(2))
    spoiled = grads.clone()
    spoiled[1] = float("nan")
    results = []
    for gradient in (grads, spoiled):
        values = params.clone()
        optimizer = case.ours(LR, DECAY)
        state = optimizer.init_state(layout, values)
        optimizer.update(layout, values, gradient, state, inner_step=0, num_steps=1)
        results.append(values)
    assert torch.equal(results[0][[0, 2]], results[1][[0, 2]])
    assert results[1][1, : layout.num_trainable].isnan().all()


def test_buffers_stay_and_state_leads_with_networks(case, models):
    layout = ParamLayout.of(models[0])
    params = torch.stack([layout.flatten(model) for model in models])
    before = params.clone()
    optimizer = case.ours(0.01, 0.1)
    state = optimizer.init_state(layout, params)
    grads = torch.ones(3, layout.num_trainable)
    optimizer.update(layout, params, grads, state, inner_step=0, num_steps=1)
    assert torch.equal(params[:, layout.num_trainable :], before[:, layout.num_trainable :])
    assert not torch.equal(params, before)
    assert all(len(value) == 3 for value in state.values())


@pytest.mark.parametrize("kind", [Sgd, Adam, Muon])
def test_schedule_scales_the_step(kind):
    layout = ParamLayout.of(MLP(3, (4,), 2))
    params = torch.zeros(2, layout.num_params)
    grads = torch.randn(2, layout.num_trainable, generator=torch.Generator().manual_seed(0))
    steps = []
    for factor in (1.0, 0.5):
        optimizer = kind(schedule=Schedule("cosine", final_factor=factor))
        values = params.clone()
        optimizer.update(layout, values, grads, optimizer.init_state(layout, values), inner_step=8, num_steps=8)
        steps.append(values)
    torch.testing.assert_close(steps[1], 0.5 * steps[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sgd(lr=-1.0), r"lr of Sgd must be finite and >= 0, got \[-1.0\]"),
        (lambda: Sgd(nesterov=True), "nesterov needs a momentum"),
        (lambda: Adam(beta1=1.0), "beta1 of Adam must be from 0 to less than 1"),
        (lambda: Adam(lr=torch.tensor([0.1, float("nan")])), r"lr of Adam .* got \[nan\]"),
        (lambda: Muon(dtype="int8"), "dtype must be"),
    ],
)
def test_bad_hyperparameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_vector_of_the_wrong_length_is_refused():
    layout = ParamLayout.of(MLP(3, (4,), 2))
    params = torch.zeros(2, layout.num_params)
    optimizer = Adam(lr=torch.ones(3))
    with pytest.raises(ValueError, match=r"one for each of 2 networks; got \(3,\)"):
        optimizer.coefficients(0, 1, params)


@pytest.mark.parametrize("kind", ["gaussian", "ill-conditioned", "rank one"])
def test_orthogonalisation_by_gram_matrices_rounds_no_worse_than_without(kind):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 24, 96, generator=rng)
    if kind == "ill-conditioned":
        u, _, v = torch.linalg.svd(x, full_matrices=False)
        x = u * torch.logspace(0, -4, 24) @ v
    elif kind == "rank one":
        x = x[:, :, :1] @ x[:, :1]
    for matrices in (x, x.mT):
        exact = orthogonalize(matrices.double()).float()
        by_gram = orthogonalize(matrices, by_gram=True)
        torch.testing.assert_close(by_gram, exact, rtol=1e-2, atol=1e-3)
        errors = [
            torch.dist(orthogonalize(matrices, torch.bfloat16, by_gram=flag), exact) / exact.norm()
            for flag in (False, True)
        ]
        assert errors[1] < 1.5 * errors[0] + 0.02
        assert torch.linalg.matrix_norm(orthogonalize(matrices, torch.bfloat16, by_gram=True), 2).max() < 1.3


@pytest.mark.parametrize("shape", [(3, 6, 10), (2, 10, 4), (1, 5, 5)])
def test_orthogonalisation_brings_singular_values_near_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(x))
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(orthogonalize(x).flatten(1), (u @ v).flatten(1)).min() > 0.97
