import json

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
    assert described(find_runs(tmp_path)) == {
        "net_9": [("net_9.safetensors", 0)],
        "net_10": [("net_10.pt", 0)],
        "run": [("epoch_2.pt", 2), ("epoch_10.pt", 10)],
    }


def test_each_path_of_a_list_is_a_run(tmp_path):
    touch(tmp_path, "a/1.pt", "a/2.pt", "b.pt")
    assert described(find_runs([tmp_path / "b.pt", tmp_path / "a"])) == {
        "b": [("b.pt", 0)],
        "a": [("1.pt", 1), ("2.pt", 2)],
    }


def test_saved_folders_are_snapshots_whatever_else_is_in_them(tmp_path):
    for step in (500, 1000):
        touch(tmp_path, f"run/checkpoint-{step}/model.safetensors", f"run/checkpoint-{step}/optimizer.pt")
    assert described(find_runs(tmp_path)) == {"run": [("model.safetensors", 500), ("model.safetensors", 1000)]}


def test_names_without_numbers_are_numbered(tmp_path):
    touch(tmp_path, "run/first.pt", "run/last.pt")
    assert described(find_runs([tmp_path / "run"])) == {"run": [("first.pt", 0), ("last.pt", 1)]}


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
    (run,) = find_runs(tmp_path)
    assert described([run]) == {"run": [("early.pt", 3), ("late.pt", 20)]}
    assert run.snapshots[1].metrics["val_loss"] == 0.5
    assert [snapshot.seed for snapshot in run.snapshots] == [3, 3]


def test_a_table_of_all_runs_stands_above_them(tmp_path):
    touch(tmp_path, "a/x.pt", "b/checkpoint/model.safetensors", "c.pt")
    (tmp_path / "metrics.csv").write_text("file,step,acc\na/x.pt,4,.1\nb/checkpoint,5,.2\nc.pt,6,.3\n")
    runs = find_runs(tmp_path)
    assert described(runs) == {"a": [("x.pt", 4)], "b": [("model.safetensors", 5)], "c": [("c.pt", 6)]}
    assert [run.snapshots[0].metrics for run in runs] == [{"acc": 0.1}, {"acc": 0.2}, {"acc": 0.3}]


def test_a_json_file_beside_a_snapshot_is_read(tmp_path):
    touch(tmp_path, "a.pt")
    (tmp_path / "a.json").write_text(json.dumps({"inner_step": 9, "metrics": {"acc": 0.5}, "run": {"seed": 4}}))
    snapshot = find_runs(tmp_path)[0].snapshots[0]
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
        (("r/model-1-of-2.safetensors", "r/model.safetensors.index.json"), None, "cut into several files"),
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
