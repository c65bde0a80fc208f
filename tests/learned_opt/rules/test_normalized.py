import math
from dataclasses import replace

import pytest
import torch

from learned_opt.rules import controller, normalized
from learned_opt.rules.normalized import NormalizedRule
from learned_opt.rules.rule import TensorSpec
from zoo.networks.roles import PARAM_ROLES

# Scalars and network of a rule that was meta-trained on small MLPs, rounded.
SCALARS = {
    "rate": 0.0139,
    "log_input": 0.81,
    "log_hidden": 0.28,
    "log_output": -0.45,
    "log_bias": 0.76,
    "log_norm": 0.76,
    "log_embedding": 0.81,
    "noise_power": 0.59,
    "momentum_decay": 0.819,
    "square_decay": 0.979,
    "slow_decay": 0.9965,
    "nesterov": 0.33,
    "horizon_power": -0.04,
    "depth_power": -0.79,
    "agreement_rate": 0.079,
    "agreement_target": 0.011,
    "relaxation": 9.0,
    "schedule_power": 0.89,
    "mix_input": 0.996,
    "mix_hidden": 0.98,
    "mix_output": 0.7,
    "weight_decay": 0.2,
    "agreement_horizon": -0.4,
    "decay_horizon": -0.7,
}
SPECS = [
    TensorSpec("first", "input", 6, (8, 6), 3),
    TensorSpec("hidden", "hidden", 8, (8, 8), 3),
    TensorSpec("same shape", "hidden", 8, (8, 8), 3),
    TensorSpec("kernel", "hidden", 27, (5, 3, 3, 3), 3),
    TensorSpec("head", "output", 8, (4, 8), 3),
    TensorSpec("table", "embedding", 1, (9, 8), 3),
    TensorSpec("norm", "norm", 1, (8,), 3),
    TensorSpec("bias", "bias", 8, (8,), 3),
    TensorSpec("scalar", "bias", 1, (), 3),
]


def meta_trained_like(seed: int = 0, *, offset: bool = False, memory: bool = False) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    count = controller.NUM_FEEDBACK + controller.NUM_OFFSETS * offset + controller.NUM_MEMORY * memory
    rest = 0.3 * torch.randn(count, generator=rng)
    return torch.cat([controller.encode_scalars(SCALARS), rest])


