"""Random functions of torch under a stream: what they compute, and that nothing else changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.networks.counter_rng import CounterRng, at, streams_of
from zoo.networks.module_randomness import DrawnFromStream

STREAM = streams_of([11])[0]
ONES = torch.ones(40, 50)
IMAGES = torch.randn(6, 20, 3, 2, generator=torch.Generator().manual_seed(0))


def drawn(function, stream=STREAM):
    """What a function gives under a stream; the global generator must not move."""
    state = torch.random.get_rng_state()
    with DrawnFromStream(stream):
        result = function()
    assert torch.equal(torch.random.get_rng_state(), state)
    return result


def test_dropout_is_a_mask_of_the_stream_and_keeps_the_mean():
    out = drawn(lambda: F.dropout(ONES, 0.25))
    expected = CounterRng(STREAM).keeps(0.75, ONES.shape) / 0.75
    torch.testing.assert_close(out, expected)
    assert torch.equal(drawn(lambda: nn.Dropout(0.25).train()(ONES)), out)
    assert not torch.equal(drawn(lambda: F.dropout(ONES, 0.25), at(STREAM, step=1)), out)
    first, second = drawn(lambda: (F.dropout(ONES, 0.25), F.dropout(ONES, 0.25)))
    assert not torch.equal(first, second)


def test_nothing_is_dropped_in_evaluation_or_with_probability_0_and_all_with_1():
    assert drawn(lambda: nn.Dropout(0.5).eval()(ONES)) is ONES
    assert drawn(lambda: F.dropout(ONES, 0.0)) is ONES
    assert not drawn(lambda: F.dropout(ONES, 1.0)).any()
    with pytest.raises(ValueError, match=r"must be from 0 to 1, got 1\.5"):
        drawn(lambda: F.dropout(ONES, 1.5))


def test_dropout_in_place_changes_its_input():
    values = ONES.clone()
    out = drawn(lambda: F.dropout(values, 0.5, inplace=True))
    assert out is values
    assert set(values.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (nn.Dropout1d(), IMAGES[..., 0]),
        (nn.Dropout1d(), IMAGES[0, :, 0]),
        (nn.Dropout2d(), IMAGES),
        (nn.Dropout3d(), IMAGES[..., None]),
        (nn.Dropout3d(), IMAGES.transpose(0, 1)),
    ],
)
def test_channels_are_dropped_whole(module, inputs):
    """The same axes share a mask as with torch's own numbers."""
    mine, torchs = drawn(lambda: module.train()(inputs)) == 0, module.train()(inputs) == 0
    num_dims = {nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}[type(module)]
    for dropped in (mine, torchs):
        per_channel = dropped.flatten(-num_dims)
        assert torch.equal(per_channel.all(-1), per_channel.any(-1))
    assert 0.1 < mine.float().mean() < 0.9


@pytest.mark.parametrize("function", [F.alpha_dropout, F.feature_alpha_dropout])
def test_alpha_dropout_keeps_mean_and_variance_and_torchs_values(function):
    inputs = torch.randn(200, 300, 1, generator=torch.Generator().manual_seed(1))
    mine, torchs = drawn(lambda: function(inputs, 0.3, True)), function(inputs, 0.3, True)
    assert mine.mean() == pytest.approx(0, abs=0.02)
    assert mine.std() == pytest.approx(1, abs=0.02)
    agree = (mine - torchs).abs() < 1e-5  # where both keep, or both drop, a unit
    assert agree.float().mean() == pytest.approx(0.7**2 + 0.3**2, abs=0.03)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.1}, {"mask": True}, {"enable_gqa": True}])
def test_attention_without_dropout_is_torchs_and_with_it_masks_the_weights(options):
    rng = torch.Generator().manual_seed(2)
    options = dict(options)
    mask = (torch.rand(5, 5, generator=rng) < 0.8).fill_diagonal_(True) if options.pop("mask", False) else None
    query = torch.randn(2, 4, 5, 3, generator=rng)
    key, value = (torch.randn(2, 2 if options else 4, 5, 3, generator=rng) for _ in range(2))
    if "enable_gqa" not in options:
        key, value = (one.repeat(1, 4 // one.shape[1], 1, 1) for one in (key, value))
    args = (query, key, value, mask)
    plain = F.scaled_dot_product_attention(*args, **options)
    torch.testing.assert_close(drawn(lambda: F.scaled_dot_product_attention(*args, dropout_p=0.0, **options)), plain)
    many = torch.stack(
        [
            drawn(lambda: F.scaled_dot_product_attention(*args, dropout_p=0.2, **options), at(STREAM, step=step))
            for step in range(300)
        ]
    )
    assert not torch.allclose(many[0], plain, atol=0.05)
    torch.testing.assert_close(many.mean(0), plain, rtol=0, atol=0.25)


@pytest.mark.parametrize("needs_weights", [True, False])
def test_multi_head_attention_draws_from_the_stream(needs_weights):
    attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True).train()
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(3))
    first, again = (drawn(lambda: attention(x, x, x, need_weights=needs_weights)[0]) for _ in range(2))
    other = drawn(lambda: attention(x, x, x, need_weights=needs_weights)[0], at(STREAM, step=1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    weights = drawn(lambda: attention(x, x, x, average_attn_weights=False)[1])
    undropped = attention.eval()(x, x, x, average_attn_weights=False)[1]
    is_kept = weights != 0
    assert 0.2 < is_kept.float().mean() < 0.8
    torch.testing.assert_close(weights[is_kept], 2 * undropped[is_kept])


def test_numbers_that_are_drawn_directly():
    like = torch.zeros(30, 40, dtype=torch.float64)
    assert drawn(lambda: torch.rand(30, 40)).shape == (30, 40)
    assert drawn(lambda: torch.rand((30, 40), dtype=torch.float64)).dtype is torch.float64
    assert drawn(lambda: torch.randn(size=(7,))).shape == (7,)
    assert drawn(lambda: torch.rand(())).ndim == 0
    assert drawn(lambda: torch.rand_like(like)).dtype is torch.float64
    assert drawn(lambda: torch.randn_like(like)).std() == pytest.approx(1, abs=0.1)
    uniform = drawn(lambda: torch.empty(2000).uniform_(-3, -1))
    assert uniform.min() >= -3
    assert uniform.max() < -1
    assert drawn(lambda: torch.empty(2000).normal_(5, 0.1)).mean() == pytest.approx(5, abs=0.02)
    kept = drawn(lambda: like.new_empty(30, 1).bernoulli_(0.8))  # as stochastic depth does
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert drawn(lambda: torch.bernoulli(torch.full((2000,), 0.1))).mean() == pytest.approx(0.1, abs=0.03)


def test_a_generator_that_is_given_is_used():
    with DrawnFromStream(STREAM):
        first, again = (torch.rand(3, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(4)))
