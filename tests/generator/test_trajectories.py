import numpy as np
import pytest
import torch

from generator import trajectories
from generator.tokens.normalizer import ParamNormalizer
from generator.tokens.windows import from_windows, sinusoids, to_windows
from generator.training.pairs import PairConfig, batch_rng, draw_pairs
from generator.trajectories import Trajectories
from zoo.building.build import build_zoo
from zoo.tasks.registry import get_task


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "subset"
    task = get_task("digits_subset", hidden=(4,))
    return build_zoo(path, task, num_runs=60, num_steps=10, snapshot_steps=(0, 5, 10), block_size=16)


def read(zoo, **options):
    return Trajectories.from_zoo(zoo, "train", ("val_error", "val_loss"), **options)


def test_snapshots_in_memory_are_those_on_disk(zoo):
    held, streamed = read(zoo), read(zoo, memory_budget=0)
    rows, snapshots = torch.tensor([0, 7, 3]), torch.tensor([2, 0, 1])
    assert torch.equal(held.read(rows, snapshots), streamed.read(rows, snapshots))
    assert torch.equal(held.read(rows, snapshots)[0], torch.from_numpy(zoo.params[int(held.runs[0]), 2]))
    assert set(held.runs.tolist()) == set(zoo.split("train").tolist())


def test_statistics_of_parts_are_those_of_all(zoo, monkeypatch):
    runs, rng = read(zoo, memory_budget=0), torch.Generator()
    whole = ParamNormalizer.fit("neuron", [runs.layout], [runs.sample(50, rng.manual_seed(0))])
    monkeypatch.setattr(trajectories, "_NUMBERS_PER_PART", 7 * runs.layout.num_params)
    parts = [*runs.sample_in_parts(50, rng.manual_seed(0))]
    assert [len(part) for part in parts] == [7] * 7 + [1]
    assert torch.equal(torch.cat(parts), runs.sample(50, rng.manual_seed(0)))
    streamed = ParamNormalizer.fit("neuron", [runs.layout], [iter(parts)])
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(streamed.state_dict()[name], value)


def test_metrics_belong_to_the_targets(zoo):
    runs = read(zoo)
    batch = draw_pairs(runs, PairConfig(batch_size=16, prompt_dropout=0.0, metric_dropout=0.0), batch_rng(0, 0))
    task = get_task("digits_subset", hidden=(4,)).for_runs(batch.runs.tolist())
    torch.testing.assert_close(batch.prompt.target[:, 1], task.evaluate(batch.target, "val")["loss"])
    torch.testing.assert_close(batch.prompt.target[:, 0], task.evaluate(batch.target, "val")["error"])


def test_task_bits_are_the_bits_of_the_mask(zoo):
    runs = read(zoo, mask_column="mask", num_task_bits=10)
    masks = (runs.task_bits.long() << torch.arange(10)).sum(1)
    assert np.array_equal(masks.numpy(), zoo.runs["mask"][runs.runs.numpy()])


def test_dropout_leaves_null_prompts(zoo):
    runs = read(zoo, mask_column="mask", num_task_bits=10)
    prompt = draw_pairs(runs, PairConfig(batch_size=200, prompt_dropout=0.5), batch_rng(0, 0)).prompt
    null = prompt.target.isnan().all(1)
    assert 60 < null.sum() < 160
    assert prompt.task_bits[prompt.task_bits.isnan().any(1)].isnan().all()


def test_permuted_pairs_compute_what_the_pairs_computed(zoo):
    runs = read(zoo)
    plain, permuted = (
        draw_pairs(runs, PairConfig(batch_size=8, permute_units=permute), batch_rng(0, 0)) for permute in (False, True)
    )
    assert not torch.equal(plain.start, permuted.start)
    task = get_task("digits_subset", hidden=(4,))
    inputs = task.dataset.val.inputs
    for before, after in ((plain.start, permuted.start), (plain.target, permuted.target)):
        torch.testing.assert_close(task.predict(before, inputs), task.predict(after, inputs), rtol=1e-4, atol=1e-4)
    moved = (plain.target - plain.start).norm(dim=1)
    torch.testing.assert_close((permuted.target - permuted.start).norm(dim=1), moved)


def test_ranges_and_floors(zoo):
    runs = read(zoo)
    losses = torch.from_numpy(zoo.metric("val_loss")[runs.runs.numpy()])
    known = runs.range_of("val_loss")
    assert known.low == losses.min().item()
    assert losses.median().item() in known
    assert runs.best("val_loss") == pytest.approx(losses.min(1).values.median().item(), rel=0.05)


def test_a_zoo_without_runs_is_refused(zoo):
    with pytest.raises(ValueError, match="has no run with 2 snapshots"):
        Trajectories.from_zoo(zoo, "train", ("val_loss",), max_runs=0)


@pytest.mark.parametrize(("length", "window"), [(10, 4), (8, 4), (3, 5), (1, 1)])
def test_windows_are_put_together_again(length, window):
    tokens = torch.randn(3, length, 2)
    count = -(-length // window)
    windows = to_windows(tokens, window, torch.arange(count))
    assert windows.shape == (3 * count, window, 2)
    assert torch.equal(from_windows(windows, 3, length), tokens)


def test_positions_are_distinct():
    positions = torch.cartesian_prod(torch.arange(5), torch.arange(40))
    embedded = sinusoids(positions, 32)
    assert embedded.shape == (200, 32)
    assert torch.pdist(embedded).min() > 0.1
