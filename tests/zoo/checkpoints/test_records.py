"""Runs as frameworks leave them on the disk, written here file by file."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zoo.checkpoints.importer import import_checkpoints
from zoo.checkpoints.records import record_of
from zoo.checkpoints.runs import find_runs
from zoo.checkpoints.tensors import CheckpointError
from zoo.networks.architectures import MLP


def state(seed):
    torch.manual_seed(seed)
    return MLP(4, (3,), 2).state_dict()


def write_trainer(folder, steps=(500, 1000)):
    """The output folder of Hugging Face's Trainer: checkpoints, and the final model as save_model() writes it."""
    history = []
    for step in steps:
        history += [
            {"epoch": step / 500, "grad_norm": 0.5, "learning_rate": 1e-3, "loss": 2000 / step, "step": step},
            {"epoch": step / 500, "eval_accuracy": 0.9, "eval_loss": 1500 / step, "eval_runtime": 2.0, "step": step},
        ]
        at = folder / f"checkpoint-{step}"
        at.mkdir(parents=True)
        save_file(state(step), at / "model.safetensors", metadata={"format": "pt"})
        for other in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            (at / other).write_bytes(b"pickles")
        known = {"best_metric": None, "epoch": step / 500, "global_step": step, "log_history": list(history)}
        (at / "trainer_state.json").write_text(json.dumps(known))
    save_file(state(steps[-1]), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps[-1], "log_history": history}))
    return folder


def write_lightning(folder, lr=0.1):
    """A version of Lightning's CSVLogger, with the rows that a training of three epochs of six steps logs."""
    (folder / "checkpoints").mkdir(parents=True)
    for epoch, step in enumerate((6, 12, 18)):
        content = {"epoch": epoch, "global_step": step, "pytorch-lightning_version": "2.6.6", "optimizer_states": []}
        content |= {"state_dict": {f"net.{name}": value for name, value in state(step).items()}, "lr_schedulers": []}
        content |= {"loops": {}, "callbacks": {}, "hparams_name": "kwargs", "hyper_parameters": {"lr": lr}}
        torch.save(content, folder / f"checkpoints/epoch={epoch}-step={step}.ckpt")
    torch.save(content, folder / "checkpoints/last.ckpt")
    (folder / "metrics.csv").write_text(
        "epoch,step,train_loss,val_loss\n0,3,0.6,\n0,5,0.19,\n0,5,,0.08\n1,7,0.06,\n1,11,,0.009\n2,17,0.04,\n2,17,,0.03\n"
    )
    (folder / "hparams.yaml").write_text(f"lr: {lr}\nactivation: relu\n")
    return folder


def write_trial(folder, seed, optim="adam", iterations=(0, 1, 2)):
    """A trial of ModelZooDataset: Ray Tune 1.8 with its Trainable, which saves `checkpoints` and `optimizer`."""
    folder.mkdir(parents=True)
    config = {"model::type": "CNN", "optim::optimizer": optim, "optim::lr": 3e-4, "seed": seed, "cuda": False}
    (folder / "params.json").write_text(json.dumps(config, indent=2))
    (folder / "params.pkl").write_bytes(b"pickle")
    lines = []
    for iteration in iterations:
        results = {"train_loss": 2.0 - iteration, "test_acc": 0.1 * iteration, "val_loss": 2.5 - iteration}
        own = {"training_iteration": iteration, "done": False, "time_total_s": 3.5, "pid": 7, "date": "2021-11-02"}
        lines.append(json.dumps(results | own | {"config": config, "experiment_tag": "1_seed=1"}))
        at = folder / f"checkpoint_{iteration:06d}"
        at.mkdir()
        torch.save(state(seed + iteration), at / "checkpoints")
        torch.save({"state": {}}, at / "optimizer")
        (at / ".is_checkpoint").write_bytes(b"")
    (folder / "result.json").write_text("\n".join(lines) + "\n")
    (folder / "progress.csv").write_text("train_loss\n")
    return folder


def test_trainer_runs_have_steps_and_metrics(tmp_path):
    write_trainer(tmp_path / "in/a")
    write_trainer(tmp_path / "in/b", steps=(200, 300, 400))
    with pytest.warns(UserWarning, match=r"a/model.safetensors was left out: another snapshot is of step 1000"):
        zoo = import_checkpoints(tmp_path / "in", tmp_path / "zoo", model=MLP(4, (3,), 2))
    np.testing.assert_array_equal(zoo.inner_step, [[500, 1000, -1], [200, 300, 400]])
    np.testing.assert_allclose(zoo.metric("val_loss")[0, :2], [3.0, 1.5])
    np.testing.assert_allclose(zoo.metric("loss")[0, :2], [4.0, 2.0])
    np.testing.assert_allclose(zoo.metric("learning_rate")[1], [1e-3] * 3)
    assert torch.equal(zoo.state_dict(0, 1)["layers.0.weight"], state(1000)["layers.0.weight"])


def test_a_trainers_state_goes_before_the_name_of_its_folder(tmp_path):
    at = write_trainer(tmp_path / "run", steps=(500,)) / "checkpoint-500"
    known = json.loads((at / "trainer_state.json").read_text())
    (at / "trainer_state.json").write_text(json.dumps(known | {"global_step": 510}))
    (tmp_path / "run/model.safetensors").unlink()
    (run,), _ = find_runs([tmp_path / "run"])
    assert [snapshot.inner_step for snapshot in run.snapshots] == [510]


