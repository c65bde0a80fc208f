"""Tasks that are held out are never trained on, and baselines see the same runs as the generator."""

import numpy as np
import pytest
import torch

from generator.evaluation.task_baselines import NearestTask, TaskRidge, bit_features
from generator.evaluation.testbed import METRIC
from generator.evaluation.unseen_tasks import unseen_tasks_report
from generator.model.objectives import ObjectiveConfig
from generator.pipeline import ParameterPipeline
from generator.training.held_out_tasks import holding_out, with_splits
from generator.training.module import OptimizationConfig
from generator.training.train import GeneratorConfig, train_generator
from generator.trajectories import PairConfig, Trajectories
from zoo.building.build import build_zoo
from zoo.networks.metrics import euclidean_distances
from zoo.networks.symmetry import apply, sample
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
    pipe.save_pretrained(tmp_path / "pipeline")
    loaded = ParameterPipeline.from_pretrained(tmp_path / "pipeline")
    assert loaded.splits == holding_out([zoo], 5)
    report = unseen_tasks_report(loaded, zoo)
    assert list(report) == ["unseen tasks", "matched ridge", "retrieval", "held-out runs"]
    assert all(row["num_tasks"] == 10 and 0 <= row["worst"] <= row["mean"] <= 1 for row in report.values())


def linear_runs(num_runs: int = 200) -> Trajectories:
    """Networks that are a linear map of their bits, with permuted units."""
    layout = get_task("digits_subset", hidden=(4,)).layout
    bits = (torch.rand(num_runs, 10, generator=rng()) < 0.5).float()
    networks = bit_features(bits).float() @ torch.randn(11, layout.num_params, generator=rng())
    networks += 8 * torch.randn(layout.num_params, generator=torch.Generator().manual_seed(1))
    networks = apply(layout, networks, sample(layout, num_runs, rng()))
    return Trajectories(layout, networks[:, None], {METRIC: torch.full((num_runs, 1), 0.5)}, task_bits=bits)


def test_ridge_finds_a_linear_map_behind_permuted_units():
    runs = linear_runs()
    train, unseen = (
        Trajectories(runs.layout, runs.read(rows, rows * 0)[:, None], {METRIC: torch.full((len(rows), 1), 0.5)},
                     task_bits=runs.task_bits[rows])
        for rows in (torch.arange(150), torch.arange(150, 200))
    )  # fmt: skip
    rows = torch.arange(len(unseen))
    predicted = TaskRidge(train, 0.5)(unseen.task_bits, torch.full((len(unseen),), 0.5), rng())
    from zoo.networks.alignment import align

    matched = align(runs.layout, unseen.read(rows, rows * 0), predicted).params
    assert (matched - predicted).norm() < 0.05 * predicted.norm()


def test_retrieval_takes_the_task_with_the_fewest_other_bits():
    runs = linear_runs(50)
    asked = runs.task_bits[[3, 8]].clone()
    asked[:, 0] = 1 - asked[:, 0]
    found = NearestTask(runs)(asked, torch.full((2,), 0.5), rng())
    networks = runs.read(torch.arange(50), torch.zeros(50, dtype=torch.long))
    which = euclidean_distances(found, networks).argmin(1)
    assert np.all((runs.task_bits[which] != asked).sum(1).numpy() <= 1)
