import numpy as np
import pytest
import torch

from zoo.tasks.cartpole import MAX_ANGLE, MAX_POSITION, CartPole, cartpole_episodes

gymnasium = pytest.importorskip("gymnasium")


def test_states_follow_each_other_as_in_gymnasium():
    env = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    starts = rng.uniform(-1, 1, (200, 4)) * [2.5, 3, 0.22, 3]
    actions = rng.integers(2, size=200)
    expected, failed = [], []
    for start, action in zip(starts, actions, strict=True):
        env.state, env.steps_beyond_terminated = start, None
        _, reward, is_over, *_ = env.step(action)
        assert reward == 1
        expected.append(np.array(env.state))
        failed.append(is_over)
    ours = CartPole().advance(torch.from_numpy(starts), torch.from_numpy(actions))
    torch.testing.assert_close(ours, torch.from_numpy(np.array(expected)))
    assert CartPole().has_failed(ours).tolist() == failed
    assert 0 < sum(failed) < len(failed)


def test_limits_are_those_of_gymnasium():
    env = gymnasium.make("CartPole-v1").unwrapped
    assert pytest.approx(env.x_threshold) == MAX_POSITION
    assert pytest.approx(env.theta_threshold_radians) == MAX_ANGLE
    assert gymnasium.spec("CartPole-v1").max_episode_steps == 500


def test_episodes_begin_near_rest_and_follow_from_the_seed():
    states, draws = cartpole_episodes(300, 20, np.random.RandomState(1))
    assert states.shape == (300, 4)
    assert draws.shape == (300, 20)
    assert np.abs(states).max() <= 0.05
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_array_equal(draws, cartpole_episodes(300, 20, np.random.RandomState(1))[1])
