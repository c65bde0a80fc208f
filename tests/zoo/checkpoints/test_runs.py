import json
from pathlib import Path

import pytest

from zoo.checkpoints.runs import find_runs
from zoo.checkpoints.tensors import CheckpointError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def described(runs):
    return {run.name: [(snapshot.path.name, snapshot.inner_step) for snapshot in run.snapshots] for run in runs}


def test_each_child_of_a_folder_is_a_run(tmp_path):
    touch(tmp_path, "net_10.pt", "net_9.safetensors", "run/epoch_2.pt", "run/epoch_10.pt", "README.md", "logs/log.txt")
    assert described(find_runs(tmp_path).runs) == {
        "net_9": [("net_9.safetensors", 0)],
        "net_10": [("net_10.pt", 0)],
        "run": [("epoch_2.pt", 2), ("epoch_10.pt", 10)],
    }


def test_each_path_of_a_list_is_a_run(tmp_path):
    touch(tmp_path, "a/1.pt", "a/2.pt", "b.pt")
    assert described(find_runs([tmp_path / "b.pt", tmp_path / "a"]).runs) == {
        "b": [("b.pt", 0)],
        "a": [("1.pt", 1), ("2.pt", 2)],
    }


def test_saved_folders_are_snapshots_whatever_else_is_in_them(tmp_path):
    for step in (500, 1000):
        touch(tmp_path, f"run/checkpoint-{step}/model.safetensors", f"run/checkpoint-{step}/optimizer.pt")
    assert described(find_runs(tmp_path).runs) == {"run": [("model.safetensors", 500), ("model.safetensors", 1000)]}


def test_names_without_numbers_are_numbered_and_that_is_said(tmp_path):
    touch(tmp_path, "run/first.pt", "run/last.pt")
    found = find_runs([tmp_path / "run"])
    assert described(found.runs) == {"run": [("first.pt", 0), ("last.pt", 1)]}
    assert "numbered in their order" in " ".join(found.remarks)


@pytest.mark.parametrize(
    "names",
    [
        {"step_100.pt": 100, "step_9.pt": 9},
        {"epoch=1-step=100.ckpt": 100, "epoch=2-step=200-v1.ckpt": 200},
        {"epoch=3-val_loss=0.25.ckpt": 3, "epoch=4-val_loss=0.125.ckpt": 4},
        {"init.pt": 0, "iter5.pt": 5, "iter10.pt": 10},
        {"net.3.pt": 3, "net.12.pt": 12},
        {"500.pt": 500, "1.5k.pt": 1500, "2M.pt": 2_000_000},
        {"step500.pt": 500, "step1k.pt": 1000},
        {"checkpoint_1.pth.tar": 1, "checkpoint_2.pth.tar": 2},
        {"1.pt": 1, "2.pt": 2, "last.pt": None},
        {"epoch=1-step=100.ckpt": 100, "last.ckpt": None, "best-step=100.ckpt": None, "final-step=250.ckpt": 250},
    ],
)
def test_steps_are_the_numbers_that_the_names_say(tmp_path, names):
    touch(tmp_path / "run", *names)
    (run,), remarks = find_runs([tmp_path / "run"])
    known = {name: step for name, step in names.items() if step is not None}
    assert {snapshot.path.name: snapshot.inner_step for snapshot in run.snapshots} == known
    assert len(remarks) == len(names) - len(known)
    assert all(any(name in remark for remark in remarks) for name in names.keys() - known.keys())


@pytest.mark.parametrize(
    "names",
    [["1_loss0.9.pt", "2_loss0.5.pt", "3_loss0.7.pt"], ["a1b2c3.pt", "d4e5f1.pt"], ["2024-1-31.pt", "2024-2-7.pt"]],
)
def test_numbers_that_are_no_steps_are_not_taken_for_them(tmp_path, names):
    touch(tmp_path / "run", *names)
    (run,), remarks = find_runs([tmp_path / "run"])
    assert [snapshot.path.name for snapshot in run.snapshots] == names
    assert "numbered in their order" in " ".join(remarks)


def test_names_of_several_runs_in_one_folder_are_said(tmp_path):
    touch(tmp_path / "run", "seed1_epoch8.pt", "seed2_epoch9.pt")
    assert "differ in more than their steps; give each run a folder" in " ".join(find_runs([tmp_path / "run"]).remarks)


