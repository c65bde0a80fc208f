import multiprocessing
import os
import pickle
import random
import shutil
import signal
import threading
import time
import warnings
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Required, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from zoo.building.build import BlockBuilder, build_zoo
from zoo.building.executors import InProcess, LocalProcesses, RayExecutor
from zoo.building.hyperparameters import OPTIMIZER_DEFAULTS
from zoo.building.plan import DEFAULT_BATCH_SIZE, BuildPlan, BuildSettings, _named_task
from zoo.networks.initialization import run_seed
from zoo.settings import SettingsMismatchError
from zoo.storage.schema import RunStatus
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import Zoo
from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task
from zoo.training.optimizers import Adam

SETTINGS = {
    "num_runs": 10,
    "num_steps": 12,
    "block_size": 4,
    "snapshot_steps": (0, 4, 12),
    "optimizer": {"name": "adam", "lr": {"log_uniform": [0.001, 0.1]}, "weight_decay": 0.01},
    "init_scale": {"choice": [0.5, 1.0]},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def task():
    return get_task("digits", hidden=[4])


@pytest.fixture(scope="module")
def path(tmp_path_factory, task):
    path = tmp_path_factory.mktemp("build") / "zoo"
    build_zoo(path, task, **SETTINGS)
    return path


def test_a_zoo_is_what_its_settings_say(path, task):
    zoo = Zoo.open(path)
    assert zoo.verify() == []
    assert zoo.spec.shape == (10, 3, task.layout.num_params)
    assert zoo.layout == task.layout
    assert (zoo.inner_step == [0, 4, 12]).all()
    assert zoo.runs["seed"].tolist() == [run_seed(0, run) for run in range(10)]
    assert (zoo.status == RunStatus.COMPLETE).all()
    assert get_task(**zoo.task_config).layout == task.layout
    assert zoo.attributes["data_hash"] == task.dataset.data_hash
    assert zoo.attributes["optimizer"] == SETTINGS["optimizer"]
    assert zoo.attributes["extra"]["training"]["num_steps"] == 12
    assert set(zoo.runs) == {"seed", "status", "checksum", "lr", "init_scale"}
    assert ((zoo.runs["lr"] >= 0.001) & (zoo.runs["lr"] <= 0.1)).all()
    assert len(np.unique(zoo.runs["lr"])) == 10
    assert set(zoo.runs["init_scale"]) == {0.5, 1.0}


def test_metrics_are_those_of_the_stored_networks(path, task):
    zoo = Zoo.open(path)
    for split in ("train", "val", "test"):
        for snapshot in range(3):
            values = task.evaluate(torch.from_numpy(zoo.params[:, snapshot]), split)
            for name in ("loss", "error"):
                assert np.allclose(zoo.metric(f"{split}_{name}")[:, snapshot], values[name], atol=1e-6)
    assert (zoo.metric("train_loss")[:, -1] < zoo.metric("train_loss")[:, 0]).all()


def test_the_first_snapshot_is_the_initialisation_of_the_run_alone(path, task):
    zoo = Zoo.open(path)
    for run in (0, 7):
        alone = task.init_runs([int(zoo.runs["seed"][run])], float(zoo.runs["init_scale"][run]))
        assert np.array_equal(zoo.params[run, 0], alone[0])


def test_runs_do_not_depend_on_the_size_of_blocks(path, tmp_path, task):
    other = build_zoo(tmp_path / "zoo", task, **(SETTINGS | {"block_size": 7}))
    assert np.allclose(other.params[:], Zoo.open(path).params[:], atol=1e-4)
    assert np.array_equal(other.runs["lr"], Zoo.open(path).runs["lr"])


def test_damaged_and_missing_blocks_are_built_anew_and_no_others(path, tmp_path, task, bytes_of):
    build_zoo(tmp_path / "zoo", task, **SETTINGS)
    shard = tmp_path / "zoo/params/c/1/0/0"
    content = bytearray(shard.read_bytes())
    content[777] ^= 16
    shard.write_bytes(content)
    ZooWriter.open(tmp_path / "zoo").discard_block(2)
    states = []
    build_zoo(tmp_path / "zoo", task, progress=states.append, **SETTINGS)
    assert [state.report.block for state in states if state.report] == [1, 2]
    assert [(state.num_done, state.num_blocks) for state in states] == [(1, 3), (2, 3), (3, 3)]
    assert bytes_of(tmp_path / "zoo") == bytes_of(path)
    build_zoo(tmp_path / "zoo", task, progress=states.append, **SETTINGS)
    assert len(states) == 4


@pytest.mark.parametrize("shared", [True, False])
def test_blocks_of_random_steps_are_built_anew_to_the_bit_and_do_not_depend_on_their_size(tmp_path, shared, bytes_of):
    """Dropout and augmentation: a block that is built alone, later, is what it was."""
    data = get_task("digits", augment=["flip", "noise"]).dataset

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Dropout(0.5), nn.Linear(4, 10))

    task = Task("dropped", data, build, {"name": "cross_entropy", "label_smoothing": 0.1})
    settings = SETTINGS | {"shared_batches": shared, "accumulate": 2, "batch_size": 8}
    whole = build_zoo(tmp_path / "zoo", task, **settings)
    assert whole.verify() == []
    assert whole.task_config["augment"] == [{"name": "flip", "p": 0.5}, {"name": "noise", "std": 0.1}]
    assert whole.task_config["objective"]["label_smoothing"] == 0.1
    assert whole.attributes["extra"]["training"]["accumulate"] == 2
    before = bytes_of(tmp_path / "zoo")
    ZooWriter.open(tmp_path / "zoo").discard_block(1)
    torch.manual_seed(7)
    build_zoo(tmp_path / "zoo", task, **settings)
    assert bytes_of(tmp_path / "zoo") == before
    other = build_zoo(tmp_path / "other", task, **settings | {"block_size": 7})
    assert np.allclose(other.params[:], whole.params[:], atol=1e-4)
    changed = replace(data, augmentations=data.augmentations[:1])
    with pytest.raises(SettingsMismatchError, match=r"task\.augment"):
        build_zoo(tmp_path / "zoo", Task("dropped", changed, build, task.objective), **settings)


