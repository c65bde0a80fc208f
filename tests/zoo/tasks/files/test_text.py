import pytest
import torch

from zoo.tasks.datasets import get_dataset
from zoo.tasks.registry import get_task


def write(folder, count=40):
    for i in range(count):
        file = folder / f"part{i % 3}" / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"Document {i}: " + f"the {i}th line, naïve. " * 9)
    return folder


def text_of(split):
    return bytes(split.inputs.flatten().tolist())


def test_each_document_is_of_one_split_wherever_it_lies(tmp_path):
    folder = write(tmp_path / "a")
    for file in list(folder.rglob("*.txt"))[::2]:
        (folder / f"copy of {file.name}").write_bytes(file.read_bytes())
    data = get_dataset("text_folder", path=folder, context=16)
    assert data.num_classes == 256
    for split in (data.train, data.val, data.test):
        assert torch.equal(split.inputs.flatten()[1:], split.targets.flatten()[:-1])
    seen = {i: [f"the {i}th line".encode() in text_of(s) for s in (data.train, data.val, data.test)] for i in range(40)}
    assert {sum(where) for where in seen.values()} == {1}
    assert "naïve".encode() in text_of(data.train)


def test_declared_splits_patterns_and_hidden_files(tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").write_text(f"{name} " * 30)
        (tmp_path / name / ".hidden.md").write_text("hidden " * 30)
        (tmp_path / name / "a.txt").write_text("other " * 30)
    task = get_task("text_folder", path=tmp_path, context=8, pattern="*.md", width=8, num_blocks=1, num_heads=2)
    for name, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert text_of(task.dataset.split(split)) == (f"{name} " * 30).encode()[: len(task.dataset.split(split)) * 8]
    assert task.layout["token_embedding.weight"].shape == (256, 8)


def test_what_is_too_short_or_no_text_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"):
        get_dataset("text_folder", path=tmp_path / "nothing")
    folder = write(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"no files that match '\*.rst'"):
        get_dataset("text_folder", path=folder, pattern="*.rst")
    with pytest.raises(ValueError, match=r"the (train|val|test) split has .* fewer than one window of 100000 \+ 1"):
        get_dataset("text_folder", path=folder, context=100_000)
    with pytest.raises(ValueError, match="context must be a number of bytes, got 0"):
        get_dataset("text_folder", path=folder, context=0)
    (folder / "a.bin").write_bytes(b"\0\1\2")
    with pytest.raises(ValueError, match=r"a\.bin is not text, it holds zeros; give a pattern"):
        get_dataset("text_folder", path=folder)