def test_a_run_may_hold_its_final_model_beside_its_checkpoints(tmp_path):
    for name in ("model.safetensors", "training_args.bin", "tf_model.h5", "2_Dense/model.safetensors"):
        touch(tmp_path / "seed0", name)
    for step in (500, 1000):
        touch(tmp_path / "seed0", f"checkpoint-{step}/model.safetensors", f"checkpoint-{step}/optimizer.pt")
    (run,), remarks = find_runs(tmp_path)
    assert [snapshot.inner_step for snapshot in run.snapshots] == [500, 1000]
    assert sorted(Path(remark.split()[0]).relative_to(tmp_path / "seed0").as_posix() for remark in remarks) == [
        "2_Dense",
        "model.safetensors",
        "tf_model.h5",
    ]
    (tmp_path / "seed0/trainer_state.json").write_text('{"global_step": 1200}')
    (run,), remarks = find_runs(tmp_path / "seed0")
    assert [snapshot.inner_step for snapshot in run.snapshots] == [500, 1000, 1200]
    assert run.snapshots[-1].path == tmp_path / "seed0/model.safetensors"


def test_one_model_in_two_formats_is_read_once(tmp_path):
    touch(tmp_path, "a/model.safetensors", "a/pytorch_model.bin")
    (run,), remarks = find_runs(tmp_path)
    assert [snapshot.path.name for snapshot in run.snapshots] == ["model.safetensors"]
    assert remarks == [f"{tmp_path / 'a/pytorch_model.bin'} was left out: there is model.safetensors"]


def test_a_model_cut_into_files_is_one_snapshot(tmp_path):
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    touch(tmp_path, *(f"run/checkpoint-5/{name}" for name in (*shards, "model.safetensors.index.json")))
    touch(tmp_path, "run/checkpoint-9/model.safetensors")
    (run,), remarks = find_runs(tmp_path)
    assert described([run]) == {"run": [("model.safetensors.index.json", 5), ("model.safetensors", 9)]}
    assert remarks == []


def test_hidden_files_and_the_rest_of_a_training_are_no_checkpoints(tmp_path):
    touch(tmp_path, "a.pt", "._a.pt", ".b.pt", ".git/c.pt", "a.pt.lock", "optimizer.pt", "rng_state_0.pth", "run/1.pt")
    touch(tmp_path, "run/._1.pt", "run/scheduler.pt", "run/random_states_0.pkl")
    found = find_runs(tmp_path)
    assert described(found.runs) == {"a": [("a.pt", 0)], "run": [("1.pt", 1)]}
    assert found.remarks == []


def test_what_looks_like_weights_and_is_not_taken_is_named(tmp_path):
    touch(tmp_path, "a.pt", "b.npz", "deep/er/c.pt", "dcp/__0_0.distcp", "notes/text.md")
    (tmp_path / "metrics.csv").write_text("file,acc\na.pt,.5\ngone.pt,.4\n")
    text = "\n".join(find_runs(tmp_path).remarks)
    assert all(name in text for name in ("b.npz", "deep", "dcp", "row 'gone.pt'"))
    assert "notes" not in text


def test_children_that_look_like_steps_of_one_run_are_pointed_out(tmp_path):
    touch(tmp_path, "checkpoint-5/model.safetensors", "checkpoint-9/model.safetensors")
    found = find_runs(tmp_path)
    assert described(found.runs).keys() == {"checkpoint-5", "checkpoint-9"}
    assert "steps of one run" in " ".join(found.remarks)
    (run,), remarks = find_runs([tmp_path])
    assert [snapshot.inner_step for snapshot in run.snapshots] == [5, 9]
    assert remarks == []


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    touch(tmp_path, "a/model.safetensors", "b/model.safetensors")
    paths = [str(tmp_path / name / "model.safetensors") for name in ("b", "a")]
    assert [run.name for run in find_runs(paths).runs] == paths


def test_a_run_is_given_once(tmp_path):
    touch(tmp_path, "a.pt")
    with pytest.raises(CheckpointError, match="2 times"):
        find_runs([tmp_path / "a.pt", f"{tmp_path}/../{tmp_path.name}/a.pt"])


def test_one_table_in_a_folder(tmp_path):
    touch(tmp_path, "a.pt", "metrics.csv", "metrics.json")
    with pytest.raises(CheckpointError, match="keep one of them"):
        find_runs(tmp_path)


