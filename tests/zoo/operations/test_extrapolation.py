import numpy as np
import pytest
import torch

from zoo.operations import extrapolate

STEPS = (0, 10, 25, 70)


@pytest.fixture
def trajectory():
    return torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def plain(trajectory, steps, to_step):
    """RELEX (arXiv 2605.21468) of one tensor by NumPy's SVD and polynomial fit."""
    path = (trajectory[1:] - trajectory[0]).numpy()
    _, _, right = np.linalg.svd(path, full_matrices=False)
    slope, intercept = np.polyfit(steps[1:], path @ right[0], 1)
    return trajectory[0] + torch.from_numpy((intercept + slope * to_step) * right[0])


def test_it_is_the_published_fit_tensor_by_tensor(trajectory):
    torch.testing.assert_close(extrapolate(trajectory, STEPS, 200), plain(trajectory, STEPS, 200))
    parts = [plain(trajectory[:, :4], STEPS, 200), plain(trajectory[:, 4:], STEPS, 200)]
    torch.testing.assert_close(extrapolate(trajectory, STEPS, 200, (4, 5)), torch.cat(parts))


def test_a_straight_path_is_followed_exactly():
    start, direction = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    line = torch.stack([start + step * direction for step in STEPS])
    torch.testing.assert_close(extrapolate(line, STEPS, 1000), start + 1000 * direction)
    torch.testing.assert_close(extrapolate(line, STEPS, 40, (2, 4)), start + 40 * direction)


def test_a_network_that_does_not_move_stays():
    still = torch.ones(4, 3)
    assert torch.equal(extrapolate(still, STEPS, 500), still[0])


def test_runs_are_continued_at_once(trajectory):
    both = torch.stack([trajectory, 2 * trajectory])
    torch.testing.assert_close(extrapolate(both, STEPS, 90)[1], extrapolate(2 * trajectory, STEPS, 90))


@pytest.mark.parametrize(("steps", "kept"), [((0, 10), 2), ((0, 25, 10, 70), 4), ((0, 1, 2), 4)])
def test_what_makes_no_line_is_refused(trajectory, steps, kept):
    with pytest.raises(ValueError, match=r"S of at least 3|must increase, got"):
        extrapolate(trajectory[:kept], steps, 100)
