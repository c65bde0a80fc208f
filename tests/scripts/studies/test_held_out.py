"""Numbers of the second layer, chosen by all families but one."""

import math

import pytest

from learned_opt import load_pretrained
from scripts.studies.optimizers.outside import held_out
from scripts.studies.optimizers.outside.held_out import NUMBERS, Numbers
from scripts.studies.optimizers.outside.methods import outside_rivals
from scripts.studies.optimizers.outside.tasks import OutsideTask


def test_the_grid_holds_what_ships_and_what_it_began_from():
    base = load_pretrained("mulo-norm")
    assert Numbers().of(base).hash == load_pretrained("mulo-wide").hash
    assert {Numbers(), Numbers(0.0, None, None)} <= set(NUMBERS)
    begun = Numbers(0.0, None, None).of(base)
    assert begun.theta[: len(base.theta)].equal(base.theta)
    assert not begun.theta[len(base.theta) :].any()
    assert len({str(numbers) for numbers in NUMBERS}) == len({numbers.of(base).hash for numbers in NUMBERS}) == 12


def test_a_family_has_no_say_in_what_is_chosen_for_it(tmp_path, monkeypatch):
    """Of two families one is better by far with one choice, the other a little with another."""
    one, other = NUMBERS[0], NUMBERS[1]
    tasks = [OutsideTask(name, family, "dev", lambda: None) for name, family in (("a", "x"), ("b", "x"), ("c", "y"))]
    losses = dict.fromkeys(map(str, NUMBERS), 3.0)
    of_family = {"x": losses | {str(one): 0.1, str(other): 2.0}, "y": losses | {str(one): 2.0, str(other): 1.8}}

    def train(task, method, rate, num_steps, seed):
        loss = next((loss for name, loss in of_family[task.family].items() if f", {name}, T" in method.name), 1.0)
        return held_out.Run(2.0, {num_steps: loss * 2**seed if "mulo" in method.name else loss}, 0.0)

    monkeypatch.setattr("scripts.studies.optimizers.outside.training.train", train)
    trainings = held_out.Trainings(tmp_path, (0, 1))
    adamw = next(method for method in outside_rivals() if method.name == "AdamW")
    rows = list(held_out.held_out_rows(trainings, tasks, load_pretrained("mulo-norm"), adamw))
    families = {row.setting["family left out"]: row for row in rows if row.question == held_out.FAMILIES}
    assert families["x"].setting["chosen by the others"] == str(other)
    assert families["y"].setting["chosen by the others"] == str(one)
    assert math.isclose(families["x"].figures["geometric mean"], 2.0 * 2**0.5, rel_tol=1e-3)
    assert families["x"].spread["geometric mean"] == pytest.approx((2.0, 4.0), rel=1e-3)
    whole = families["mean of the families"].figures
    assert math.isclose(whole["geometric mean"], 2.0 * 2**0.5, rel_tol=1e-3)
    assert whole["tasks"] == 2
    assert [row.figures[str(one)] for row in rows if row.question == held_out.GRID] == [0.1, 0.1, 2.0]
