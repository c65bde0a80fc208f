import pytest
import torch

from zoo.operations import average, exponential_average, greedy_soup


@pytest.fixture
def networks():
    return torch.randn(5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_averages_are_means_of_each_number(networks):
    weights = [1.0, 0.0, 2.0, 0.5, 4.0]
    for p in range(11):
        uniform = sum(networks[n, p].item() for n in range(5)) / 5
        weighted = sum(w * networks[n, p].item() for n, w in enumerate(weights)) / sum(weights)
        assert average(networks)[p].item() == pytest.approx(uniform, rel=1e-12)
        assert average(networks, weights)[p].item() == pytest.approx(weighted, rel=1e-12)


def test_the_exponential_average_is_its_recursion(networks):
    kept = networks[0]
    for network in networks[1:]:
        kept = 0.7 * kept + 0.3 * network
    torch.testing.assert_close(exponential_average(networks, 0.7), kept, rtol=1e-12, atol=0)
    assert torch.equal(exponential_average(networks, 0.0), networks[-1])


def test_the_soup_keeps_what_does_not_harm():
    """Losses are distances from zero: the second network undoes the first, the third would move away."""
    networks = torch.tensor([[1.0, 0.0], [-1.1, 0.0], [0.0, 3.0]])
    soup = greedy_soup(networks, lambda params: params.norm(dim=1))
    assert soup.members == (0, 1)
    torch.testing.assert_close(soup.params, networks[:2].mean(0))


def test_a_soup_of_networks_without_a_loss_is_refused(networks):
    for losses in (torch.full((len(networks),), torch.nan), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="evaluate must give a loss for each of"):
            greedy_soup(networks, lambda _, losses=losses: losses)


def test_a_soup_is_never_worse_than_its_best_network(networks):
    def losses(params):
        return (params - 0.3).square().sum(1)

    soup = greedy_soup(networks, losses)
    assert losses(soup.params[None])[0] <= losses(networks).min()
    torch.testing.assert_close(soup.params, networks[list(soup.members)].mean(0))


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 1.0, 1.0, 1.0, -1.0], [0.0] * 5, [float("nan")] * 5, ["a"] * 5])
def test_weights_that_make_no_average_are_refused(networks, weights):
    with pytest.raises(ValueError, match="weights must be"):
        average(networks, weights)


def test_decay_lies_between_nothing_and_all(networks):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.0"):
        exponential_average(networks, 1.0)