def test_other_settings_do_not_continue_a_zoo(path, task):
    for changes, key in [
        ({"num_steps": 13}, "num_steps|snapshot_steps"),
        ({"optimizer": {"name": "adam", "lr": 0.1}}, "optimizer"),
        ({"seed": 1}, "seed"),
        ({"batch_size": 32}, r"extra\.training\.batch_size"),
        ({"precision": "bf16-mixed"}, r"extra\.training\.precision: begun with \"32\", now \"bf16-mixed\""),
    ]:
        with pytest.raises((SettingsMismatchError, ValueError), match=key):
            build_zoo(path, task, **(SETTINGS | changes))
    with pytest.raises(SettingsMismatchError, match=r"task\.hidden"):
        build_zoo(path, get_task("digits", hidden=[5]), **SETTINGS)


def test_options_left_out_are_those_with_their_defaults(path, task):
    spelled_out = OPTIMIZER_DEFAULTS["adam"] | SETTINGS["optimizer"]
    states = []
    build_zoo(path, task, progress=states.append, **(SETTINGS | {"optimizer": spelled_out}))
    assert [state.report for state in states] == [None]
    with pytest.raises(SettingsMismatchError, match=r"optimizer\.eps: begun with 1e-08, now 0\.1"):
        build_zoo(path, task, **(SETTINGS | {"optimizer": spelled_out | {"eps": 0.1}}))


def test_a_zoo_of_an_earlier_release_is_resumed(tmp_path):
    shutil.copytree(Path(__file__).parents[2] / "data/saved_by_0_1/zoo", tmp_path / "zoo")
    settings = {
        "num_runs": 40,
        "num_steps": 60,
        "snapshot_steps": (0, 5, 15, 35, 60),
        "block_size": 20,
        "optimizer": OPTIMIZER_DEFAULTS["adam"] | {"lr": {"log_uniform": [0.002, 0.008]}},
    }
    states = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was begun with other software")
        build_zoo(tmp_path / "zoo", get_task("digits", hidden=[2]), progress=states.append, **settings)
    assert [state.report for state in states] == [None]


