import math

import pytest
import torch
from torch import nn

from zoo import Zoo, build_zoo, get_task
from zoo.building.hyperparameters import make_optimizer
from zoo.tasks.cartpole import CartPole
from zoo.tasks.datasets import Dataset, Split
from zoo.tasks.policies import PolicyTask, leave_one_out_advantages
from zoo.tasks.task import Batch
from zoo.training.population import train_population

HORIZON = 60
SEEDS = [3, 2**61 + 1, 8]


@pytest.fixture(scope="module", params=["mlp", "module"])
def task(request):
    """The same policies through the hand-written passes of MLPs, and through vmap."""
    task = get_task("cartpole", hidden=(5,), activation="tanh", horizon=HORIZON)
    if request.param == "mlp":
        return task
    return PolicyTask("own", task.dataset, make_own_policy, task.environment)


def make_own_policy():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def play(task, params, state, draws):
    """One episode of one policy, step by step: states, actions."""
    states, actions = [], []
    for draw in draws:
        chance = task.predict(params[None], state[None])[0, 0].softmax(-1)[1]
        actions.append(int(draw >= 1 - chance))
        states.append(state)
        state = task.environment.advance(state, torch.tensor(actions[-1]))
        if task.environment.has_failed(state):
            break
    return torch.stack(states), torch.tensor(actions)


def test_returns_are_the_steps_that_episodes_last(task):
    params = 3 * task.init_runs(SEEDS)
    data = task.dataset.val
    metrics = task.evaluate(params, "val")
    assert set(metrics) == set(task.metric_names)
    for i in range(len(SEEDS)):
        lengths = [len(play(task, params[i], *episode)[1]) for episode in zip(data.inputs, data.targets, strict=True)]
        assert metrics["return"][i].item() == pytest.approx(sum(lengths) / len(lengths))
        assert metrics["error"][i].item() == pytest.approx(sum(n < HORIZON for n in lengths) / len(lengths))


def test_evaluation_does_not_depend_on_what_is_run_together(task):
    params = task.init_runs(SEEDS)
    whole, alone = (task.evaluate(params, "test", budget) for budget in (None, 1))
    assert torch.equal(whole["return"], alone["return"])
    assert torch.equal(whole["return"][1:2], task.evaluate(params[1:2], "test")["return"])


@pytest.mark.parametrize("shared", [True, False])
def test_gradient_is_reinforces(task, shared):
    params = 3 * task.init_runs(SEEDS)
    indices = torch.arange(6) if shared else torch.arange(18).view(3, 6)
    batch = task.batch(indices, len(params))
    losses, grads = task.loss_and_grad(params, batch)
    for i in range(len(SEEDS)):
        inputs, targets = (value if shared else value[i] for value in batch[:2])
        episodes = [play(task, params[i], *episode) for episode in zip(inputs, targets, strict=True)]
        lengths = torch.tensor([len(actions) for _, actions in episodes])
        leaf = params[i].clone().requires_grad_()
        total = 0.0
        for b, (states, actions) in enumerate(episodes):
            steps = torch.arange(len(actions))
            others = torch.cat((lengths[:b], lengths[b + 1 :]))
            baseline = (others - steps[:, None]).clamp(min=0).float().mean(1)
            log_probs = task.predict(leaf[None], states)[0].log_softmax(-1)[steps, actions]
            total = total - (log_probs * (lengths[b] - steps - baseline)).sum() / len(episodes) / HORIZON
        torch.testing.assert_close(losses[i], 1 - lengths.float().mean() / HORIZON)
        torch.testing.assert_close(grads[i], torch.autograd.grad(total, leaf)[0], rtol=1e-3, atol=1e-6)


def test_loss_is_differentiable(task):
    params = task.init_runs(SEEDS)
    batch = task.batch(torch.arange(6), len(params))
    leaf = params.clone().requires_grad_()
    losses = task.loss(leaf, batch)
    expected, grads = task.loss_and_grad(params, batch)
    torch.testing.assert_close(losses.detach(), expected)
    torch.testing.assert_close(torch.autograd.grad(losses.sum(), leaf)[0], grads, rtol=1e-3, atol=1e-6)


class Coin:
    """Action 0 ends the episode."""

    name = "coin"
    num_actions = 2

    def advance(self, states, actions):
        return actions[..., None].float()

    def has_failed(self, states):
        return states[..., 0] == 0

    def sample_states(self, num_states, rng):
        return torch.ones(num_states, 1)