class PerTensorRule:
    """The rule for one tensor, with floats, as plainly as it can be written."""

    def __init__(self, scalars, network, spec, param, *, horizon, second=None, basis=False):
        self.s, self.spec, self.param, self.horizon, self.t = scalars, spec, param, horizon, 0
        self.m = torch.zeros_like(param)
        self.v = torch.zeros_like(param)
        self.fast = self.slow = self.recent = self.usual = self.log_step = self.initial = 0.0
        self.weight, self.bias = network[:45].view(15, 3), network[45:]
        self.second = torch.zeros(16, 2) if second is None else second.view(16, 2)
        self.log_memory = self.log_reaction = 0.0
        self.has_basis = basis and spec.role in ("input", "hidden", "output")
        self.covariance, self.basis = 0.0, None

    def in_basis(self, g):
        """The gradient in eigenvectors of its covariance along the shorter side, seen as a tall matrix."""
        tall = g.reshape(len(g), -1)
        self.is_wide = tall.shape[0] < tall.shape[1]
        tall = tall.T if self.is_wide else tall
        if self.basis is None:
            self.basis, self.m, self.v = torch.eye(tall.shape[1]), torch.zeros_like(tall), torch.zeros_like(tall)
        self.covariance = 0.95 * self.covariance + 0.05 * tall.T @ tall
        if self.t % 10 == 0:
            old, self.basis = self.basis, torch.linalg.qr(self.covariance @ self.basis).Q
            self.m = self.m @ old.T @ self.basis
        return tall @ self.basis

    def per_run(self, name):
        return (self.horizon / 400) ** self.s[f"{name}_horizon"]

    def update(self, g):
        s, role, t, horizon = self.s, self.spec.role, self.t, self.horizon
        f = min(t, horizon - 1) / horizon
        g = self.in_basis(g) if self.has_basis else g
        last = self.m / (self.v + 1e-24).sqrt()
        square = float((g**2).mean())
        agreement = 0.0
        self.log_step -= s["relaxation"] / horizon * self.log_step
        if t > 0:
            agreement = float((g * last).sum() / (g.norm() * last.norm()))
            rate = self.per_run("agreement") * s["agreement_rate"] * math.exp(self.log_reaction)
            self.log_step += rate * (agreement - s["agreement_target"])
        self.m += min(1.0, (1 - s["momentum_decay"]) * math.exp(-self.log_memory)) * (g - self.m)
        self.v += (1 - s["square_decay"]) * (g**2 - self.v)
        young = 1 / (t + 1)
        self.fast += max(0.1, young) * (square - self.fast)
        self.slow += max(1 - s["slow_decay"], young) * (square - self.slow)
        self.recent += max(0.1, young) * (agreement - self.recent)
        self.usual += max(0.02, young) * (agreement - self.usual)
        if t < 5:
            self.initial = self.fast
        rho = 0.5 * math.log(self.fast / self.slow)
        base = math.log(s["rate"]) + s["horizon_power"] * math.log(horizon / 400) + s[f"log_{role}"]
        base += s["depth_power"] * math.log(self.spec.depth / 2)
        if role in ("input", "hidden", "output"):
            base += 0.5 * math.log(32 / self.spec.width)
        share = float((self.m**2).mean() / self.v.mean())
        inputs = [
            2 * f - 1,
            math.log(horizon / 400),
            math.log((self.spec.depth + 1) / 3),
            rho,
            3 * self.recent,
            6 * self.usual,
            0.5 * math.log(share + 1e-6) + 1,
            0.25 * math.log(self.fast / self.initial),
            0.5 * (base + self.log_step - 0.5 * math.log(float((self.param**2).mean()) + 1e-8) + 2),
        ]
        inputs = [max(-3.0, min(3.0, x)) for x in inputs] + [float(role == r) for r in PARAM_ROLES]
        out = torch.tensor(inputs) @ self.weight + self.bias
        memory, reaction = (torch.tensor([*inputs, 1.0]) @ self.second).tolist()
        self.log_memory, self.log_reaction = max(0.0, min(2.5, memory)), max(-6.0, min(0.0, reaction))
        size = (1 - f) ** s["schedule_power"] * math.exp(
            base + max(-5.0, min(4.0, s["noise_power"] * rho + self.log_step + float(out[0])))
        )
        if role in ("input", "hidden", "output"):
            weight, start = float((self.param**2).mean()) ** 0.5, (3 * self.spec.fan_in) ** -0.5
            grown = max(1.0, min(weight / (2.5 * start), math.sqrt(self.fast / self.initial)))
            size /= grown ** (6 * max(0.0, min(1.0, 1 + self.usual / 0.06)))
            size = min(size, 0.3 * max(weight, start))
        self.log_step = max(-4.0, min(3.0, self.log_step + s["relaxation"] / horizon * float(out[1])))
        nesterov = min(1.0, s["nesterov"] * math.exp(max(-4.0, min(4.0, float(out[2])))))
        d = (self.m + nesterov * (g - self.m)) / (self.v + 1e-24).sqrt()
        d = d / (d**2).mean().sqrt()
        if self.has_basis:
            d = d @ self.basis.T
            d = (d.T if self.is_wide else d).reshape(self.param.shape)
        if role in ("input", "hidden", "output"):
            matrix = d.reshape(d.shape[0], -1)
            tall = matrix.shape[0] > matrix.shape[1]
            x = (matrix.T if tall else matrix) / matrix.norm()
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            x = (x.T if tall else x).reshape(d.shape)
            x = x / (x**2).mean().sqrt()
            d = d + s[f"mix_{role}"] * (x - d)
            d = d / (d**2).mean().sqrt()
        if role in ("input", "hidden", "output"):
            decay = s["weight_decay"] * self.per_run("decay")
            self.param *= 1 - (1 - f) ** s["schedule_power"] * s["rate"] * decay
        self.param -= size * d
        self.t += 1


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        (False, set()),
        (True, set()),
        (False, {"embedding_offset"}),
        (False, {"embedding_offset", "memory"}),
        (True, {"memory"}),
        (False, {"basis"}),
        (True, {"basis", "memory"}),
    ],
)
def test_equals_a_plain_per_tensor_implementation_over_100_updates(reference, parts):
    rule, horizon = NormalizedRule(reference=reference, **dict.fromkeys(parts, True)), 90
    offset, memory = "embedding_offset" in parts, "memory" in parts
    specs = [replace(spec, reads_tokens=offset) for spec in SPECS]
    theta = meta_trained_like(offset=offset, memory=memory)
    second = theta[-controller.NUM_MEMORY :] if memory else None
    network = theta[len(controller.SCALARS) :][: controller.NUM_FEEDBACK].clone()
    network[45:] += theta[controller.embedding_offset()] if offset else 0.0  # one of SPECS is an embedding
    rng = torch.Generator().manual_seed(0)
    sizes = [0.1, 2.0, 0.3, *[1.0] * 6]  # with steps that both limits change
    params = [size * torch.randn(1, *s.shape, generator=rng) for size, s in zip(sizes, SPECS, strict=True)]
    options = {"horizon": horizon, "second": second, "basis": "basis" in parts}
    plain = [PerTensorRule(SCALARS, network, s, p[0].clone(), **options) for s, p in zip(SPECS, params, strict=True)]
    state = rule.init_state(specs, params)
    with torch.no_grad():
        for inner_step in range(100):
            means = [0.5 * p + torch.randn(p.shape, generator=rng) for p in params]
            grads = [0.01 * math.exp(math.sin(inner_step / 15)) * mean for mean in means]
            for single, grad in zip(plain, grads, strict=True):
                single.update(grad[0])
            rule.update(theta, specs, params, grads, state, inner_step=inner_step, num_steps=horizon)
    for single, param in zip(plain, params, strict=True):
        torch.testing.assert_close(param[0], single.param, rtol=1e-4, atol=1e-4)