def test_a_zoo_of_ones_own_task_is_resumed_though_what_it_computes_was_not_recorded(tmp_path):
    def build():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    own = Task("own", get_task("digits").dataset, build, OBJECTIVES["cross_entropy"])
    plan = BuildPlan(task=own, num_runs=2, num_steps=1)
    assert "behaviour" in own.description
    earlier = {key: value for key, value in own.description.items() if key != "behaviour"}
    ZooWriter.create(tmp_path / "zoo", replace(plan.spec(), task_config=earlier))
    assert build_zoo(tmp_path / "zoo", own, num_runs=2, num_steps=1).verify() == []


def test_keyword_arguments_are_the_fields_of_a_plan():
    plan, settings = get_type_hints(BuildPlan), get_type_hints(BuildSettings)
    assert settings == {name: hint for name, hint in plan.items() if name != "task"}
    required = {one.name for one in fields(BuildPlan) if one.default is one.default_factory is MISSING}
    annotated = get_type_hints(BuildSettings, include_extras=True)
    assert {name for name, hint in annotated.items() if get_origin(hint) is Required} == required - {"task"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_runs": 0}, "num_runs must be a positive integer"),
        ({"num_steps": -1}, "num_steps must be a positive integer"),
        ({"block_size": -4}, "block_size"),
        ({"evaluated_splits": ("train", "holdout")}, "evaluated_splits"),
        ({"optimizer": {"name": "nonsense"}}, "nonsense"),
        ({"optimizer": {"name": "adam", "rate": 1}}, "rate"),
        ({"optimizer": Adam()}, "optimizer_config"),
        ({"split_fractions": {"train": 2.0}}, "sum to 1"),
        ({"batch_size": 0}, "batch_size must be an integer from 1 to 1257"),
        ({"batch_size": 4000}, "batch_size must be an integer from 1 to 1257"),
        ({"batch_size": 2.5}, "batch_size must be an integer"),
        ({"block_size": 0}, "block_size must be a positive integer"),
        ({"num_runs": True}, "num_runs must be a positive integer"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"snapshot_steps": [0, 3, 2]}, "snapshot_steps must be integers that increase"),
        ({"snapshot_steps": [0, 1000]}, "snapshot_steps must be integers that increase"),
        ({"snapshot_steps": []}, "snapshot_steps must be integers that increase"),
        ({"snapshot_steps": None, "num_snapshots": 1}, "num_snapshots"),
        ({"max_loss": -1.0}, "max_loss must be a finite number above 0"),
        ({"init_scale": "large"}, "init_scale must be a number or one of .* got 'large'"),
        ({"init_scale": -1.0}, "init_scale must not be negative"),
        ({"shared_batches": "maybe"}, "shared_batches must be true or false, got 'maybe'"),
        ({"evaluated_splits": ("val", "val")}, "evaluated_splits"),
        ({"optimizer": {"name": "adam", "warmup_steps": 1.5}}, "warmup_steps must be an integer"),
        ({"optimizer": "adam"}, "optimizer must be a mapping of options"),
        ({"optimizer": {"name": "adam", "lr": "fast"}}, "lr of Adam must be a number, a range such as"),
        ({"optimizer": {"name": "adam", "lr": [0.1, 0.2]}}, "lr of Adam must be a number, a range such as"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, task, changes, message):
    with pytest.raises(ValueError, match=message):
        build_zoo(tmp_path / "zoo", task, **(SETTINGS | changes))
    assert not list(tmp_path.iterdir())


def test_few_rows_are_one_minibatch_unless_another_size_is_asked_for(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 2))
    table = "".join(f"{a},{b},{int(a > b)}\n" for a, b in rows)
    (tmp_path / "few.csv").write_text("a,b,target\n" + table)
    task = get_task("table", path=str(tmp_path / "few.csv"), target="target", hidden=[2])
    count = len(task.dataset.train)
    assert count < DEFAULT_BATCH_SIZE
    settings = {"num_runs": 2, "num_steps": 3, "num_snapshots": 2}
    with pytest.warns(UserWarning, match=rf"^batch_size is {count}, the whole training split, .* default of 64$"):
        zoo = build_zoo(tmp_path / "zoo", task, **settings)
    assert zoo.attributes["extra"]["training"]["batch_size"] == count
    same = build_zoo(tmp_path / "same", task, batch_size=count, **settings)
    assert np.array_equal(same.params, zoo.params)
    with pytest.raises(ValueError, match=f"from 1 to {count} .the training split., got 64"):
        build_zoo(tmp_path / "other", task, batch_size=64, **settings)


