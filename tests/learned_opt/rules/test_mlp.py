import math

import pytest
import torch

from learned_opt.rules import features
from learned_opt.rules.kernels.native_mlp import is_available
from learned_opt.rules.mlp import MlpRule, learned_decay
from learned_opt.rules.rule import TensorSpec

SHAPES = [(20,), (7, 5), (5, 9), (6, 6), (4, 3, 3, 3), (2, 3, 4), (), (0, 3), (1, 8), (40, 70), (1500,)]
SPECS = [TensorSpec(str(s), "bias" if len(s) < 2 else "hidden", 5, s) for s in SHAPES]


FAST_PATHS = {
    "native": {"native": True},
    "chunks": {"native": False, "chunk_numel": 16_384},
    "small chunks": {"native": False, "chunk_numel": 100},
}


def skip_without_compiler(options):
    if options["native"] and not is_available():
        pytest.skip("no C compiler")


@pytest.mark.parametrize("options", FAST_PATHS.values(), ids=FAST_PATHS)
@pytest.mark.parametrize("hidden", [5, 32])
def test_fast_paths_equal_the_readable_twin_over_100_updates(hidden, options):
    skip_without_compiler(options)
    rng = torch.Generator().manual_seed(0)
    fast, twin = MlpRule(hidden, **options), MlpRule(hidden, reference=True)
    theta = torch.stack([fast.init_theta(rng) for _ in range(2)])
    theta += 0.01 * torch.randn(theta.shape, generator=rng)
    start = [torch.randn(2, *shape, generator=rng) for shape in SHAPES]
    params = [[p.clone() for p in start] for _ in range(2)]
    states = [rule.init_state(SPECS, start) for rule in (fast, twin)]
    for inner_step in range(100):
        grads = [torch.randn(2, *shape, generator=rng) * 10 ** (-inner_step / 30) for shape in SHAPES]
        for rule, p, state in zip((fast, twin), params, states, strict=True):
            rule.update(
                theta, SPECS, p, [g.clone() for g in grads], state, inner_step=inner_step, num_steps=None, lr=2.0
            )
    for a, b, first in zip(*params, start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert a.numel() == 0 or not torch.equal(a, first)


def test_published_size():
    assert MlpRule(32).num_theta == 2402 + 7


def test_features_of_a_matrix_follow_the_published_formulas():
    """Each group of features written out for one matrix and one update from zero accumulators."""
    rng = torch.Generator().manual_seed(0)
    p, g = torch.randn(3, 4, generator=rng), torch.randn(3, 4, generator=rng)
    spec, rule = TensorSpec("w", "hidden", 4, (3, 4)), MlpRule(4)
    _, decays = rule.unpack(rule.init_theta(rng)[None])
    state = rule.init_state([spec], [p[None]])
    zero = features.Accumulators(*(state[k][0] for k in ("momentum", "square", "row", "column")), factored=True)
    accumulators = features.accumulate(zero, features.canonical(g[None], (3, 4)), decays)
    x = features.all_features(p[None, None], g[None, None], accumulators, torch.tensor([2.0]))[0, :, 0]  # (39, 3, 4)

    weights = [0.1, 0.01, 0.001]
    m = [w * g for w in weights]
    v = 0.001 * g**2
    row = [w * (g**2).mean(1, keepdim=True) for w in weights]
    column = [w * (g**2).mean(0, keepdim=True) for w in weights]

    def factor(r, c):
        return (r / (r.mean() + 1e-9)).clamp(min=1e-9).rsqrt() * c.clamp(min=1e-9).rsqrt()

    expected = [g, p, *m, v, *(a * (v + 1e-6).rsqrt() for a in m), (v + 1e-6).rsqrt()]
    expected += [g * factor(r, c) for r, c in zip(row, column, strict=True)]
    expected += [r.expand(3, 4) for r in row] + [c.expand(3, 4) for c in column]
    expected += [(r + 1e-8).rsqrt().expand(3, 4) for r in row] + [(c + 1e-8).rsqrt().expand(3, 4) for c in column]
    expected += [a * factor(r, c) for a, r, c in zip(m, row, column, strict=True)]
    normalised = [f * (1e-5 + (f**2).mean()).rsqrt() for f in expected]
    torch.testing.assert_close(x[:28], torch.stack(normalised), rtol=1e-4, atol=1e-5)
    times = [math.tanh(2 / tau - 1) for tau in features.TIMESCALES]
    torch.testing.assert_close(x[28:, 0, 0], torch.tensor(times))
    assert len(expected) == 28
    assert x.shape[0] == features.NUM_FEATURES


def test_decays_start_at_the_published_values_and_move():
    zero = learned_decay((0.9, 0.999), torch.zeros(1, 2))
    torch.testing.assert_close(zero, torch.tensor([[0.9, 0.999]]))
    moved = learned_decay((0.9,), torch.tensor([[-math.log(10) / 10]]))
    torch.testing.assert_close(moved, torch.tensor([[0.99]]))


@pytest.mark.parametrize(("role", "ratio"), [("input", 1), ("hidden", 64), ("output", 64), ("bias", 1)])
def test_mup_divides_updates_of_hidden_and_output_matrices_by_fan_in(role, ratio):
    moved = []
    for fan_in in (1, 64):
        rule = MlpRule(4)
        params = [torch.zeros(1, 5, 6)]
        spec = TensorSpec("w", role, fan_in, (5, 6))
        theta = rule.init_theta(torch.Generator().manual_seed(1))
        grad = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(0))
        rule.update(theta, [spec], params, [grad], rule.init_state([spec], params), inner_step=0, num_steps=None)
        moved.append(params[0])
    torch.testing.assert_close(moved[0], ratio * moved[1])


