"""What every family promises, and how populations and zoos use it."""

import itertools

import pytest
import torch

from tests.pretended_device import no_synchronization, pretended_device
from zoo.building.build import build_zoo
from zoo.networks.counter_rng import streams_of
from zoo.storage.splits import SplitRule
from zoo.storage.zoo import Zoo
from zoo.tasks.families.family import member_draws, members_of
from zoo.tasks.registry import get_task

TEXT = {"context": 16, "num_windows": 24, "width": 8, "num_blocks": 1, "num_heads": 2}
FAMILIES = {
    "digits_subset": {"hidden": [3]},
    "label_subsets": {"base": {"name": "mnist1d", "num_examples": 100}, "hidden": [3]},
    "warped_images": {"base": "digits", "hidden": [3]},
    "text_domains": TEXT,
    "tabular_prior": {"num_features": 6, "num_classes": 4, "num_train": 24, "num_val": 8, "num_test": 8, "hidden": [3]},
}


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def task(request):
    return get_task(request.param, **FAMILIES[request.param])


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))


def test_members_are_the_same_in_whatever_company(task):
    numbers = torch.tensor([5, 0, 41])
    together = task.family.bind(numbers)
    indices = torch.tensor([3, 0, 5])
    for split in ("train", "val", "test"):
        batch = together.examples(indices, split)
        assert batch.targets.shape[:2] == (3, 3)
        for j, number in enumerate(numbers):
            alone = task.family.bind(number[None]).examples(indices, split)
            assert same(task.part_of(batch, slice(j, j + 1)), alone)
    own = torch.stack((indices, indices.flip(0), indices))
    batch = together[1:].examples(own[1:])
    for j in range(2):
        alone = task.family.bind(numbers[[j + 1]]).examples(own[j + 1])
        torch.testing.assert_close(batch.inputs[[j]].squeeze(), alone.inputs.squeeze())
        assert torch.equal(batch.targets[[j]], alone.targets)


def test_members_differ_and_fit_the_data_set(task):
    data = task.family.dataset
    batch = task.family.bind(torch.arange(4)).examples(torch.arange(min(len(data.train), 64)))
    assert batch.inputs.shape[-data.train.inputs.ndim + 1 :] == data.train.inputs.shape[1:]
    assert batch.inputs.dtype == data.train.inputs.dtype
    assert 0 <= batch.targets.min() <= batch.targets.max() < data.num_classes
    pairs = [(i, j) for i in range(4) for j in range(i)]
    if batch.inputs.ndim > data.train.inputs.ndim:
        assert not any(torch.equal(batch.inputs[i], batch.inputs[j]) for i, j in pairs)
    else:
        assert not any(torch.equal(batch.targets[i], batch.targets[j]) for i, j in pairs)


def test_splits_are_of_members_and_those_that_zoos_declare(task):
    rule = SplitRule({"train": 0.5, "val": 0.2, "test": 0.3}, task.split_key)
    parts = [members_of(task.family, name, 100, rule).tolist() for name in ("train", "val", "test")]
    assert sorted(itertools.chain(*parts)) == list(range(100))
    keys = [set(task.family.attributes(torch.tensor(part))[task.split_key].tolist()) for part in parts]
    assert all(keys)
    assert not keys[0] & keys[1] | keys[0] & keys[2] | keys[1] & keys[2]


def test_evaluation_is_of_each_networks_own_member_whatever_is_done_at_once(task):
    bound = task.for_members([7, 2, 7])
    params = task.init_runs([1, 2, 3])
    whole = bound.evaluate(params, "val")
    parts = bound.evaluate(params, "val", memory_budget=3 * task.bytes_per_example)
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values)
    alone = task.for_members([2]).evaluate(params[[1]], "val")
    torch.testing.assert_close(alone["loss"], whole["loss"][[1]])
    assert bound.evaluate(params, "train")["loss"].isfinite().all()


def test_drawn_examples_are_each_networks_own(task):
    """Of its member, and where members see inputs of their own, others than another network of that member draws."""
    bound = task.for_members([7, 2, 7])
    inputs, targets, _ = bound.draw_examples(9, torch.Generator().manual_seed(0), ("train", "val"))
    assert len(targets) == 3
    if task.has_own_inputs:
        assert not torch.equal(inputs[0], inputs[2])
        ranges = [(name, torch.arange(len(task.dataset.split(name)))) for name in ("train", "val")]
        everything = torch.cat([bound.batch(rows.expand(3, -1), 3, name).inputs[2] for name, rows in ranges])
        assert all((everything == drawn).flatten(1).all(1).any() for drawn in inputs[2])
    else:
        assert torch.equal(targets[0], targets[2])
    unbound = task.draw_examples(9, torch.Generator().manual_seed(0))
    assert unbound.inputs.shape == (9, *task.dataset.train.inputs.shape[1:])