def test_a_zoo_goes_on_when_its_data_have_moved_but_not_when_they_have_changed(tmp_path):
    rng = np.random.default_rng(0)
    settings = {"num_runs": 2, "num_steps": 3, "batch_size": 4}
    x, y = rng.normal(size=(40, 3)), rng.integers(2, size=40)
    for name, inputs in (("old", x), ("new", x), ("other", x + 1)):
        np.savez(tmp_path / f"{name}.npz", x=inputs, y=y)

    def tasks(name):
        path = str(tmp_path / f"{name}.npz")
        yield get_task("arrays", path=path, hidden=[2])
        yield get_task("label_subsets", base={"name": "arrays", "path": path}, masks=[1], hidden=[2])

    for i, (old, new, other) in enumerate(zip(tasks("old"), tasks("new"), tasks("other"), strict=True)):
        build_zoo(tmp_path / f"zoo{i}", old, **settings)
        build_zoo(tmp_path / f"zoo{i}", new, **settings)
        with pytest.raises(
            SettingsMismatchError, match=r"data_hash.*; the data have changed since: restore them"
        ) as caught:
            build_zoo(tmp_path / f"zoo{i}", other, **settings)
        assert "\n" not in str(caught.value)


def test_workers_refuse_data_that_change_under_them(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(40, 3)), y=rng.integers(2, size=40))
    plan = BuildPlan(
        task=get_task("arrays", path=str(tmp_path / "data.npz"), hidden=[2]), num_runs=2, num_steps=1, batch_size=4
    )
    sent = pickle.dumps(plan)
    assert pickle.loads(sent).task.dataset.data_hash == plan.task.dataset.data_hash
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(40, 3)), y=rng.integers(2, size=40))
    _named_task.cache_clear()  # as in a worker that has just begun
    with pytest.raises(ValueError, match="the data or the base of task 'arrays' have changed while"):
        pickle.loads(sent)


def test_unknown_settings_are_refused(tmp_path, task):
    with pytest.raises(TypeError, match="learning_rate"):
        build_zoo(tmp_path / "zoo", task, learning_rate=1, **SETTINGS)


def test_targets_in_large_units_are_refused_before_a_zoo_is_begun(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6))
    np.savez(tmp_path / "prices.npz", x=x, y=200_000 + 50_000 * x[:, 0])
    task = get_task("arrays", path=str(tmp_path / "prices.npz"), hidden=[4])
    message = r"of at most max_loss = 10000, got .*standardise the targets \(mean .*e\+05, standard deviation .*\)"
    with pytest.raises(ValueError, match=message):
        build_zoo(tmp_path / "zoo", task, num_runs=4, num_steps=10, batch_size=8)
    assert not (tmp_path / "zoo").exists()
    settings = {"num_runs": 4, "num_steps": 10, "batch_size": 8, "max_loss": 1e12}
    assert (build_zoo(tmp_path / "zoo", task, **settings).status == RunStatus.COMPLETE).all()


def test_a_zoo_whose_runs_diverged_says_so(tmp_path, task):
    settings = SETTINGS | {"num_runs": 4, "optimizer": {"name": "sgd", "lr": 1e9}}
    with pytest.warns(UserWarning, match="all 4 runs of .* diverged: their loss exceeded max_loss = 10000") as said:
        build_zoo(tmp_path / "zoo", task, **settings)
    assert [remark.filename for remark in said] == [__file__]


