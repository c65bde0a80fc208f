"""Tasks that are held out are never trained on, and rivals see the same runs as the generator."""

import numpy as np
import pytest
import torch

from generator.evaluation.unseen_tasks import unseen_tasks_report
from generator.model.objectives import ObjectiveConfig
from generator.pipeline import ParameterPipeline
from generator.training.config import GeneratorConfig, OptimizationConfig
from generator.training.pairs import PairConfig
from generator.training.tasks import holding_out, with_splits
from generator.training.train import train_generator
from generator.trajectories import Trajectories
from zoo.building.build import build_zoo
from zoo.storage.selection import SelectedZoo
from zoo.tasks.registry import get_task

NUM_PAIRS = 15  # runs 0 to 29 have masks 1 to 30 and runs 1022 - 30 to 1021 their complements


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    masks = [mask for pair in range(1, NUM_PAIRS + 1) for mask in (pair, 1023 - pair)]
    task = get_task("digits_subset", hidden=(4,), masks=masks)
    return build_zoo(tmp_path_factory.mktemp("zoo") / "subset", task, num_runs=60, num_steps=10, snapshot_steps=(0, 10))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("num_held_out", [1, 7, 14])
def test_exactly_so_many_pairs_are_held_out_and_fewer_are_among_them(zoo, num_held_out):
    pairs = zoo.runs["mask_pair"]
    held_out = set(pairs[with_splits(zoo, holding_out([zoo], num_held_out)).split("test")])
    trained = set(pairs[with_splits(zoo, holding_out([zoo], num_held_out)).split("train")])
    assert len(held_out) == num_held_out
    assert held_out.isdisjoint(trained)
    assert len(held_out | trained) == NUM_PAIRS
    assert set(pairs[with_splits(zoo, holding_out([zoo], 1)).split("test")]) <= held_out


def test_a_selection_stays_one_when_tasks_are_held_out(zoo):
    chosen = SelectedZoo(zoo, runs=range(0, 60, 2), keep=zoo.inner_step > 0)
    other = with_splits(chosen, holding_out([chosen], 3))
    runs = np.concatenate([other.split("train"), other.split("test")])
    assert sorted(runs) == list(range(0, 60, 2))
    np.testing.assert_array_equal(other.read([(4, 0)]), zoo.read([(4, 1)]))
    assert set(chosen.spec.splits.fractions) == {"train", "val", "test"}


def test_something_must_be_left_on_each_side(zoo):
    with pytest.raises(ValueError, match="from 1 to 14"):
        holding_out([zoo], NUM_PAIRS)
    with pytest.raises(ValueError, match="num_validation_starts=0"):
        GeneratorConfig(num_held_out=3)


def test_a_pipeline_knows_what_its_training_held_out(zoo, tmp_path):
    config = GeneratorConfig(
        task_bits="mask",
        num_task_bits=10,
        num_held_out=5,
        num_validation_starts=0,
        model={"width": 16, "num_blocks": 1, "num_heads": 2, "use_start": False},
        pairs=PairConfig(batch_size=4, start_share=0.0),
        objective=ObjectiveConfig(function_examples=8),
        optimization=OptimizationConfig(num_steps=2, num_epochs=1),
    )
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    pipe = train_generator([zoo], config, out=tmp_path, trainer_options=quiet)
    assert pipe.splits == holding_out([zoo], 5)
    loaded = ParameterPipeline.from_pretrained(tmp_path)
    assert loaded.splits == holding_out([zoo], 5)
    report = unseen_tasks_report(loaded, zoo)
    assert list(report) == ["unseen tasks", "held-out runs"]
    seen: list[Trajectories] = []
    unseen_tasks_report(loaded, zoo, rivals=lambda train: seen.append(train) or {})
    assert set(seen[0].runs.tolist()) == set(with_splits(zoo, loaded.splits).split("train").tolist())
    assert all(row["num_tasks"] == 10 and 0 <= row["worst"] <= row["mean"] <= 1 for row in report.values())
