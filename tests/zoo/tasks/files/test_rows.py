import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.tasks.datasets import from_rows, get_dataset
from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.task import Task

RNG = np.random.RandomState(0)


class Rows:
    """What is asked of a `datasets.Dataset`, and no more."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def pictures(count, seed=0):
    rng = np.random.RandomState(seed)
    images = [Image.fromarray(rng.randint(0, 256, (4, 6, 3), np.uint8)) for _ in range(count)]
    return Rows([{"image": image, "label": i % 3, "name": f"number {i}"} for i, image in enumerate(images)])


def test_images_by_declared_splits_train_a_task():
    parts = {"train": pictures(60), "validation": pictures(15, 1), "test": pictures(12, 2)}
    data = from_rows(parts, "image", "label", grayscale=True, image_size=4)
    assert [len(s) for s in (data.train, data.val, data.test)] == [60, 15, 12]
    assert data.train.inputs.shape[1:] == (1, 4, 4)
    assert data.train.targets.tolist() == [i % 3 for i in range(60)]
    task = Task(
        "pictures",
        data,
        lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)),
        OBJECTIVES["cross_entropy"],
    )
    assert task.description["name"] == "pictures"
    from_rows(parts, "image", "label", grayscale=True)  # images are still open


def test_arrays_tables_and_text():
    rows = Rows([{"x": RNG.randn(3).tolist(), "a": float(i), "b": "uv"[i % 2], "y": i % 2} for i in range(60)])
    arrays = from_rows(rows, "x", "y")
    assert arrays.train.inputs.shape[1:] == (3,)
    taken = {tuple(x): y for x, y in zip(arrays.train.inputs.tolist(), arrays.train.targets.tolist(), strict=True)}
    written = {tuple(np.float32(row["x"]).tolist()): row["y"] for row in rows.rows}
    assert taken.items() <= written.items()
    table = from_rows(rows, ["a", "b"], "y")
    assert table.train.inputs.shape[1:] == (3,)
    assert torch.equal(table.train.inputs[:, 2].long(), table.train.targets)
    text = from_rows(Rows([{"text": f"document {i}, " * 5} for i in range(40)]), "text", context=8)
    assert text.num_classes == 256
    assert text.train.inputs.shape[1:] == (8,)


def test_saved_folders_are_read_by_the_library(tmp_path, monkeypatch):
    saved = {str(tmp_path): pictures(40)}
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_from_disk=saved.__getitem__))
    data = get_dataset("saved_rows", path=str(tmp_path), inputs="image", target="label")
    assert data.train.inputs.shape[1:] == (3, 4, 6)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        get_dataset("saved_rows", path=str(tmp_path), inputs="image", target="label")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({"train": pictures(9), "extra": pictures(9)}, {}, "expected splits train, validation and test"),
        (pictures(9), {"inputs": "picture"}, r"expected a column 'picture', got \['image', 'label', 'name'\]"),
        (pictures(9), {"target": None}, "inputs must be one column of text"),
        (Rows([]), {}, "expected a column 'image', got no rows"),
    ],
)
def test_what_does_not_fit_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        from_rows(data, **{"inputs": "image", "target": "label"} | options)


def test_pixels_as_lists_are_not_known_to_be_pixels_and_that_is_said():
    rows = [{"pixels": RNG.randint(0, 256, (4, 4)).tolist(), "label": i % 2} for i in range(40)]
    with pytest.warns(UserWarning, match="root mean square.*divide pixels of one byte by 255"):
        data = from_rows(rows, "pixels", "label")
    assert data.train.inputs.max() > 1
    with pytest.raises(ValueError, match=r"expected arrays of one shape in 'pixels', got \[\(2,\), \(4, 4\)\]"):
        from_rows([*rows, {"pixels": [1, 2], "label": 0}], "pixels", "label")
    with pytest.raises(ValueError, match=r"expected rows with a length, got list_iterator; list\(...\) makes them"):
        from_rows({"train": iter(rows)}, "pixels", "label")