def test_disagreement_beyond_that_of_noise_lengthens_momentum_and_is_ignored():
    """Gradients that swing without noise, and those of pure noise, by the second layer as it begins."""
    rule, rng = NormalizedRule(memory=True), torch.Generator().manual_seed(0)
    theta = rule.init_theta(rng)
    specs, params = [TensorSpec("hidden", "hidden", 8, (8, 8), 2)], [torch.randn(1, 8, 8, generator=rng)]
    swing = torch.randn(1, 8, 8, generator=rng)
    for make, is_smooth in (
        (lambda t: (-1) ** t * swing, True),
        (lambda t: torch.randn(1, 8, 8, generator=rng), False),
    ):
        state = rule.init_state(specs, params)
        for t in range(60):
            rule.update(theta, specs, params, [make(t)], state, inner_step=t, num_steps=100)
        log_memory, log_reaction = state["statistics"][0][0, controller.NUM_STATISTICS :].tolist()
        assert (log_memory > 1.0) == is_smooth
        assert (log_reaction < -2.0) == is_smooth


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0])
def test_no_update_changes_a_matrix_by_more_than_a_share_of_itself_or_of_a_usual_start(scale):
    rule, rng, theta = NormalizedRule(), torch.Generator().manual_seed(0), meta_trained_like()
    theta[controller.SCALAR_NAMES.index("rate")] = 5.0  # 148 times the usual one
    specs = [spec for spec in SPECS if spec.role in ("input", "hidden", "output")]
    params = [scale * torch.randn(1, *spec.shape, generator=rng) for spec in specs]
    before = [param.clone() for param in params]
    grads = [torch.randn(param.shape, generator=rng) for param in params]
    options = {"inner_step": 0, "num_steps": None, "weight_decay": [0.0] * len(specs)}
    rule.update(theta, specs, params, grads, rule.init_state(specs, params), **options)
    for spec, old, new in zip(specs, before, params, strict=True):
        usual = (3 * spec.fan_in) ** -0.5
        change = (new - old).square().mean().sqrt()
        torch.testing.assert_close(change, 0.3 * old.square().mean().sqrt().clamp(min=usual), rtol=1e-3, atol=0)


def test_the_angle_to_momentum_is_one_even_where_squares_underflow():
    """Single examples that a network is sure of have gradients whose squares are zero in float32."""
    grad, last = 1e-23 * torch.ones(1, 1, 4), torch.tensor([[[3.0, -1.0, 2.0, -2.0]]])
    sums = torch.stack([normalized.square_sum(grad), (grad * last).sum(2), normalized.square_sum(last)], dim=2)
    signals = normalized.signals_of(torch.cat([sums, sums], dim=2), [4])
    assert abs(float(signals.agreement)) <= 1


def test_the_numbers_for_embeddings_change_nothing_without_one():
    rng = torch.Generator().manual_seed(0)
    start, grad = torch.randn(2, 1, 8, 6, generator=rng)
    theta = meta_trained_like(offset=True)
    ends = []
    for rule, numbers in ((NormalizedRule(), theta[:-3]), (NormalizedRule(embedding_offset=True), theta)):
        params = [start.clone()]
        rule.update(numbers, SPECS[:1], params, [grad], rule.init_state(SPECS[:1], params), inner_step=0, num_steps=10)
        ends.append(params[0])
    assert torch.equal(*ends)
    with pytest.raises(ValueError, match="feedback=False leaves out"):
        NormalizedRule(feedback=False, embedding_offset=True)


