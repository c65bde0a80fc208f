"""A small zoo that several tests read; they must not write to it. One thread for all tests, or OMP_NUM_THREADS.

Networks in tests are so small that a second thread gains nothing, and on a busy machine threads wait for each other.
"""

import getpass
import os
import tempfile

import numpy as np
import pytest
import torch

from tests import pretended_device
from tests.devices import DEVICES, other_device
from tests.hub_stand_in import hub_in_memory
from zoo.networks.architectures import MLP
from zoo.networks.layout import ParamLayout
from zoo.storage.schema import RunStatus, ZooSpec
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import Zoo

torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))  # set for processes that tests start, too
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which diffusers and lightning do

# Compiled programs that torch keeps for one instruction set compute nonsense, or crash, under another.
capability = torch.backends.cpu.get_cpu_capability().lower()
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor-{getpass.getuser()}-{capability}"
)

pretended_device.register()

STEPS = (0, 1, 4, 40, 400)


@pytest.fixture(scope="session")
def small_zoo_path(tmp_path_factory):
    """Ten runs of a 4-3-2 MLP in three blocks; run 4 diverged. Losses fall like 1 / (1 + step), errors like half."""
    path = tmp_path_factory.mktemp("zoos") / "small"
    rng = np.random.default_rng(0)
    layout = ParamLayout.of(MLP(4, (3,), 2))
    spec = ZooSpec(
        layout=layout,
        num_runs=10,
        snapshot_steps=STEPS,
        block_size=4,
        metric_names=("train_loss", "val_loss", "val_error", "sharpness"),
        columns={"lr": "float64"},
        task_config={"name": "made up"},
    )
    writer = ZooWriter.create(path, spec)
    for block in range(writer.num_blocks):
        runs = np.array(writer.block_runs(block))
        start = rng.normal(size=(len(runs), 1, layout.num_params))
        drift = rng.normal(size=(len(runs), 1, layout.num_params)) * np.log1p(STEPS)[:, None]
        params = (start + drift).astype(np.float32)
        loss = (1 + 0.01 * runs[:, None]) / (1.0 + np.array(STEPS))
        diverged = runs == 4
        params[diverged, -1] = np.nan
        loss[diverged, -1] = np.nan
        metrics = {
            "train_loss": loss,
            "val_loss": 2 * loss,
            "val_error": loss / 2,
            "sharpness": np.full_like(loss, np.nan),
        }
        status = np.where(diverged, RunStatus.DIVERGED, RunStatus.COMPLETE)
        columns = {"seed": runs, "lr": 0.1 * (runs + 1)}
        writer.write_block(block, params, np.tile(STEPS, (len(runs), 1)), metrics, columns, status)
    return path


@pytest.fixture(params=DEVICES)
def device(request):
    """Each of the other devices."""
    with other_device(request.param) as place:
        yield place


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the Hugging Face Hub."""
    pytest.importorskip("huggingface_hub")
    with hub_in_memory(tmp_path / "cache", monkeypatch) as stand_in:
        yield stand_in


@pytest.fixture
def small_zoo(small_zoo_path):
    return Zoo.open(small_zoo_path)
