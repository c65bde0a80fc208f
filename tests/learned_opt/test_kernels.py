"""Fast paths against each other; without a GPU the Triton kernels run in Triton's interpreter, if it is installed."""

import os

import pytest
import torch

from learned_opt import MlpRule, TensorSpec, features
from learned_opt.features import Accumulators
from learned_opt.kernels.chunked_mlp import chunked_update_
from learned_opt.kernels.folding import fold

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported

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
def test_triton_kernels_equal_chunks(shape, device):
    pytest.importorskip("triton")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels are compiled here, the interpreter is not needed")
    from learned_opt.kernels.triton_mlp import fused_update_

    expected = updated(chunked_update_, shape, device, chunk_numel=50)
    for fused, chunked in zip(updated(fused_update_, shape, device), expected, strict=True):
        torch.testing.assert_close(fused, chunked, rtol=1e-5, atol=1e-5)