def test_without_a_horizon_steps_fall_as_those_of_longer_and_longer_runs():
    places = [normalized.horizon_of(t, None, torch.zeros(1)) for t in (0, 49, 50, 9999)]
    assert [float(place.num_steps) for place in places] == [100, 100, 102, 20_000]
    assert len({float(place.fraction) for place in places}) == 1


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_update_does_not_depend_on_the_scale_of_the_loss(scale):
    results = []
    for factor in (1.0, scale):
        rule, rng = NormalizedRule(), torch.Generator().manual_seed(0)
        params = [torch.randn(1, *spec.shape, generator=rng) for spec in SPECS]
        state = rule.init_state(SPECS, params)
        for inner_step in range(10):
            grads = [factor * torch.randn(p.shape, generator=rng) for p in params]
            rule.update(meta_trained_like(), SPECS, params, grads, state, inner_step=inner_step, num_steps=10)
        results.append(params)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_scalars_twin_is_the_rule_with_its_network_off():
    theta = meta_trained_like()
    theta[len(controller.SCALARS) :] = 0
    results = []
    for rule, meta in ((NormalizedRule(), theta), (NormalizedRule(feedback=False), theta[: len(controller.SCALARS)])):
        params = [torch.ones(1, *spec.shape) for spec in SPECS]
        state, rng = rule.init_state(SPECS, params), torch.Generator().manual_seed(1)
        for inner_step in range(5):
            grads = [torch.randn(p.shape, generator=rng) for p in params]
            rule.update(meta, SPECS, params, grads, state, inner_step=inner_step, num_steps=5)
        results.append(params)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_time_may_differ_between_networks():
    rule, theta = NormalizedRule(), meta_trained_like()
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(2, *spec.shape, generator=rng) for spec in SPECS]
    grads = [torch.randn(p.shape, generator=rng) for p in start]
    both = [p.clone() for p in start]
    times = {"inner_step": torch.tensor([3, 50]), "num_steps": torch.tensor([10, 100])}
    rule.update(theta, SPECS, both, grads, rule.init_state(SPECS, both), **times)
    for n in range(2):
        alone = [p[n : n + 1].clone() for p in start]
        own = {key: int(value[n]) for key, value in times.items()}
        rule.update(theta, SPECS, alone, [g[n : n + 1] for g in grads], rule.init_state(SPECS, alone), **own)
        for a, b in zip(both, alone, strict=True):
            torch.testing.assert_close(a[n : n + 1], b)


def test_step_beyond_the_horizon_is_the_last_one():
    rule, theta, moved = NormalizedRule(feedback=False), controller.encode_scalars(SCALARS), []
    for inner_step in (9, 10, 1000):
        params = [torch.ones(1, 4, 8)]
        grads = [torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))]
        rule.update(
            theta, SPECS[4:5], params, grads, rule.init_state(SPECS[4:5], params), inner_step=inner_step, num_steps=10
        )
        moved.append(params[0])
    assert torch.equal(moved[0], moved[1])
    assert torch.equal(moved[0], moved[2])
    assert not torch.equal(moved[0], torch.ones(1, 4, 8))


@pytest.mark.parametrize(("num_steps", "kept"), [(90, 0.9**10), (16, 0.4375**10), (4, 0.4375**10)])
def test_what_agreement_did_to_the_step_is_forgotten(num_steps, kept):
    rule, log_step = NormalizedRule(feedback=False), controller.Statistics._fields.index("log_step")
    theta = controller.encode_scalars({**SCALARS, "agreement_target": 0.0})
    params = [torch.ones(1, 4, 8)]
    state = rule.init_state(SPECS[4:5], params)
    state["statistics"][0][:, log_step] = 2.0
    for inner_step in range(10):  # gradients of zero agree with nothing
        zeros = [torch.zeros(1, 4, 8)]
        rule.update(theta, SPECS[4:5], params, zeros, state, inner_step=inner_step, num_steps=num_steps)
    assert float(state["statistics"][0][0, log_step]) == pytest.approx(2.0 * kept, abs=1e-5)


