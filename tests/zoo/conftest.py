"""A small zoo whose numbers depend on the runs alone, as those of a real builder do."""

import multiprocessing

import numpy as np
import pytest

from zoo.networks.architectures import MLP
from zoo.networks.layout import ParamLayout
from zoo.storage.schema import RunStatus, ZooSpec
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import Zoo

LAYOUT = ParamLayout.of(MLP(3, (4,), 2))


class ToyZoo:
    """Ten runs of three snapshots in three blocks; every method takes the spec, so a test can change it."""

    @staticmethod
    def spec(**changes):
        settings = {
            "layout": LAYOUT,
            "num_runs": 10,
            "snapshot_steps": (0, 5, 20),
            "block_size": 4,
            "metric_names": ("val_loss", "val_error"),
            "columns": {"lr": "float64", "width": "int64"},
            "task_config": {"name": "toy", "hidden": [4]},
            "optimizer_config": {"name": "adam", "lr": 0.1},
            "seed": 3,
        }
        settings |= changes
        if settings.get("num_snapshots"):
            settings["snapshot_steps"] = None
        return ZooSpec(**settings)

    @staticmethod
    def contents(spec, block, status=RunStatus.COMPLETE):
        """Arguments of `write_block` after the block's number."""
        runs, snapshots = spec.block_runs(block), spec.shape[1]
        rngs = [np.random.default_rng([spec.seed, run]) for run in runs]
        numbers = np.array(runs)
        return {
            "params": np.stack([rng.normal(size=spec.shape[1:]) for rng in rngs]).astype(np.float32),
            "inner_step": np.tile(spec.snapshot_steps or range(snapshots), (len(runs), 1)),
            "metrics": {
                name: np.stack([rng.random(snapshots) for rng in rngs]).astype(np.float32) for name in spec.metric_names
            },
            "runs": {"seed": 1000 + numbers, **{name: numbers.astype(dtype) for name, dtype in spec.columns.items()}},
            "status": np.full(len(runs), status),
        }

    @classmethod
    def params(cls, spec):
        """(R, S, P) that the zoo should hold."""
        return np.concatenate([cls.contents(spec, block)["params"] for block in range(spec.num_blocks)])

    @classmethod
    def fill(cls, path, spec=None):
        """Begin or finish the zoo at `path`."""
        writer = ZooWriter.create(path, spec or cls.spec())
        for block in writer.pending_blocks():
            lock = writer.lock(block)
            if lock is not None:
                with lock:
                    writer.write_block(block, **cls.contents(writer.spec, block), lock=lock)
        return Zoo.open(path)


@pytest.fixture(scope="session")
def toy():
    return ToyZoo


@pytest.fixture(scope="session")
def forked():
    """Runs a function in forked processes, all begun at once; gives them back started."""
    context = multiprocessing.get_context("fork")

    def start(function, *args, count=1):
        processes = [context.Process(target=function, args=args) for _ in range(count)]
        for process in processes:
            process.start()
        return processes

    return start


def stored_bytes(path):
    """Contents of all files of a zoo's arrays, without locks and partial files."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and "claims" not in file.parts)
    return {str(file.relative_to(path)): file.read_bytes() for file in files if not file.name.endswith(".partial")}


@pytest.fixture(scope="session")
def bytes_of():
    return stored_bytes
