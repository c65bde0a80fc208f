"""Zoos that earlier releases saved open, are sound, and hold the same numbers."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.storage.schema import RunStatus
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import Zoo
from zoo.tasks.registry import get_task

SAVED_BY_0_1 = Path(__file__).parents[2] / "data/saved_by_0_1/zoo"


@pytest.fixture
def zoo():
    return Zoo.open(SAVED_BY_0_1)


def test_a_zoo_of_release_0_1_is_sound_and_has_its_numbers(zoo):
    assert zoo.verify() == []
    assert zoo.spec.shape == (40, 5, 160)
    assert zoo.spec.software["weightfoundry"] == "0.1.0"
    assert (zoo.status == RunStatus.COMPLETE).all()
    assert zoo.inner_step[7].tolist() == [0, 5, 15, 35, 60]
    first = [-0.057807326316833496, 0.2571202516555786, 0.11693445593118668, 0.15218810737133026]
    assert zoo.params[0, -1, :4].tolist() == first
    assert zoo.params[:].astype(np.float64).sum() == pytest.approx(60.61261795683458, abs=1e-9)
    assert zoo.metric("val_loss")[:3, -1].tolist() == [1.8400672674179077, 2.145358085632324, 2.3257603645324707]
    assert {name: zoo.split(name).tolist() for name in ("val", "test")} == {"val": [28, 38], "test": [4, 24, 26]}
    assert zoo.runs["seed"][:2].tolist() == [8215880369793859364, 4661856344565422383]


def test_its_networks_do_what_they_did(zoo):
    task = get_task(**zoo.task_config)
    assert task.layout == zoo.layout
    for split in ("train", "val", "test"):
        found = task.evaluate(torch.from_numpy(zoo.params[:, -1]), split)
        np.testing.assert_allclose(found["loss"], zoo.metric(f"{split}_loss")[:, -1], atol=1e-5)


def test_a_zoo_in_progress_goes_on_and_its_locks_hold(zoo, tmp_path):
    shutil.copytree(SAVED_BY_0_1, tmp_path / "zoo")
    (tmp_path / "zoo/runs/status/c/1").unlink()
    lock = tmp_path / "zoo/runs/status/claims/1.0"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"host": "another", "pid": 1, "time": 0}))
    writer = ZooWriter.create(tmp_path / "zoo", zoo.spec)
    assert writer.pending_blocks() == [1]
    assert writer.lock(1) is None
    os.utime(lock, (0, 0))
    with writer.lock(1):
        pass
