import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from generator.tabular.readout import solve_readout


def problem(num_rows=60, num_features=5, num_classes=3):
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, num_rows, num_features, generator=rng, dtype=torch.float64)
    scores = hidden @ torch.randn(num_features, num_classes, generator=rng, dtype=torch.float64)
    labels = (scores + torch.randn(scores.shape, generator=rng, dtype=torch.float64)).argmax(-1)
    return hidden, labels, torch.nn.functional.one_hot(labels, num_classes).double()


def loss(hidden, labels, coefficients, penalty):
    weights = hidden.mT @ coefficients
    cross_entropy = torch.nn.functional.cross_entropy((hidden @ weights)[0], labels[0], reduction="sum")
    return (cross_entropy + penalty / 2 * weights.square().sum()).item()


def test_it_is_logistic_regression():
    hidden, labels, targets = problem()
    penalty = torch.full((1, 1, 1), 0.7, dtype=torch.float64)
    coefficients = solve_readout(hidden @ hidden.mT, targets, torch.zeros(1, 1, 3), penalty, torch.ones(400))
    reference = LogisticRegression(C=1 / 0.7, fit_intercept=False, tol=1e-10, max_iter=1000)
    reference.fit(hidden[0].numpy(), labels[0].numpy())
    np.testing.assert_allclose((hidden.mT @ coefficients)[0].T.numpy(), reference.coef_, atol=1e-4)


def test_no_step_makes_it_worse():
    hidden, labels, targets = problem()
    losses = [
        loss(
            hidden,
            labels,
            solve_readout(
                hidden @ hidden.mT,
                targets,
                torch.zeros(1, 1, 3),
                torch.full((1, 1, 1), 0.01, dtype=torch.float64),
                torch.ones(count),
            ),
            0.01,
        )
        for count in range(8)
    ]
    assert losses == sorted(losses, reverse=True)
