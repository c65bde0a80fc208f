import numpy as np
import pytest
import zarr

from zoo.tasks.files.arrays import load_array_file

X, Y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2])


def test_npz_and_zarr_give_the_same_arrays(tmp_path):
    np.savez_compressed(tmp_path / "data.npz", x=X, y=Y.astype(np.uint8), comment=np.array(3))
    group = zarr.create_group(tmp_path / "data.zarr")
    for name, array in (("x", X), ("y", Y)):
        group.create_array(name, data=array)
    for path in (tmp_path / "data.npz", tmp_path / "data.zarr"):
        named = load_array_file(path)
        assert named.keys() == {"x", "y"}
        np.testing.assert_array_equal(named["x"], X)
        np.testing.assert_array_equal(named["y"], Y)
        assert (named["x"].dtype, named["y"].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, r"missing \['y'\], found \['x'\]"),
        ({"x_train": X, "y_train": Y}, r"missing \['x_val', 'y_val', 'x_test', 'y_test'\]"),
        ({"x": X, "y": Y[:5]}, "must be of one length, got 6, 5"),
        ({"x": X, "y": np.zeros((len(X), 2, 2), int)}, "one class per example, or per symbol of sequences"),
        ({"x": X, "y": np.ones((6, 2, 2))}, r"must be \(n,\) or \(n, K\)"),
        ({"x": np.where(X == 3, np.nan, X), "y": Y}, "'x' holds 1 values that are not finite"),
        ({"x": X[:, 0], "y": Y}, r"'x' must be \(examples, ...features\), got shape \(6,\)"),
        ({"x": X[:0], "y": Y[:0]}, "must hold one example or more"),
        ({"x": np.array([["a"]] * 6), "y": Y}, "'x' must be numeric, got dtype <U1"),
        ({"x": X.astype(float) * 1e300, "y": Y}, "'x' holds numbers beyond the range of float32"),
        ({"x": X.astype(object), "y": Y}, "as an .npz file of plain arrays"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_array_file(tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_val": X[:, :1]}, r"one shape per example, got \{'x_train': \(2,\), 'x_val': \(1,\)"),
        ({"y_test": Y.astype(float)}, "integers, or all real numbers"),
    ],
)
def test_splits_must_agree(tmp_path, changes, message):
    arrays = {f"{letter}_{name}": array for letter, array in (("x", X), ("y", Y)) for name in ("train", "val", "test")}
    np.savez(tmp_path / "data.npz", **(arrays | changes))
    with pytest.raises(ValueError, match=message):
        load_array_file(tmp_path / "data.npz")


def test_what_is_no_array_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data at"):
        load_array_file(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("not a zip file")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "single.npy", X)
    for name in ("text.npz", "folder", "single.npy"):
        with pytest.raises(ValueError, match="cannot read"):
            load_array_file(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": 255 * np.ones((20, 3), np.uint8)}, "inputs of 255 root mean square.*divide pixels of one byte by 255"),
        ({"y": np.arange(20) % 3 / 1.0}, "targets of only 3 values, all whole.*save them as integers"),
        ({"y": np.arange(20) % 3 + 1}, "3 classes to train on, numbered up to 3: networks get 4 outputs"),
        ({"y": np.arange(20) % 3 * 1000}, "numbered up to 2,000: networks get 2,001 outputs"),
    ],
)
def test_what_is_often_meant_otherwise_is_said(tmp_path, changes, message):
    np.savez(tmp_path / "data.npz", **{"x": np.ones((20, 3)), "y": np.arange(20) % 3, **changes})
    with pytest.warns(UserWarning, match=message):
        load_array_file(tmp_path / "data.npz")