CSV = "file,inner_step,val_loss,seed\nlate.pt,20,0.5,3\nearly.pt,3,,3\n"
JSON_ROWS = [{"file": "late.pt", "step": 20, "val_loss": 0.5, "seed": 3}, {"file": "early.pt", "step": 3, "seed": 3}]
JSON_MAP = {"late.pt": {"step": 20, "val_loss": "0.5", "seed": 3}, "early.pt": {"step": 3.0, "seed": 3}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.csv", CSV),
        ("metrics.csv", "\ufeff" + CSV),  # as spreadsheets write it
        ("metrics.json", json.dumps(JSON_ROWS)),
        ("metrics.json", json.dumps(JSON_MAP)),
    ],
)
def test_tables_give_steps_metrics_and_seeds(tmp_path, name, text):
    touch(tmp_path, "run/late.pt", "run/early.pt")
    (tmp_path / "run" / name).write_text(text)
    (run,) = find_runs(tmp_path).runs
    assert described([run]) == {"run": [("early.pt", 3), ("late.pt", 20)]}
    assert run.snapshots[1].metrics["val_loss"] == 0.5
    assert [snapshot.seed for snapshot in run.snapshots] == [3, 3]


def test_a_table_of_all_runs_stands_above_them(tmp_path):
    touch(tmp_path, "a/x.pt", "b/checkpoint/model.safetensors", "c.pt")
    (tmp_path / "metrics.csv").write_text("file,step,acc\na/x.pt,4,.1\nb/checkpoint,5,.2\nc.pt,6,.3\n")
    runs = find_runs(tmp_path).runs
    assert described(runs) == {"a": [("x.pt", 4)], "b": [("model.safetensors", 5)], "c": [("c.pt", 6)]}
    assert [run.snapshots[0].metrics for run in runs] == [{"acc": 0.1}, {"acc": 0.2}, {"acc": 0.3}]


def test_a_json_file_beside_a_snapshot_is_read(tmp_path):
    touch(tmp_path, "a.pt")
    (tmp_path / "a.json").write_text(json.dumps({"inner_step": 9, "metrics": {"acc": 0.5}, "run": {"seed": 4}}))
    snapshot = find_runs(tmp_path).runs[0].snapshots[0]
    assert (snapshot.inner_step, snapshot.metrics, snapshot.seed) == (9, {"acc": 0.5}, 4)


@pytest.mark.parametrize(
    ("files", "table", "message"),
    [
        ((), None, "no checkpoint in"),
        (("a.txt",), None, "no checkpoint in"),
        (("a.pt",), "file,step\nb.pt,1\n", r"no row for .*a\.pt"),
        (("a.pt",), "name,step\na.pt,1\n", "must name its `file`"),
        (("a.pt",), "file,step\na.pt,x\n", "inner_step of .* must be a number, got 'x'"),
        (("a.pt",), "file,step\na.pt,1.5\n", "inner_step of .* must be an integer"),
        (("a.pt",), "file,step\na.pt,-1\n", "at least 0, got -1"),
        (("a.pt",), "file,acc\na.pt,high\n", "acc of .* must be a number"),
        (("r/a.pt", "r/b.pt"), "file,step\nr/a.pt,1\nr/b.pt,1\n", "different inner steps"),
        (("r/a.pt", "r/b.pt"), "file,step\nr/a.pt,1\nr/b.pt,\n", "needs an inner_step"),
        (("r/a.pt", "r/b.pt"), "file,step,seed\nr/a.pt,1,5\nr/b.pt,2,6\n", "different seeds"),
        (("r/a.pt", "r/b.pt"), "file,step\nr/a.pt,1\nr/b.pt,2\nr/a.pt,2\n", "two rows for r/a.pt"),
        (("r/model-1-of-2.safetensors", "r/model-2-of-2.safetensors"), None, "whose index .* is missing"),
        (("r/model.safetensors", "r/model.safetensors.index.json"), None, "keep one, or give its path"),
        (("r/model.safetensors", "r/adapter_model.safetensors"), None, "keep one, or give its path"),
    ],
)
def test_what_cannot_be_understood_is_named(tmp_path, files, table, message):
    touch(tmp_path, *files)
    if table is not None:
        (tmp_path / "metrics.csv").write_text(table)
    with pytest.raises(CheckpointError, match=message):
        find_runs(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"a.pt": 3}', "7"])
def test_unreadable_tables_are_named(tmp_path, text):
    touch(tmp_path, "a.pt")
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"table"):
        find_runs(tmp_path)


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere"):
        find_runs([tmp_path / "nowhere"])