def test_descriptions_are_numbers_of_about_one_that_tell_members_apart(task):
    described = task.describe([5, 0, 41])
    assert torch.equal(described[[1]], task.describe([0]))
    if task.name in ("text_domains", "tabular_prior"):
        assert described.shape == (3, 0)
        return
    many = task.describe(range(200))
    assert 0.3 < many.std() < 2
    assert many.abs().max() < 3
    assert torch.pdist(many[:50]).min() > 1e-3


def test_it_is_known_who_sees_inputs_of_their_own(task):
    assert task.has_own_inputs == (task.name not in ("digits_subset", "label_subsets"))


def test_a_zoo_records_members_and_splits_runs_by_them(task, tmp_path):
    plan = {"num_runs": 6, "num_steps": 2, "num_snapshots": 2, "batch_size": 8, "evaluated_splits": ["val"]}
    build_zoo(tmp_path / "one", task, block_size=6, **plan)
    zoo = build_zoo(tmp_path / "three", task, block_size=2, **plan)
    expected = task.run_attributes(range(6))
    for name, values in expected.items():
        assert zoo.runs[name].tolist() == values.tolist()
    assert zoo.spec.splits.key == task.split_key
    torch.testing.assert_close(
        torch.from_numpy(zoo.params[:]), torch.from_numpy(Zoo.open(tmp_path / "one").params[:]), rtol=1e-4, atol=1e-6
    )
    again = get_task(**zoo.task_config)
    final = torch.from_numpy(zoo.params[:, -1])
    recorded = torch.from_numpy(zoo.metric("val_loss")[:, -1])
    torch.testing.assert_close(again.for_runs(range(6)).evaluate(final, "val")["loss"], recorded, rtol=1e-4, atol=1e-5)


def test_members_on_a_device_are_those_of_the_cpu_and_nothing_waits_for_them(task):
    here = task.for_members([3, 1]).batch(torch.arange(5), 2)
    with pretended_device() as device:
        there = task.for_members([3, 1]).to(device)
        indices = torch.arange(5).to(device)
        with no_synchronization():
            batch = there.for_members([3, 1]).batch(indices, 2)
        for found, wanted in zip(batch[:2], here[:2], strict=True):
            assert found.device == device
            torch.testing.assert_close(found.cpu(), wanted)
        assert same([part.cpu() for part in there.batch(indices, 2)[:2]], [part.cpu() for part in batch[:2]])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ["digits_subset", "warped_images"])
def test_augmentations_are_drawn_for_each_network_or_for_all(name, shared):
    options = FAMILIES[name] | {"augment": [{"name": "noise", "std": 0.5}]}
    task, plain = get_task(name, **options).for_members([4, 9]), get_task(name, **FAMILIES[name]).for_members([4, 9])
    streams = streams_of([1, 2], task.device)
    indices, stream = torch.arange(6).expand(2, -1), streams
    if shared:
        indices, stream = indices[0], streams[0]
    batch, before = task.batch(indices, 2, stream=stream), plain.batch(indices, 2)
    assert torch.equal(batch.targets, before.targets)
    noise = (batch.inputs - before.inputs).expand(2, 6, 1, 8, 8)
    assert noise.std() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(batch.inputs, task.batch(indices, 2, stream=stream).inputs)
    assert torch.allclose(noise[0], noise[1], atol=1e-5) == shared
    assert same(task.batch(indices, 2), before)


def test_examples_that_are_drawn_anew_are_no_members_examples():
    with pytest.raises(ValueError, match="members give examples by number"):
        get_task("text_domains", **TEXT, augment=["spans"])


def test_draws_are_of_seed_stream_and_member_alone():
    members = torch.tensor([4, 9])
    drawn = member_draws(1, members, 3, 20)
    assert torch.equal(member_draws(1, torch.tensor([9]), 3, 20), drawn[1:])
    assert (
        len(
            torch.cat((drawn, member_draws(2, members, 3, 20), member_draws(1, members, 3, 20, stream="a"))).unique(
                dim=0
            )
        )
        == 6
    )
    assert 0 <= drawn[:, :3].min() <= drawn[:, :3].max() < 1
    endless = get_task("tabular_prior", **FAMILIES["tabular_prior"]).family
    with pytest.raises(ValueError, match="no end: say among how many members"):
        members_of(endless, "test")
    assert len(members_of(endless, "test", 500)) == pytest.approx(25, abs=20)
