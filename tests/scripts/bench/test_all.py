"""The benchmark of everything: a stage stops no other, and rows are there whatever comes after."""

import math
import subprocess
from contextlib import nullcontext
from pkgutil import resolve_name

import pytest
import torch

from scripts.bench import all as bench
from scripts.bench.record import read_rows
from scripts.demo_stages.stage import Record, StageResult
from tests.pretended_device import pretended_device


def ends_in(folder):
    return {row["setting"]["stage"]: row["figures"]["end"] for row in read_rows("stages", folder)}


def test_a_failing_stage_stops_no_other_and_says_why(tmp_path):
    (tmp_path / "population.jsonl").mkdir()  # so that this stage cannot write its rows
    code = bench.main(["device=cpu", "size=tiny", "minutes=15", f"out={tmp_path}", "stages=populations,meta"])
    assert code == 1
    assert ends_in(tmp_path) == {"populations": "failed", "meta": "finished"}
    assert "IsADirectoryError" in read_rows("stages", tmp_path)[0]["figures"]["last words"]
    rows = read_rows("meta_train", tmp_path)
    assert all(value > 0 for row in rows for value in row["figures"].values())
    assert rows[0]["question"] in (tmp_path / "meta_train.md").read_text()


def test_a_stage_that_does_not_finish_is_ended(tmp_path):
    (tmp_path / "logs").mkdir()
    assert (
        bench.run_stage("language", bench.Options(device="cpu", size="tiny"), tmp_path, budget=0.3)[0] == "out of time"
    )


@pytest.mark.parametrize(
    ("argument", "said"),
    [("sise=tiny", "options are device="), ("stages=zoo", "stages must be among"), ("size=big", "tiny or full"),
     ("device=moon", "there is no device 'moon'"), ("minutes=-1", "positive")],
)  # fmt: skip
def test_wrong_usage_gets_one_line(argument, said, capsys):
    assert bench.main([argument]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["populations", "optimizers", "meta", "generator", "language"])
def test_no_stage_has_the_cpu_written_into_it(name, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # PyTorch has none for this device
    with pretended_device() as device:
        stage = resolve_name(f"{bench.__package__}.{bench.STAGES[name].measure}")
        rows = list(stage(device, "tiny", budget=0.0))
    assert rows
    assert all(math.isfinite(figure) for row in rows for figure in row.figures.values())


def test_a_demo_that_is_stopped_leaves_what_its_stages_found(tmp_path, monkeypatch):
    def stopped(*args, timeout, **options):
        (tmp_path / "demo" / "stages").mkdir(parents=True)
        done = Record({}, 3.0, 2.0, StageResult({"num_steps": 5, "num_params": 7}))
        done.write(tmp_path / "demo" / "stages" / "generator.json")
        Record({}).write(tmp_path / "demo" / "stages" / "prompting.json")
        raise subprocess.TimeoutExpired("demo", timeout)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", stopped)
    (row,) = bench.demo(torch.device("cpu"), "full", 1.0)
    assert (row.setting["stage"], row.figures["seconds"]) == ("generator", 3.0)


def test_tests_of_a_gpu_are_looked_for_where_they_are(request):
    files = bench.files_with_gpu_tests(bench.ROOT / "tests")
    assert {item.path for item in request.session.items if item.get_closest_marker("gpu")} <= {*files}
    assert 5 < len(files) < 30


@pytest.mark.slow
def test_every_stage_runs_on_a_cpu(tmp_path):
    assert bench.main(["device=cpu", "size=tiny", "minutes=4", f"out={tmp_path}"]) == 0
    ends = ends_in(tmp_path)
    assert list(ends) == list(bench.STAGES)
    assert {bench.STAGES[name].topic for name, end in ends.items() if end == "finished"} <= {
        path.stem for path in tmp_path.glob("*.jsonl")
    }
    assert list(ends.values()).count("finished") > len(ends) / 2, "a machine so busy tells nothing"


@pytest.mark.gpu
def test_rows_of_a_card_name_it(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert bench.main(["device=cuda", "size=tiny", "minutes=1.5", f"out={tmp_path}", "stages=meta"]) == 0
    row, *_ = read_rows("meta_train", tmp_path)
    assert torch.cuda.get_device_name() in row["hardware"]
    assert {"driver", "cuda"} <= set(row["versions"])
