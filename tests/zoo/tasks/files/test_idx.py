import gzip

import numpy as np
import pytest
import torch

from zoo.tasks.datasets import get_dataset
from zoo.tasks.registry import get_task

NAMES = {"train-images": "train-images-idx3-ubyte", "train-labels": "train-labels-idx1-ubyte"}
NAMES |= {part.replace("train", "t10k"): name.replace("train", "t10k") for part, name in NAMES.items()}


def idx(array):
    """Bytes of an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def arrays(seed=0):
    rng = np.random.RandomState(seed)
    sizes = {"train": 60, "t10k": 20}
    images = {f"{part}-images": rng.randint(0, 256, (n, 4, 5), np.uint8) for part, n in sizes.items()}
    return images | {f"{part}-labels": (np.arange(n) % 3 + 1).astype(np.uint8) for part, n in sizes.items()}


def write(folder, compressed=False, **changes):
    folder.mkdir(exist_ok=True)
    for part, array in (arrays() | changes).items():
        content = array if isinstance(array, bytes) else idx(array)
        if compressed:
            (folder / f"{NAMES[part]}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / NAMES[part]).write_bytes(content)
    return folder


def test_files_are_read_compressed_or_not(tmp_path):
    plain, zipped = (
        get_dataset("idx_folder", path=write(tmp_path / str(compressed), compressed)) for compressed in (False, True)
    )
    assert plain.data_hash == zipped.data_hash
    raw = arrays()
    assert plain.num_classes == 3  # labels 1 to 3
    torch.testing.assert_close(plain.test.inputs, torch.from_numpy(raw["t10k-images"])[:, None] / 255.0)
    assert plain.test.targets.tolist() == (raw["t10k-labels"] - 1).tolist()
    assert len(plain.train) + len(plain.val) == 60
    both = torch.cat((plain.train.inputs, plain.val.inputs))
    assert sorted(map(tuple, (both.flatten(1) * 255).round().int().tolist())) == sorted(
        map(tuple, raw["train-images"].reshape(60, -1).tolist())
    )


def test_other_names_and_a_task(tmp_path):
    folder = write(tmp_path / "data")
    for file in list(folder.iterdir()):
        file.rename(folder / f"emnist-letters-{file.name.replace('-idx', '.idx')}")
    task = get_task("idx_folder", path=folder, architecture="cnn", channels=[2])
    assert task.config["path"] == str(folder)
    assert task.evaluate(task.init_runs([0]), "test")["error"].shape == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train-images": idx(arrays()["train-images"])[:-3]}, "should hold 1,200 bytes"),
        ({"t10k-images": b"not an idx file"}, "does not begin as an IDX file"),
        ({"train-labels": np.zeros(7, np.uint8)}, r"as many labels \(n,\), got shapes \(60, 4, 5\) and \(7,\)"),
        ({"t10k-images": np.zeros((20, 4, 4), np.uint8)}, "images of one size"),
    ],
)
@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_files_are_refused(tmp_path, changes, message, compressed):
    write(tmp_path / "data", compressed, **changes)
    with pytest.raises(ValueError, match=message):
        get_dataset("idx_folder", path=tmp_path / "data")


def test_missing_and_ambiguous_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of IDX files"):
        get_dataset("idx_folder", path=tmp_path / "nothing")
    folder = write(tmp_path / "data")
    (folder / f"other-{NAMES['train-images']}").write_bytes(b"")
    with pytest.raises(ValueError, match="several files train-images"):
        get_dataset("idx_folder", path=folder)
    for file in folder.glob("*train-images*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file train-images-idx\.\.\.-ubyte"):
        get_dataset("idx_folder", path=folder)
