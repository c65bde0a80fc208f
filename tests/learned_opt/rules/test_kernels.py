"""Fast paths against each other; without a GPU the Triton kernels run in Triton's interpreter, if it is installed."""

import pytest
import torch

from learned_opt.rules import features
from learned_opt.rules.features import Accumulators
from learned_opt.rules.kernels import native_mlp
from learned_opt.rules.kernels.chunked_mlp import chunked_update_
from learned_opt.rules.kernels.folding import fold
from learned_opt.rules.mlp import MlpRule
from learned_opt.rules.rule import TensorSpec

SHAPES = [(5, 70), (70, 5), (33,), (4, 3, 3, 3), ()]


def test_folded_layer_equals_the_layer_on_all_features():
    rng = torch.Generator().manual_seed(0)
    rule, shape = MlpRule(16), (6, 5)
    layers, decays = rule.unpack(torch.stack([rule.init_theta(rng) for _ in range(2)]))
    param, grad = torch.randn(2, *shape, generator=rng), torch.randn(2, *shape, generator=rng)
    state = rule.init_state([TensorSpec("w", "hidden", 5, shape)], [param])
    param, grad = features.canonical(param, shape), features.canonical(grad, shape)
    zero = Accumulators(*(state[key][0] for key in ("momentum", "square", "row", "column")), factored=True)
    accumulators, step = features.accumulate(zero, grad, decays), torch.tensor([7.0])
    x = features.all_features(param, grad, accumulators, step)
    expected = torch.einsum("nhf,nferc->nherc", layers[0].weight, x) + layers[0].bias[..., None, None, None]

    factors, chunk = features.preconditioners(accumulators), (slice(None),) * 3
    dense = features.dense_features(param, grad, accumulators, factors, chunk=chunk, out=torch.empty(2, 16, 30))
    first = fold(layers[0], accumulators, dense.square().mean((2, 3, 4)), step)
    folded = torch.einsum("nhf,nferc->nherc", first.weight, dense) + first.row_bias + first.column_bias
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-5)


def updated(update, shape, device, **options):
    """Parameters and momenta of two networks after three updates."""
    rng = torch.Generator().manual_seed(0)
    rule, spec = MlpRule(16), TensorSpec("w", "hidden", 5, shape)
    layers, decays = rule.unpack(torch.stack([rule.init_theta(rng) for _ in range(2)]).to(device))
    param = torch.randn(2, *shape, generator=rng).to(device)
    state = rule.init_state([spec], [param])
    momentum, square, row, column = (state[key][0] for key in ("momentum", "square", "row", "column"))
    accumulators = Accumulators(momentum, square, row, column, features.factored_axes(shape) is not None)
    for inner_step in range(3):
        grad = torch.randn(2, *shape, generator=rng).to(device)
        update(
            layers,
            decays,
            accumulators,
            param=features.canonical(param, shape),
            grad=features.canonical(grad, shape),
            inner_step=torch.tensor([float(inner_step)], device=device),
            step_size=0.5,
            shrink=0.99,
            **options,
        )
    return param.cpu(), momentum.cpu()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("active", [None, [True, False]], ids=["all", "one network"])
def test_triton_kernels_equal_chunks(shape, device, active):
    pytest.importorskip("triton")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels are compiled here, the interpreter is not needed")
    from learned_opt.rules.kernels.triton_mlp import fused_update_

    mask = None if active is None else torch.tensor(active, device=device)
    expected = updated(chunked_update_, shape, device, chunk_numel=50, active=mask)
    for fused, chunked in zip(updated(fused_update_, shape, device, active=mask), expected, strict=True):
        torch.testing.assert_close(fused, chunked, rtol=1e-5, atol=1e-5)


def native_run(num_threads=1, poison=False):
    """Parameters after three native updates of a matrix whose largest axis comes first, and of a vector."""
    rng = torch.Generator().manual_seed(0)
    rule = MlpRule(16, native=True)
    specs = [TensorSpec("w", "hidden", 40, (90, 40)), TensorSpec("b", "bias", 40, (2000,))]
    params = [torch.randn(2, *spec.shape, generator=rng) for spec in specs]
    theta, state = rule.init_theta(rng), rule.init_state(specs, params)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for inner_step in range(3):
            grads = [torch.randn(p.shape, generator=rng) for p in params]
            if poison:
                for grad in grads:
                    grad[0].view(-1)[7] = torch.nan
            rule.update(theta, specs, params, grads, state, inner_step=inner_step, num_steps=None)
    finally:
        torch.set_num_threads(before)
    return params


needs_compiler = pytest.mark.skipif(not native_mlp.is_available(), reason="no C compiler")


@needs_compiler
def test_native_kernel_gives_the_same_bits_on_any_number_of_threads():
    for one, three in zip(native_run(1), native_run(3), strict=True):
        assert torch.equal(one, three)


@needs_compiler
def test_nan_spoils_one_network_and_no_other():
    for clean, poisoned in zip(native_run(), native_run(poison=True), strict=True):
        assert poisoned[0].isnan().all()
        assert torch.equal(clean[1], poisoned[1])


@needs_compiler
def test_native_kernel_refuses_to_hide_a_derivative():
    rule = MlpRule(4, native=True)
    specs, params = [TensorSpec("b", "bias", 3, (3,))], [torch.ones(1, 3)]
    theta = rule.init_theta(torch.Generator().manual_seed(0)).requires_grad_()
    with pytest.raises(RuntimeError, match="reference=True"):
        rule.update(theta, specs, params, params, rule.init_state(specs, params), inner_step=0, num_steps=None)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(native_mlp, "_compiler", lambda: None)
    assert not native_mlp.is_available.__wrapped__()
    with pytest.raises(native_mlp.NativeKernelError, match="native=False"):
        native_mlp._library.__wrapped__()


def test_a_failing_compiler_is_quoted(monkeypatch):
    monkeypatch.setattr(native_mlp, "FLAGS", ("--no-such-option",))
    if not native_mlp.is_available():
        pytest.skip("no C compiler")
    native_mlp._library.cache_clear()
    with pytest.warns(UserWarning, match="no-such-option"):
        assert not native_mlp.is_available.__wrapped__()