def test_tiny_runs_begin_with_the_step_of_one_of_sixteen_updates():
    rule, theta, specs = NormalizedRule(), meta_trained_like(), SPECS[1:2]
    ended = {}
    for num_steps in (1, 2, 16, 17):
        params = [torch.ones(1, *specs[0].shape) / 8]
        grads = [torch.randn(params[0].shape, generator=torch.Generator().manual_seed(0))]
        rule.update(theta, specs, params, grads, rule.init_state(specs, params), inner_step=0, num_steps=num_steps)
        ended[num_steps] = params[0]
    assert torch.equal(ended[1], ended[16])
    assert torch.equal(ended[2], ended[16])
    assert not torch.equal(ended[16], ended[17])


def test_encoding_scalars_is_the_inverse_of_decoding():
    scalars, _ = controller.decode(controller.encode_scalars(SCALARS)[None], feedback=False)
    for name, value in SCALARS.items():
        assert float(scalars[name]) == pytest.approx(value, rel=1e-4)
    with pytest.raises(ValueError, match="warmup"):
        controller.encode_scalars({"warmup": 1.0})


def test_rule_is_differentiable_in_theta():
    rule = NormalizedRule(reference=True)
    theta = meta_trained_like().requires_grad_()
    params = [torch.randn(1, *spec.shape, generator=torch.Generator().manual_seed(2)) for spec in SPECS]
    state = rule.init_state(SPECS, params)
    for inner_step in range(3):
        rule.update(theta, SPECS, params, [2 * p for p in params], state, inner_step=inner_step, num_steps=10)
    sum(p.square().sum() for p in params).backward()
    assert theta.grad is not None
    assert torch.isfinite(theta.grad).all()
    assert (theta.grad[: len(controller.SCALARS)] != 0).sum() > 15


def small_chunks(monkeypatch):
    monkeypatch.setattr(normalized, "CPU_CHUNK_NUMEL", 64)


@pytest.mark.parametrize("active", [None, [True, False]], ids=["all", "one network"])
@pytest.mark.parametrize(("num_networks", "basis"), [(1, False), (2, False), (1, True), (2, True)])
def test_slices_and_stacks_of_tensors_equal_the_readable_twin(num_networks, basis, active, monkeypatch):
    small_chunks(monkeypatch)
    specs = [*SPECS, TensorSpec("large", "output", 8, (30, 8), 3), TensorSpec("vector", "norm", 1, (150,), 3), *SPECS]
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(num_networks, *spec.shape, generator=rng) for spec in specs]
    start[3] = start[3].mT.contiguous().mT  # not in the order of its dims
    theta = torch.stack([meta_trained_like(seed) for seed in range(num_networks)])
    mask = None if active is None else torch.tensor(active[-num_networks:])
    lr = torch.tensor(0.5)
    results = []
    for reference in (False, True):
        rule, params = NormalizedRule(reference=reference, basis=basis), [param.clone() for param in start]
        state = rule.init_state(specs, params)
        grads_rng = torch.Generator().manual_seed(1)
        for inner_step in range(4):
            grads = [torch.randn(param.shape, generator=grads_rng) for param in params]
            rule.update(
                theta,
                specs,
                params,
                grads,
                state,
                inner_step=inner_step,
                num_steps=9,
                lr=[lr, 1.0] * (len(specs) // 2),
                weight_decay=[None, 0.0, 0.1, 0.2] * (len(specs) // 4),
                active=None if mask is None or inner_step == 0 else [mask] * len(specs),
            )
        results.append([*params, *(tensor for kept in state.values() for tensor in kept)])
    for fast, readable in zip(*results, strict=True):
        torch.testing.assert_close(fast, readable, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("basis", [False, True])
def test_inactive_networks_stay_as_they_are_whatever_their_gradients(basis, monkeypatch):
    small_chunks(monkeypatch)
    rng = torch.Generator().manual_seed(0)
    rule, params = NormalizedRule(basis=basis), [torch.randn(2, *spec.shape, generator=rng) for spec in SPECS]
    state, active = rule.init_state(SPECS, params), [torch.tensor([True, False])] * len(SPECS)
    grads = [torch.randn(param.shape, generator=rng) for param in params]
    before = [[tensor.clone() for tensor in kept] for kept in (params, *state.values())]
    for grad in grads:
        grad[1] = math.nan
    for inner_step in range(2):
        rule.update(meta_trained_like(), SPECS, params, grads, state, inner_step=inner_step, num_steps=9, active=active)
    for old, new in zip(before, (params, *state.values()), strict=True):
        for a, b in zip(old, new, strict=True):
            assert torch.equal(a[1], b[1])
            assert not a.numel() or not torch.equal(a[0], b[0])
            assert b.isfinite().all()
