import numpy as np
import zarr

from zoo.architectures import MLP
from zoo.layout import ParamLayout
from zoo.schema import RunStatus, ZooSpec
from zoo.store import Zoo
from zoo.writer import ZooWriter

LAYOUT = ParamLayout.of(MLP(3, (4,), 2))


def make_spec(**changes):
    settings = {
        "layout": LAYOUT,
        "num_runs": 10,
        "snapshot_steps": (0, 5, 20),
        "block_size": 4,
        "metric_names": ("val_loss", "val_error"),
        "columns": {"lr": "float64", "width": "int64"},
        "task_config": {"name": "toy", "hidden": [4]},
        "seed": 3,
    }
    return ZooSpec(**(settings | changes))


def block_contents(spec, block, *, status=RunStatus.COMPLETE):
    """Numbers that depend on the runs alone, as those of a real builder do."""
    runs, snapshots = spec.block_runs(block), spec.shape[1]
    rngs = [np.random.default_rng([spec.seed, run]) for run in runs]
    return {
        "params": np.stack([rng.normal(size=spec.shape[1:]) for rng in rngs]).astype(np.float32),
        "inner_step": np.tile(spec.snapshot_steps or range(snapshots), (len(runs), 1)),
        "metrics": {
            name: np.stack([rng.random(snapshots) for rng in rngs]).astype(np.float32) for name in spec.metric_names
        },
        "runs": {
            "seed": np.array([1000 + run for run in runs]),
            **{name: np.array([run + 1 for run in runs], dtype=dtype) for name, dtype in spec.columns.items()},
        },
        "status": np.full(len(runs), status),
    }


def build(path, spec=None):
    writer = ZooWriter.create(path, spec or make_spec())
    for block in writer.pending_blocks():
        writer.write_block(block, **block_contents(writer.spec, block))
    return Zoo.open(path)


def test_smoke(tmp_path):
    zoo = build(tmp_path / "zoo")
    assert zoo.verify() == []
    print(zarr.open_group(tmp_path / "zoo").tree())
    want = np.concatenate([block_contents(zoo.spec, b)["params"] for b in range(3)])
    assert np.array_equal(zoo.params[:], want)
    assert np.array_equal(zarr.open_group(tmp_path / "zoo")["params"][...], want)
    assert np.array_equal(zoo.params[-1, 1], want[-1, 1])
    assert zoo.params[2:4, 1, :5].shape == (2, 5)