def test_width_leaves_out_the_area_of_a_kernel():
    assert TensorSpec("conv", "hidden", 8 * 9, (4, 8, 3, 3)).width == 8
    assert TensorSpec("conv1d", "hidden", 8 * 5, (4, 8, 5)).width == 8
    assert TensorSpec("matrix", "hidden", 8, (4, 8)).width == 8
    assert TensorSpec("bias", "bias", 8, (4,)).width == 8


def test_reference_rule_is_differentiable_in_theta():
    rule = MlpRule(4, reference=True)
    theta = rule.init_theta(torch.Generator().manual_seed(0)).requires_grad_()
    params = [torch.ones(1, 3, 4)]
    spec = TensorSpec("w", "hidden", 4, (3, 4))
    state = rule.init_state([spec], params)
    for inner_step in range(3):
        rule.update(theta, [spec], params, [2 * params[0]], state, inner_step=inner_step, num_steps=None)
    params[0].square().sum().backward()
    assert theta.grad is not None
    assert torch.isfinite(theta.grad).all()
    assert (theta.grad[-7:] != 0).any()


def test_memory_of_chunks_does_not_grow_with_the_tensor():
    peaks = []
    for rows in (64, 256):
        rule = MlpRule(8, native=False, chunk_numel=1024)
        spec, params = TensorSpec("w", "hidden", 256, (rows, 256)), [torch.zeros(1, rows, 256)]
        state, grads = rule.init_state([spec], params), [torch.ones(1, rows, 256)]
        theta = rule.init_theta(torch.Generator().manual_seed(0))
        with torch.profiler.profile(profile_memory=True) as profile:
            rule.update(theta, [spec], params, grads, state, inner_step=0, num_steps=None)
        peaks.append(max(abs(event.cpu_memory_usage) for event in profile.key_averages()))
        assert all(event.cpu_memory_usage < 4 * rows * 256 * 3 for event in profile.events())
    assert peaks[1] < 4 * peaks[0]


@pytest.mark.parametrize("options", [{"hidden": 0}, {"parametrization": "ntk"}, {"chunk_numel": 0}, {"native": "yes"}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        MlpRule(**options)


@pytest.mark.parametrize("num_networks", [1, 2])
def test_tensors_of_one_shape_are_updated_together_on_a_device(device, num_networks):
    rng = torch.Generator().manual_seed(0)
    specs = [TensorSpec(str(i), "hidden", 5, shape, 2) for i, shape in enumerate([(4, 5), (6,), (4, 5), (6,), (4, 5)])]
    theta = torch.stack([MlpRule(4).init_theta(rng) for _ in range(num_networks)])
    start = [torch.randn(num_networks, *spec.shape, generator=rng) for spec in specs]
    grads = [torch.randn(num_networks, *spec.shape, generator=rng) for spec in specs]
    times, lr = torch.tensor([3, 70])[:num_networks], torch.tensor(0.5)
    active = [torch.tensor([i != 2, i == 3])[:num_networks] for i in range(len(specs))]
    results = []
    for place, rule in (("cpu", MlpRule(4, reference=True)), (device, MlpRule(4))):
        params = [param.clone().to(place) for param in start]
        state = rule.init_state(specs, params)
        rule.update(
            theta.to(place),
            specs,
            params,
            [grad.to(place) for grad in grads],
            state,
            inner_step=times.to(place),
            num_steps=None,
            lr=[lr.to(place)] * len(specs),
            weight_decay=0.1,
            active=[mask.to(place) for mask in active],
        )
        results.append([tensor.cpu() for kept in (params, *state.values()) for tensor in kept])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
