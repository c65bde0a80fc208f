import matplotlib.image
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zoo.checkpoints.importer import import_checkpoints
from zoo.inspection import plots


def test_every_picture_is_drawn_and_has_content(small_zoo, tmp_path):
    paths = plots.draw_zoo(small_zoo, tmp_path / "pictures")
    assert {path.stem for path in paths} == {"trajectories", "final_metrics", "distances", "trajectory_pca"}
    for path in paths:
        image = matplotlib.image.imread(path)
        assert image.shape[1] > image.shape[0] > 400
        assert image.std() > 0.02


def test_all_axes_are_labelled(small_zoo):
    for draw in (plots.draw_trajectories, plots.draw_final_metrics, plots.draw_distances, plots.draw_trajectory_pca):
        for axes in draw(small_zoo).axes:
            assert axes.get_ylabel()
            assert axes.get_xlabel() or axes.get_label() == "<colorbar>"


def test_the_fan_shows_the_median(small_zoo):
    axes = plots.draw_trajectories(small_zoo).axes[0]
    median = next(line for line in axes.lines if line.get_label() == "val_loss, median")
    runs = small_zoo.status == 1
    np.testing.assert_allclose(median.get_ydata(), np.median(small_zoo.metric("val_loss")[runs], axis=0), rtol=1e-6)


def test_single_snapshots_without_metrics_still_have_distances(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        save_file({"w": torch.randn(2, 3)}, tmp_path / f"in/{i}.safetensors")
    zoo = import_checkpoints(tmp_path / "in", tmp_path / "zoo")
    assert [path.stem for path in plots.draw_zoo(zoo, tmp_path / "pictures")] == ["distances"]


def test_trajectories_of_different_length_are_drawn(tmp_path):
    for run, steps in {"a": (0, 10, 100), "b": (50,), "c": (7, 8)}.items():
        (tmp_path / "in" / run).mkdir(parents=True)
        for step in steps:
            save_file({"w": torch.randn(2, 3)}, tmp_path / f"in/{run}/{step}.safetensors")
    (tmp_path / "in/metrics.csv").write_text(
        "file,step,val_loss\na/0.safetensors,0,3\na/10.safetensors,10,2\na/100.safetensors,100,\n"
        "b/50.safetensors,50,1\nc/7.safetensors,7,1.5\nc/8.safetensors,8,1.2\n"
    )
    zoo = import_checkpoints(tmp_path / "in", tmp_path / "zoo")
    assert len(plots.draw_zoo(zoo, tmp_path / "pictures")) == 4


def test_principal_plane_is_that_of_the_singular_value_decomposition():
    torch.manual_seed(0)
    points = torch.randn(12, 30) * torch.linspace(3, 0.1, 30)
    plane, shares = plots.principal_plane(points)
    left, values, _ = torch.linalg.svd((points - points.mean(0)).double(), full_matrices=False)
    expected = (left * values)[:, :2]
    torch.testing.assert_close(plane.double().abs(), expected.abs(), rtol=1e-4, atol=1e-4)
    assert shares == pytest.approx((values.square() / values.square().sum())[:2].tolist())


def test_identical_points_have_no_variance():
    plane, shares = plots.principal_plane(torch.ones(4, 3))
    assert plane.abs().max() == 0
    assert shares == (0, 0)
