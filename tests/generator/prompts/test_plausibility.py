"""Networks that do not fit the examples that they were made from are told."""

import math
import warnings

import pytest
import torch

from generator.prompts.examples import NO_LABEL, Examples
from generator.prompts.plausibility import FEWEST_LABELLED, loss_on_prompts, usual_loss, warn_of_unusual
from zoo import get_task

SIZE = FEWEST_LABELLED


@pytest.fixture(scope="module")
def task():
    return get_task("digits", hidden=(3,))


def shown(task, size, is_given=(True, True)):
    inputs, targets, _ = task.batch(torch.arange(2 * size).view(2, size), 2)
    return Examples(inputs, targets.clone(), torch.tensor(is_given))


def test_the_loss_is_that_of_each_network_on_its_own_examples(task):
    params, examples = task.init(torch.Generator().manual_seed(0), 2), shown(task, SIZE)
    wanted = [
        task.objective.loss(task.predict(params[i : i + 1], examples.inputs[i]), examples.targets[i : i + 1])
        for i in range(2)
    ]
    torch.testing.assert_close(loss_on_prompts(task, params, examples), torch.cat(wanted))


def test_there_is_none_where_examples_are_few_or_lack_labels_or_are_not_given(task):
    params = task.init(torch.Generator().manual_seed(0), 2)
    assert loss_on_prompts(task, params, shown(task, SIZE - 1)).isnan().all()
    examples = shown(task, SIZE, is_given=(True, False))
    examples.targets[0, 0] = NO_LABEL
    assert loss_on_prompts(task, params, examples).isnan().all()


def test_what_is_usual_is_exceeded_by_two_in_a_hundred_and_unknown_from_a_few_tasks():
    assert usual_loss(torch.arange(101.0)) == pytest.approx(98)
    assert usual_loss(torch.cat((torch.full((50,), math.nan), torch.ones(3)))) is None


def test_only_what_is_unusual_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unusual(torch.tensor([0.5, math.nan]), 1.0)
    with pytest.warns(UserWarning, match="1 of 2 generated networks have a loss of up to 3 .* where 1 is rarely"):
        warn_of_unusual(torch.tensor([3.0, math.nan]), 1.0)
