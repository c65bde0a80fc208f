import numpy as np
import pytest
import torch
from PIL import Image

from zoo.tasks.datasets import get_dataset
from zoo.tasks.registry import get_task


def write(folder, count=24, size=(5, 4), classes=("cat", "dog"), seed=0):
    rng = np.random.RandomState(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.randint(0, 256, (*size, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_classes_are_subfolders_and_pixels_stay(tmp_path):
    folder = write(tmp_path / "pets")
    data = get_dataset("image_folder", path=folder)
    assert data.num_classes == 2
    assert data.train.inputs.shape[1:] == (3, 5, 4)
    parts = (data.train, data.val, data.test)
    found = {
        tuple((x * 255).round().int().flatten().tolist()): int(y)
        for s in parts
        for x, y in zip(s.inputs, s.targets, strict=True)
    }
    assert len(found) == 48
    for label, name in enumerate(("cat", "dog")):
        pixels = np.asarray(Image.open(folder / name / "3.png")).transpose(2, 0, 1)
        assert found[tuple(pixels.flatten().tolist())] == label
    assert get_dataset("image_folder", path=folder).data_hash == data.data_hash
    (folder / "cat" / "3.png").unlink()
    assert get_dataset("image_folder", path=folder).data_hash != data.data_hash


def test_declared_splits_and_scaling(tmp_path):
    write(tmp_path / "train", size=(9, 6), seed=1)
    write(tmp_path / "train", count=3, size=(4, 8), seed=2)
    write(tmp_path / "test", count=4, size=(12, 12), seed=3)
    task = get_task("image_folder", path=tmp_path, image_size=6, grayscale=True, architecture="cnn", channels=[2])
    assert task.dataset.train.inputs.shape[1:] == (1, 6, 6)
    assert len(task.dataset.test) == 8
    assert len(task.dataset.train) + len(task.dataset.val) == 48
    assert get_task(**task.config).dataset.data_hash == task.dataset.data_hash
    torch.testing.assert_close(task.dataset.test.inputs.mean().item(), 0.5, atol=0.05, rtol=0)


def test_folders_of_splits_in_capitals_are_none_of_classes_and_stand_alone(tmp_path):
    for split in ("Train", "Test"):
        write(tmp_path / "pets" / split, seed=len(split))
    data = get_dataset("image_folder", path=tmp_path / "pets")
    assert (data.num_classes, len(data.test), len(data.train) + len(data.val)) == (2, 48, 48)
    write(tmp_path / "pets" / "annotations")
    with pytest.raises(ValueError, match=r"folders of splits .* or none of them, got them beside \['annotations'\]"):
        get_dataset("image_folder", path=tmp_path / "pets")


def test_pixels_of_two_bytes_are_refused_rather_than_cut_to_one(tmp_path):
    folder = write(tmp_path / "scans")
    Image.fromarray(np.full((5, 4), 3000, np.uint16)).save(folder / "cat" / "0.png")
    with pytest.raises(ValueError, match=r"1 of 48 images cannot be read.*mode I;16, not of one byte"):
        get_dataset("image_folder", path=folder)


def test_copies_of_an_image_share_a_split(tmp_path):
    folder = write(tmp_path / "pets")
    for name in ("cat", "dog"):
        for i in range(24):
            (folder / name / f"copy {i}.png").write_bytes((folder / name / f"{i}.png").read_bytes())
    data = get_dataset("image_folder", path=folder)
    keys = [{x.numpy().tobytes() for x in split.inputs} for split in (data.train, data.val, data.test)]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 48


def test_bad_folders_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"):
        get_dataset("image_folder", path=tmp_path / "nothing")
    folder = write(tmp_path / "pets", count=6)
    (folder / "dog" / "notes.txt").write_text("good dog")
    with pytest.warns(UserWarning, match=r"1 files are no images and are left out, first .*notes\.txt"):
        get_dataset("image_folder", path=folder)
    (folder / "dog" / "notes.txt").unlink()
    Image.new("RGB", (9, 9)).save(folder / "dog" / "9.png")
    with pytest.raises(ValueError, match=r"of one size, got .* give image_size"):
        get_dataset("image_folder", path=folder)
    (folder / "dog" / "9.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 of 13 images cannot be read, first .*9\.png.* repair or remove") as caught:
        get_dataset("image_folder", path=folder)
    assert "\n" not in str(caught.value)
    (folder / "dog" / "9.png").unlink()
    (folder / "bird").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*bird has no images"):
        get_dataset("image_folder", path=folder)
    with pytest.raises(ValueError, match="two classes or more"):
        get_dataset("image_folder", path=folder / "bird")