def test_gradient_is_unbiased():
    """Return of two steps at most is 1 + p for a policy that takes action 1 with probability p."""
    count = 20_000
    draws = torch.rand(count, 3, 2, generator=torch.Generator().manual_seed(0))
    episodes = Split(torch.ones(8, 1), draws[:8, 0])
    task = PolicyTask(
        "coin",
        Dataset("coin", episodes, episodes, episodes, num_classes=0, data_hash=""),
        lambda: nn.Linear(1, 2, bias=False),
        Coin(),
    )
    params = torch.tensor([[0.3, -0.4]]).expand(count, -1)
    losses, grads = task.loss_and_grad(params, Batch(torch.ones(count, 3, 1), draws))
    chance = 1 / (1 + math.exp(0.7))
    slope = chance * (1 - chance) / 2  # of the expected loss (1 - p) / 2 by the first logit
    error = grads[:, 0].std().item() / count**0.5
    assert losses.mean().item() == pytest.approx((1 - chance) / 2, abs=0.01)
    assert grads[:, 0].mean().item() == pytest.approx(slope, abs=4 * error)
    assert error < 0.02 * slope


def test_an_episode_alone_has_no_baseline():
    assert leave_one_out_advantages(torch.tensor([[2.0]]), 3).flatten().tolist() == [2, 1, 0]
    assert leave_one_out_advantages(torch.tensor([[2.0, 1.0]]), 2).tolist() == [[[1, -1], [1, 0]]]


def test_environments_of_ones_own_are_told_apart():
    class Heavier(CartPole):
        def advance(self, states, actions):
            return super().advance(states, actions) * 0.9

    data = get_task("cartpole", horizon=5).dataset
    first, again, other = (
        PolicyTask("own", data, make_own_policy, environment).description
        for environment in (CartPole(), CartPole(), Heavier())
    )
    assert first == again
    assert first != other


def test_policies_learn_to_balance():
    task = get_task("cartpole", horizon=100)
    optimizer, _ = make_optimizer({"name": "adam", "lr": 0.03}, SEEDS)
    first, last = train_population(task, optimizer, SEEDS, num_steps=40, batch_size=8, snapshot_steps=(0, 40))
    assert task.evaluate(first.params)["return"].max() < 40
    assert task.evaluate(last.params)["return"].min() > 80


def test_a_zoo_of_policies(tmp_path):
    task = get_task("cartpole", hidden=(4,), horizon=30)
    build_zoo(tmp_path / "zoo", task, num_runs=5, num_steps=3, batch_size=4, block_size=2)
    zoo = Zoo.open(tmp_path / "zoo")
    assert zoo.verify() == []
    assert sorted(zoo.spec.metric_names) == sorted(
        f"{s}_{m}" for s in ("train", "val", "test") for m in ("return", "error")
    )
    again = get_task(**zoo.task_config)
    params = torch.from_numpy(zoo.params[:, -1])
    torch.testing.assert_close(
        again.evaluate(params, "val")["return"], torch.from_numpy(zoo.metric("val_return")[:, -1])
    )


def test_policies_that_torch_func_cannot_run_learn_one_after_another():
    class Ring(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.rnn(x[:, None])[0][:, 0])

    data = get_task("cartpole", horizon=20).dataset
    with pytest.warns(UserWarning, match="one after another"):
        task = PolicyTask("own", data, Ring, CartPole())
    params, batch = task.init_runs(SEEDS), task.batch(torch.arange(6), 3)
    leaf = params.clone().requires_grad_()
    expected = torch.autograd.grad(task.loss(leaf, batch).sum(), leaf)[0]
    torch.testing.assert_close(task.loss_and_grad(params, batch)[1], expected, rtol=1e-3, atol=1e-6)


def test_compiling_is_not_tried():
    task = get_task("cartpole", hidden=(4,), horizon=20)
    optimizer, _ = make_optimizer({"name": "adam", "lr": 0.01}, SEEDS)
    plain, asked = (
        list(train_population(task, optimizer, SEEDS, num_steps=2, batch_size=4, compile=compile))[-1].params
        for compile in (False, True)
    )
    assert torch.equal(plain, asked)


def test_policies_are_compared_in_states_in_which_episodes_go_on(task):
    states, targets, _ = task.draw_examples(500, torch.Generator().manual_seed(0))
    assert states.shape == (500, 4)
    assert targets.shape == (500, 2)
    assert task.environment.has_failed(states).float().mean() < 0.05
    assert torch.equal(states, task.draw_examples(500, torch.Generator().manual_seed(0)).inputs)


def test_no_horizon_is_refused():
    with pytest.raises(ValueError, match="horizon must be at least 1 step, got 0"):
        get_task("cartpole", horizon=0)