@pytest.mark.filterwarnings("ignore:.* runs of .* diverged")
def test_diverged_runs_are_kept_and_labelled(tmp_path, task):
    optimizer = {"name": "sgd", "lr": {"choice": [0.1, 1e9]}}
    zoo = build_zoo(tmp_path / "zoo", task, **(SETTINGS | {"optimizer": optimizer, "num_runs": 8, "block_size": 8}))
    assert np.array_equal(zoo.status == RunStatus.DIVERGED, zoo.runs["lr"] == 1e9)
    assert 0 < (zoo.status == RunStatus.DIVERGED).sum() < 8
    assert zoo.verify() == []


def test_an_optimizer_object_is_recorded_as_told(tmp_path, task):
    settings = SETTINGS | {"optimizer": Adam(lr=0.02), "optimizer_config": {"name": "mine"}, "num_runs": 4}
    zoo = build_zoo(tmp_path / "one", task, **settings)
    assert zoo.attributes["optimizer"] == {"name": "mine"}
    named = build_zoo(tmp_path / "two", task, **(SETTINGS | {"optimizer": {"name": "adam", "lr": 0.02}, "num_runs": 4}))
    assert np.array_equal(zoo.params[:], named.params[:])


def test_subset_tasks_never_part_a_mask_from_its_complement(tmp_path):
    half = range(1, 41)
    task = get_task("digits_subset", hidden=[2], masks=[*half, *(1023 - mask for mask in half)])
    settings = {"num_runs": 80, "num_steps": 1, "snapshot_steps": (0,), "evaluated_splits": ("val",)}
    fractions = {"train": 0.5, "val": 0.25, "test": 0.25}
    zoo = build_zoo(tmp_path / "zoo", task, optimizer={"name": "sgd"}, split_fractions=fractions, **settings)
    masks = {name: set(zoo.runs["mask"][zoo.split(name)].tolist()) for name in fractions}
    assert all(masks.values())
    assert set.union(*masks.values()) == set(task.family.masks.tolist())
    for side in masks.values():
        assert {1023 - mask for mask in side} == side


def test_default_blocks_bound_the_memory():
    wide = BuildPlan(task=get_task("digits", hidden=[2048, 2048]), num_runs=2304, num_steps=100)
    assert wide.runs_per_block == 1
    assert BuildPlan(task=get_task("digits"), num_runs=2304, num_steps=1280).runs_per_block == 256


def test_local_processes_build_the_same_zoo(path, tmp_path, task, bytes_of):
    build_zoo(tmp_path / "zoo", task, executor=LocalProcesses(num_workers=2), **SETTINGS)
    if len(os.sched_getaffinity(0)) <= 2:  # workers then have one thread, as this process has
        assert bytes_of(tmp_path / "zoo") == bytes_of(path)


def test_two_builders_share_a_zoo_and_never_take_the_same_block(path, tmp_path, task, bytes_of):
    reports = {0: [], 1: []}

    def build(builder):
        def note(state):
            if state.report:
                reports[builder].append(state.report.block)

        build_zoo(tmp_path / "zoo", task, progress=note, **SETTINGS)

    threads = [threading.Thread(target=build, args=(builder,)) for builder in reports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reports[0] + reports[1]) == [0, 1, 2]
    assert bytes_of(tmp_path / "zoo") == bytes_of(path)


def build_and_exit(path):
    torch.set_num_threads(1)
    build_zoo(path, get_task("digits", hidden=[4]), **(SETTINGS | {"num_runs": 40}))


