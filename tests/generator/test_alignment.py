import pytest
import torch

from generator.alignment import HIGHEST_LOSS, Alignment, measure_alignment, prompt_grid
from generator.trajectories import Trajectories
from tests.ambient import AMBIENTS
from zoo.tasks.registry import get_task


@pytest.fixture(scope="module")
def task():
    return get_task("digits", hidden=(4,))


def runs_with(task, metric, values):
    """Runs (R, S) of which only a metric matters."""
    return Trajectories(task.layout, torch.zeros(*values.shape, task.layout.num_params), {metric: values})


LOSSES = torch.tensor([[2.5, 1.0, 0.2], [2.4, 0.3, 0.4], [2.6, 0.9, torch.nan]])


def test_losses_are_asked_for_from_the_median_floor_upwards(task):
    prompts = prompt_grid(runs_with(task, "val_loss", LOSSES), num_prompts=5)
    assert prompts[0].item() == pytest.approx(0.3)
    assert prompts[-1].item() == pytest.approx(HIGHEST_LOSS)
    assert (prompts.log().diff() - prompts.log().diff()[0]).abs().max() < 1e-4


@pytest.mark.parametrize("name", AMBIENTS)
def test_the_same_is_asked_for_whatever_a_program_has_set_for_torch(task, name):
    runs = runs_with(task, "val_loss", LOSSES)
    with AMBIENTS[name]():
        prompts = prompt_grid(runs)
    assert torch.equal(prompts, prompt_grid(runs))


def test_no_prompt_is_worse_than_an_initial_network(task):
    """As with two classes, whose initial loss is far below that of ten."""
    prompts = prompt_grid(runs_with(task, "val_loss", LOSSES / 4), num_prompts=5)
    assert prompts[-1].item() == pytest.approx(2.5 / 4)
    errors = prompt_grid(runs_with(task, "val_error", torch.tensor([[0.9, 0.1, 0.0]])), "val_error", num_prompts=5)
    assert errors[-1].item() == pytest.approx(0.9)
    assert errors[0].item() > 0


def test_returns_are_asked_for_evenly_from_the_best_downwards(task):
    returns = torch.tensor([[20.0, 100.0, 500.0], [22.0, 480.0, 470.0], [18.0, 30.0, 90.0]])
    prompts = prompt_grid(runs_with(task, "val_return", returns), "val_return", num_prompts=5)
    torch.testing.assert_close(prompts, torch.tensor([480.0, 365, 250, 135, 20]))


def test_alignment_of_an_oracle_is_perfect(task):
    """Networks whose own loss is the prompt: found by scaling one network's logits."""
    network = task.init(torch.Generator().manual_seed(0), 1)
    factors = torch.linspace(0.1, 20, 50)
    named = task.layout.views(network.repeat(50, 1))
    named["layers.1.weight"] *= factors[:, None, None]
    bank = torch.cat([named[slot.name].flatten(1) for slot in task.layout], dim=1)
    losses = task.evaluate(bank, "val")["loss"]
    prompts = losses.sort().values[[0, 20, 40]]

    def retrieve(starts, asked):
        return bank[(losses - asked[:, None]).abs().argmin(1)]

    alignment = measure_alignment(retrieve, task, network.repeat(2, 1), prompts)
    assert alignment.r2_log == pytest.approx(1.0)
    assert alignment.spearman == pytest.approx(1.0)
    assert alignment.val["loss"].shape == (2, 3)


def test_returns_are_compared_as_they_are():
    prompts = torch.tensor([300.0, 200.0, 100.0])
    achieved = torch.tensor([[300.0, 200.0, 100.0], [300.0, 200.0, 150.0]])
    alignment = Alignment(prompts, {"return": achieved}, {"return": achieved}, "return")
    assert alignment.r2 == pytest.approx(1 - 50**2 / (4 * 100**2))
    losses = Alignment(prompts, {"loss": achieved}, {"loss": achieved}, "loss")
    assert losses.r2 == losses.r2_log
