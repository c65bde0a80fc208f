"""Each method against its formula, written out number by number in plain Python."""

import math

import pytest
import torch

from zoo.operations import compress, dare, drop_and_rescale, task_arithmetic, task_vectors, ties


@pytest.fixture
def networks():
    return torch.randn(4, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def base():
    return torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plain_ties(networks, base, density, scale):
    """Algorithm 1 of arXiv 2306.01708."""
    num, size = len(networks), len(base)
    deltas = [[networks[n][p] - base[p] for p in range(size)] for n in range(num)]
    for delta in deltas:  # trim
        largest = sorted(range(size), key=lambda p: -abs(delta[p]))[: round(density * size)]
        for p in range(size):
            delta[p] = delta[p] if p in largest else 0.0
    merged = []
    for p in range(size):
        positive = sum(delta[p] for delta in deltas if delta[p] > 0)  # elect
        negative = -sum(delta[p] for delta in deltas if delta[p] < 0)
        sign = 1 if positive > negative else -1
        agreeing = [delta[p] for delta in deltas if delta[p] * sign > 0]  # disjoint merge
        merged.append(base[p] + scale * (sum(agreeing) / len(agreeing) if agreeing else 0.0))
    return merged


@pytest.mark.parametrize(("density", "scale"), [(0.2, 1.0), (0.5, 0.7), (1.0, 1.0)])
def test_ties_is_its_algorithm(networks, base, density, scale):
    expected = plain_ties(networks.tolist(), base.tolist(), density, scale)
    torch.testing.assert_close(
        ties(networks, base, density, scale), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_entries_that_cancel_leave_the_base_as_it_is():
    base = torch.tensor([1.0, 1.0])
    networks = torch.tensor([[2.0, 3.0], [0.0, 3.0]])
    assert ties(networks, base, density=1.0).tolist() == [1.0, 3.0]


def test_one_network_is_found_again(networks, base):
    torch.testing.assert_close(task_arithmetic(networks[:1], base, 1.0), networks[0])
    torch.testing.assert_close(ties(networks[:1], base, 1.0, 1.0), networks[0])


def test_task_arithmetic_is_a_sum(networks, base):
    expected = [base[p] + 0.4 * sum(networks[n][p] - base[p] for n in range(4)) for p in range(40)]
    torch.testing.assert_close(task_arithmetic(networks, base, 0.4), torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_dare_drops_and_rescales_by_its_own_draws(networks, base):
    kept = torch.rand(4, 40, generator=torch.Generator().manual_seed(7)) >= 0.9
    expected = []
    for p in range(40):
        total = sum((networks[n][p] - base[p]).item() / 0.1 for n in range(4) if kept[n, p])
        expected.append(base[p].item() + 0.4 * total)
    got = dare(networks, base, torch.Generator().manual_seed(7))
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_dropping_keeps_the_expectation():
    """60,000 draws of a sum of 1 / .2 with probability .2: four standard errors are .033."""
    vectors = torch.ones(60_000)
    dropped = drop_and_rescale(vectors, 0.8, torch.Generator().manual_seed(0))
    assert sorted(set(dropped.tolist())) == [0.0, pytest.approx(5.0)]
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.033)
    assert torch.equal(drop_and_rescale(vectors, 0.0, torch.Generator()), vectors)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n, b: ties(n, b, density=0.0), r"density must be in \(0, 1\]"),
        (lambda n, b: dare(n, b, torch.Generator(), drop_rate=1.0), r"drop_rate must be in \[0, 1\)"),
        (lambda n, b: task_vectors(n, b[:3]), r"networks must be \(N, P\) and their base \(P,\), got"),
        (lambda n, b: task_vectors(n[0], b), r"networks must be \(N, P\)"),
        (lambda n, b: ties(n.index_fill(1, torch.tensor(1), math.nan), b), "must be finite, got NaN or infinity"),
        (lambda n, b: compress((n[0] - b) / 0), "must be finite"),
    ],
)
def test_bad_input_is_named(networks, base, call, message):
    with pytest.raises(ValueError, match=message):
        call(networks, base)