@pytest.mark.parametrize(
    "place", ["", "lightning_logs", "lightning_logs/version_0", "lightning_logs/version_0/checkpoints"]
)
def test_lightning_runs_are_found_from_any_of_their_folders(tmp_path, place):
    write_lightning(tmp_path / "lightning_logs/version_0")
    given = tmp_path / place if place in ("", "lightning_logs") else [tmp_path / place]
    with pytest.warns(UserWarning, match=r"last.ckpt was left out: another snapshot is of step 18"):
        zoo = import_checkpoints(given, tmp_path / "zoo", model=MLP(4, (3,), 2))
    np.testing.assert_array_equal(zoo.inner_step, [[6, 12, 18]])
    np.testing.assert_allclose(zoo.metric("val_loss")[0], [0.08, 0.009, 0.03], rtol=1e-6)
    np.testing.assert_allclose(zoo.metric("train_loss")[0], [0.19, np.nan, 0.04], rtol=1e-6)
    np.testing.assert_allclose(zoo.runs["lr"], [0.1])
    assert zoo.attributes["extra"]["settings"] == {"activation": "relu"}
    assert torch.equal(zoo.state_dict(0, 0)["layers.0.weight"], state(6)["layers.0.weight"])


def test_lightning_checkpoints_know_their_step_whatever_their_names(tmp_path):
    folder = write_lightning(tmp_path / "version_3")
    for i, path in enumerate(sorted((folder / "checkpoints").glob("epoch*"))):
        path.rename(path.with_name(f"best-val_loss=0.{i}.ckpt"))
    (folder / "checkpoints/last.ckpt").unlink()
    (run,), _ = find_runs([folder])
    assert [snapshot.inner_step for snapshot in run.snapshots] == [6, 12, 18]
    assert run.name == "version_3"


def test_a_table_of_steps_that_fits_no_checkpoint_is_named(tmp_path):
    save_file(state(0), (write_lightning(tmp_path / "run") / "checkpoints/step_5.safetensors"))
    for path in (tmp_path / "run/checkpoints").glob("*.ckpt"):
        path.unlink()
    (run,), remarks = find_runs([tmp_path / "run"])
    assert [snapshot.inner_step for snapshot in run.snapshots] == [5]
    assert any("metrics.csv has no metrics at the step of any checkpoint" in remark for remark in remarks)


def test_trials_of_a_model_zoo(tmp_path):
    write_trial(tmp_path / "in/NN_tune_trainable_1e5f_00000_0_seed=1", seed=1)
    write_trial(tmp_path / "in/NN_tune_trainable_1e5f_00001_1_seed=20", seed=20, optim="sgd")
    (tmp_path / "in/dataset.pt").write_bytes(b"pickle")
    with pytest.warns(UserWarning, match=r"dataset.pt was left out: it is no trial") as caught:
        zoo = import_checkpoints(tmp_path / "in", tmp_path / "zoo", model=MLP(4, (3,), 2))
    assert not [warning for warning in caught if "params.pkl" in str(warning.message)]
    assert zoo.verify() == []
    np.testing.assert_array_equal(zoo.inner_step, [[0, 1, 2]] * 2)
    np.testing.assert_allclose(zoo.metric("val_loss"), [[2.5, 1.5, 0.5]] * 2)
    assert set(zoo.spec.metric_names) == {"train_loss", "test_acc", "val_loss"}
    np.testing.assert_array_equal(zoo.runs["seed"], [1, 20])
    np.testing.assert_allclose(zoo.runs["optim_lr"], [3e-4] * 2)
    assert zoo.attributes["extra"]["settings"] == {"model_type": "CNN", "optim_optimizer": ["adam", "sgd"]}
    for run, seed in enumerate((1, 20)):
        for iteration in range(3):
            expected = state(seed + iteration)
            assert all(torch.equal(v, expected[n]) for n, v in zoo.state_dict(run, iteration).items())


def test_newer_trials_name_the_folder_of_each_result(tmp_path):
    folder = write_trial(tmp_path / "trial", seed=1, iterations=(0, 1))
    lines = [
        {"training_iteration": 5 * (i + 1), "loss": i, "checkpoint_dir_name": f"checkpoint_{i:06d}"} for i in (0, 1)
    ]
    (folder / "result.json").write_text("\n".join(map(json.dumps, lines)))
    (run,), _ = find_runs([folder])
    assert [(one.inner_step, dict(one.metrics)) for one in run.snapshots] == [(5, {"loss": 0.0}), (10, {"loss": 1.0})]


def test_a_table_of_ones_own_goes_before_what_was_noted(tmp_path):
    folder = write_trial(tmp_path / "trial", seed=1, iterations=(0,))
    (folder / "metrics.csv").write_text("file,step,val_loss\ncheckpoint_000000,70,0.25\n")
    (run,), _ = find_runs([folder])
    assert [(one.inner_step, dict(one.metrics)) for one in run.snapshots] == [(70, {"val_loss": 0.25})]


def test_names_that_become_one_and_broken_notes_are_refused(tmp_path):
    folder = write_trial(tmp_path / "trial", seed=1, iterations=(0,))
    (folder / "params.json").write_text('{"optim::lr": 1, "optim/lr": 2}')
    with pytest.raises(CheckpointError, match="'optim/lr' and 'optim::lr' would both be called optim_lr"):
        record_of(folder, [])
    (folder / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*result\.json"):
        record_of(folder, [])
