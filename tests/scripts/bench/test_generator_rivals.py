"""Copies and runs that nobody learned from are told apart, and each stands beside what it was learned from."""

import pytest

from scripts.bench.generator_rivals import rows
from zoo import build_zoo, get_task

DISTANCE, OVERLAP = "distance to the nearest, to held-out runs'", "largest IoU of errors"


def test_noise_takes_copies_away_from_what_they_copy(tmp_path):
    task = get_task("real_table", source="iris", hidden=(3,))
    build_zoo(
        tmp_path / "zoo", task, num_runs=30, num_steps=40, split_fractions={"train": 0.6, "val": 0.1, "test": 0.3}
    )
    found = list(rows(f"{tmp_path}/zoo", noises=(0.0, 0.2), num_components=(), seeds=(0,), number=4, max_runs=8))
    figures = {row.setting["made by"]: row.figures for row in found}
    assert figures["copies"][DISTANCE] == pytest.approx(0, abs=1e-5)
    assert figures["copies"][OVERLAP] == 1
    assert figures["copies with noise of 0.2"][DISTANCE] > 0.05
    held_out = [row for row in found if row.setting["made by"] == "training, held-out runs"]
    assert held_out[0].setting["from runs"] > held_out[1].setting["from runs"] == 8
    assert all(row.figures[DISTANCE] == pytest.approx(1) for row in held_out)
    assert all(row.figures["accuracy, %"] == held_out[0].figures["accuracy, %"] for row in held_out)