@pytest.mark.slow
def test_killed_builds_go_on(tmp_path, task, bytes_of):
    settings = SETTINGS | {"num_runs": 40}
    started = time.monotonic()
    build_zoo(tmp_path / "undisturbed", task, **settings)
    duration = time.monotonic() - started
    rng = random.Random(0)
    context = multiprocessing.get_context("fork")
    for _ in range(20):
        process = context.Process(target=build_and_exit, args=(tmp_path / "zoo",))
        process.start()
        process.join(rng.uniform(0, duration / 4))
        process.kill()
        process.join()
    build_zoo(tmp_path / "zoo", task, **settings)
    assert bytes_of(tmp_path / "zoo") == bytes_of(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_killed_ray_worker_costs_nothing(tmp_path, task):
    ray = pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    settings = SETTINGS | {"num_runs": 24, "num_steps": 400, "snapshot_steps": (0, 400)}
    killed = []

    def kill_one_worker(state):
        workers = [p for p in psutil.process_iter(["name"]) if "ray::build_with_threads" in (p.info["name"] or "")]
        mine = [p for p in workers if psutil.Process().pid in {parent.pid for parent in p.parents()}]
        if not killed and mine:
            mine[0].send_signal(signal.SIGKILL)
            killed.append(mine[0].pid)

    executor = RayExecutor(num_cpus=2)
    zoo = build_zoo(tmp_path / "zoo", task, executor=executor, progress=kill_one_worker, **settings)
    assert killed
    assert zoo.verify() == []
    assert not ray.is_initialized()
    alone = build_zoo(tmp_path / "alone", task, executor=InProcess(), **settings)
    assert np.array_equal(zoo.params[:], alone.params[:])


def test_a_builder_waits_for_the_blocks_of_another(path, tmp_path, task):
    plan = BuildPlan(task=task, **SETTINGS)
    writer = ZooWriter.create(tmp_path / "zoo", plan.spec())
    lock = writer.lock(1)
    assert BlockBuilder(tmp_path / "zoo", plan)(1) is None
    states = []

    def let_go(state):
        states.append(state)
        if state.num_done == 2 and state.report is None:
            lock.release()

    zoo = build_zoo(tmp_path / "zoo", task, progress=let_go, **SETTINGS)
    assert zoo.verify() == []
    assert [state.report.block for state in states if state.report] == [0, 2, 1]


def test_runs_added_to_a_zoo_are_those_that_a_larger_one_has(tmp_path, task):
    settings = SETTINGS | {"num_runs": 4, "block_size": None}
    first = build_zoo(tmp_path / "zoo", task, **settings)
    zoo = build_zoo(tmp_path / "zoo", task, **(settings | {"num_runs": 10}))
    assert (zoo.num_runs, zoo.spec.block_size, zoo.verify()) == (10, 4, [])
    assert np.array_equal(zoo.params[:4], first.params[:])
    whole = build_zoo(tmp_path / "whole", task, **(settings | {"num_runs": 10}))
    assert np.array_equal(zoo.runs["seed"], whole.runs["seed"])
    np.testing.assert_allclose(zoo.params[:], whole.params[:], rtol=1e-3, atol=1e-4)


def test_a_name_is_no_task(tmp_path):
    with pytest.raises(TypeError, match=r"get_task\('digits'\), got str"):
        build_zoo(tmp_path / "zoo", "digits", num_runs=2, num_steps=2)


class Greedy(Adam):
    def init_state(self, layout, params):
        return {"history": torch.empty(len(params), 2**50)}


def test_a_block_that_does_not_fit_says_what_to_lower(tmp_path, task):
    settings = SETTINGS | {"optimizer": Greedy(), "optimizer_config": {"name": "greedy"}, "init_scale": 1.0}
    message = r"^memory ran out on cpu while a block of 4 runs was trained; lower block_size \(now 4\) or batch_size"
    with pytest.raises(MemoryError, match=message):
        build_zoo(tmp_path / "zoo", task, **settings)


def test_networks_of_double_precision_are_rounded_with_a_word(tmp_path, task):
    own = Task("own", task.dataset, double_module, OBJECTIVES["cross_entropy"])
    with pytest.warns(UserWarning, match="trained in float64 and stored as float32"):
        build_zoo(tmp_path / "zoo", own, num_runs=2, num_steps=2)


def double_module():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).double()
    module.register_forward_pre_hook(lambda _, args: (args[0].double(),))
    return module


def test_weight_decay_of_what_no_loss_depends_on_is_said(tmp_path):
    class HasUnused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.unused = nn.Linear(64, 10), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1))

    task = Task("own", get_task("digits").dataset, HasUnused, "cross_entropy")
    options = {"num_runs": 1, "num_steps": 1}
    with pytest.warns(UserWarning, match=r"\['unused.weight', 'unused.bias'\].*weight decay shrinks them"):
        build_zoo(tmp_path / "zoo", task, optimizer={"name": "adam", "lr": 0.01, "weight_decay": 0.1}, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_zoo(tmp_path / "undecayed", task, **options)
