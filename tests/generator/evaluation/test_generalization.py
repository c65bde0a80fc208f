import math

import pytest
import torch

from generator.evaluation.generalization import Generalization, RealCurves

NAN = math.nan
CURVES = RealCurves(
    torch.tensor([[2.0, 1.0, 0.25, 0.5], [2.0, 0.5, NAN, NAN]]),
    torch.tensor([[0.1, 0.5, 0.9, 0.2], [0.1, 0.7, NAN, NAN]]),
)


@pytest.mark.parametrize(
    ("train_loss", "accuracy"),
    [
        (2.0, 0.1),
        (5.0, 0.1),  # above all: the initial networks
        (1.0, (0.5 + 0.4) / 2),  # the second run is half way in the logarithm
        (0.5, (0.7 + 0.7) / 2),  # the first run passes it on the way down, its later rise does not count
        (0.25, 0.9),  # the second run never gets there
        (0.01, (0.9 + 0.7) / 2),  # no run gets there: their lowest
        (NAN, 0.1),
    ],
)
def test_accuracy_of_real_runs_at_a_training_loss(train_loss, accuracy):
    assert CURVES.accuracy_at(torch.tensor([train_loss])).item() == pytest.approx(accuracy)


def test_the_gap_is_what_is_missing_to_real_runs():
    losses = torch.tensor([[0.25, 2.0], [0.25, 2.0], [0.25, 2.0]])
    result = Generalization.of(CURVES, losses, torch.tensor([[0.2, 0.8], [0.1, 0.9], [0.0, 1.0]]))
    torch.testing.assert_close(result.gap, torch.tensor([[0.1, -0.1], [0.0, 0.0], [-0.1, 0.1]]))
