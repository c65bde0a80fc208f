import math
from itertools import permutations as all_orders

import pytest
import torch

from zoo.networks import metrics, symmetry
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import ParamLayout

ARCHITECTURES = {
    "one hidden layer": lambda: MLP(6, (5,), 3),
    "two hidden layers": lambda: MLP(6, (5, 4), 3),
    "cnn": lambda: CNN(1, (4, 6), 3),
    "transformer": lambda: ByteTransformer(11, 7, width=8, num_blocks=1, num_heads=2),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def initialised(build, num):
    torch.manual_seed(0)
    modules = [build() for _ in range(num)]
    layout = ParamLayout.of(modules[0])
    return layout, torch.stack([layout.flatten(module) for module in modules])


@pytest.fixture(params=ARCHITECTURES, ids=str)
def networks(request):
    return initialised(ARCHITECTURES[request.param], 5)


def test_equal_rows_have_distance_zero_however_many_there_are():
    rows = 100 * torch.randn(100, 300, generator=torch.Generator().manual_seed(0))
    distances = metrics.euclidean_distances(rows, rows.clone())
    assert distances.diagonal().eq(0).all()
    torch.testing.assert_close(distances[3], (rows - rows[3]).norm(dim=1))


def test_matched_distances_do_not_see_permutations(networks):
    layout, params = networks
    permuted = symmetry.apply(layout, params, symmetry.sample(layout, 5, torch.Generator().manual_seed(1)))
    within = metrics.matched_distances(layout, params)
    across = metrics.matched_distances(layout, params, permuted)
    assert torch.equal(within, within.T)
    assert within.diagonal().eq(0).all()
    assert across.diagonal().abs().max() < 1e-4
    raw = metrics.euclidean_distances(params[:, : layout.num_trainable])
    assert (within <= raw + 1e-5).all()
    assert metrics.mean_over_pairs(within) < metrics.mean_over_pairs(raw)


def test_matched_distance_of_one_group_is_the_smallest_over_all_permutations():
    layout, params = initialised(lambda: MLP(3, (4,), 2), 3)
    orders = torch.tensor(list(all_orders(range(4))))
    distances = metrics.matched_distances(layout, params[:1], params[1:])
    for j, other in enumerate(params[1:]):
        everything = symmetry.apply(layout, params[:1].expand(len(orders), -1), {"hidden.0": orders})
        torch.testing.assert_close(distances[0, j], (everything - other).norm(dim=1).min())


def test_blocks_of_pairs_change_nothing(monkeypatch):
    layout, params = initialised(lambda: MLP(6, (5,), 3), 7)
    whole = metrics.matched_distances(layout, params), metrics.matched_distances(layout, params[:3], params[3:])
    monkeypatch.setattr(metrics, "_MAX_BLOCK_BYTES", 1)
    blocks = metrics.matched_distances(layout, params), metrics.matched_distances(layout, params[:3], params[3:])
    for first, second in zip(whole, blocks, strict=True):
        torch.testing.assert_close(first, second)


def test_buffers_do_not_count():
    layout, params = initialised(lambda: CNN(1, (4,), 3), 2)
    params[1] = params[0]
    params[1, layout.num_trainable :] += 7
    assert metrics.matched_distances(layout, params).max() < 1e-5


def test_mean_delta_share():
    template = torch.randn(1, 50)
    assert metrics.mean_delta_share(template.expand(8, -1)) == pytest.approx(1)
    assert metrics.mean_delta_share(torch.eye(8)) == pytest.approx(1 / 8)
    opposite = torch.cat([template, -template])
    assert metrics.mean_delta_share(opposite) == pytest.approx(0)


def test_wrong_prediction_iou_on_an_example_by_hand():
    targets = torch.tensor([0, 1, 2, 3])
    predictions = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 3], [0, 1, 2, 3]])
    expected = torch.tensor([[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(metrics.wrong_prediction_iou(predictions, targets), expected)
    torch.testing.assert_close(
        metrics.wrong_prediction_iou(predictions[:1], targets, predictions[1:]), expected[:1, 1:]
    )


def test_loss_correlation_is_that_of_the_logarithms():
    losses = torch.rand(4, 30).exp() - 1
    expected = torch.corrcoef((losses.double() + metrics.LOSS_FLOOR).log())
    torch.testing.assert_close(metrics.loss_correlation(losses), expected)
    torch.testing.assert_close(metrics.loss_correlation(losses[:1], losses[1:]), expected[:1, 1:])


def test_log_prob_distance_is_a_root_mean_square():
    log_probs = torch.randn(3, 7, 4).log_softmax(-1)
    distances = metrics.log_prob_distance(log_probs)
    expected = (log_probs[0] - log_probs[1]).square().mean().sqrt().double()
    torch.testing.assert_close(distances[0, 1], expected, rtol=1e-5, atol=1e-6)
    assert metrics.log_prob_distance(torch.full((1, 2, 3), -1e9), torch.full((1, 2, 3), -12.0)) == 0


def test_an_ensemble_of_equals_gains_nothing_and_one_of_different_networks_gains():
    targets = torch.randint(5, (400,))
    signal = torch.nn.functional.one_hot(targets, 5) * 1.5
    log_probs = (signal + torch.randn(16, 400, 5)).log_softmax(-1)
    same = metrics.ensemble_gain(log_probs[:1].expand(8, -1, -1), targets)
    assert same.accuracy == 0
    assert same.loss == pytest.approx(0, abs=1e-12)
    gain = metrics.ensemble_gain(log_probs, targets)
    assert gain.accuracy > 0.1
    assert gain.loss > 0.1


def test_r2_log_is_one_for_prompts_met_and_negative_for_prompts_ignored():
    prompted = torch.logspace(-1, 0, 8)
    assert metrics.r2_log(prompted.expand(3, -1), prompted) == pytest.approx(1)
    assert metrics.r2_log(prompted.log().mean().exp().expand(8), prompted) == pytest.approx(0, abs=1e-12)
    assert metrics.r2_log(prompted.flip(0), prompted) == pytest.approx(-3)
    assert metrics.r2_log(torch.full((8,), torch.nan), prompted) == metrics.r2_log(torch.full((8,), 1e30), prompted)
    with pytest.raises(ValueError, match="positive"):
        metrics.r2_log(prompted, prompted - prompted)


def test_spearman_sees_order_only():
    values = torch.randn(50)
    assert metrics.spearman(values, values.exp()) == pytest.approx(1)
    assert metrics.spearman(values, -values) == pytest.approx(-1)
    assert metrics.spearman(torch.tensor([1, 1, 2, 3]), torch.tensor([1, 2, 3, 3])) == pytest.approx(8 / 9)
    with pytest.raises(ValueError, match="one size"):
        metrics.spearman(values, values[:-1])


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng = torch.Generator().manual_seed(0)
    samples = torch.randn(200, 40, generator=rng) + 3
    intervals = [metrics.bootstrap_interval(row, rng, num_resamples=200) for row in samples]
    covered = sum(low <= 3 <= high for low, high in intervals) / len(intervals)
    assert 0.88 < covered < 0.99


def test_bootstrap_interval_repeats_with_its_rng():
    values = torch.rand(30)
    intervals = {metrics.bootstrap_interval(values, torch.Generator().manual_seed(1)) for _ in range(2)}
    assert len(intervals) == 1
    with pytest.raises(ValueError, match="level"):
        metrics.bootstrap_interval(values, torch.Generator(), level=95)


def test_nested_bootstrap_draws_the_entries_of_each_row_too():
    values = torch.randn(1, 400, generator=torch.Generator().manual_seed(0)).double()
    low, high = metrics.bootstrap_interval(values, torch.Generator().manual_seed(0))
    assert low == pytest.approx(high)  # a single unit says nothing about others
    low, high = metrics.bootstrap_interval(values, torch.Generator().manual_seed(0), nested=True)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std().item() / 20, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4,)])
def test_mean_over_pairs_needs_pairs(shape):
    with pytest.raises(ValueError, match="must be"):
        metrics.mean_over_pairs(torch.zeros(shape))
    assert math.isclose(metrics.mean_over_pairs(torch.ones(3, 3) + torch.eye(3)), 1)
